"""What serves calls while the database holds embeddings of one space: the embedder, and all that depends on it."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from pydantic import SecretStr

from db.access import AccessBuffer
from db.ann_demand import AnnDemand
from db.ann_maintenance import AnnMaintenance
from db.ann_registry import AnnRegistry
from db.pool import Database
from db.recall_probe import RecallProbe
from db.schema import EmbeddingSpace
from db.search_plan import coarse_of
from db.search_tuning import TuningState
from db.user_sizes import UserSizes
from memory_service.access.quotas import create_quotas
from memory_service.ann_settings import ann_policy, supports_ann
from memory_service.calls_in_flight import CallsInFlight
from memory_service.embedding import Embedder
from memory_service.embedding_chain import assemble
from memory_service.embedding_queue import EmbeddingQueue, QueueOptions
from memory_service.global_recall import GlobalRecall
from memory_service.importing import Importing
from memory_service.limits import Limits
from memory_service.metrics import Metrics
from memory_service.ranking_request import RankingDefaults
from memory_service.recall import Recall
from memory_service.rpc_call import NewCall
from memory_service.search_outcome import Outcome
from memory_service.searching import Searching
from memory_service.space_settings import SpaceSettings
from memory_service.text_embeddings import TextEmbeddings
from memory_service.vector_cache import CacheOptions
from memory_service.writing import Writing


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a process has whatever the space: given to each stack."""

    database: Database
    database_url: str
    accesses: AccessBuffer
    tuning: TuningState
    metrics: Metrics
    limits: Limits
    ranking: RankingDefaults
    clock: Callable[[], datetime]
    """Returns the current time in UTC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """The RPCs in one space. A call keeps the stack it began on; `calls` counts those under way."""

    space: EmbeddingSpace
    embedder: str
    """What embeds text: "local", "openai" or "none"."""
    writing: Writing
    importing: Importing
    searching: Searching
    recall: Recall
    global_recall: GlobalRecall
    new_call: NewCall
    """Makes a call that meets no embeddings of another space."""
    end_work: Callable[[], None]
    """Ends what it does beside calls."""
    close: Callable[[], None]
    """Closes the embedder as well, which calls under way may need."""
    calls: CallsInFlight = field(default_factory=CallsInFlight)


def open_stack(chosen: SpaceSettings, around: Surroundings) -> Stack:
    """Returns a stack at work.

    Raises:
        DatabaseError: The database failed; EmbeddingSpaceChanged when it has moved on meanwhile.
    """
    with ExitStack() as opened:
        parts = _Parts(chosen, around, opened)
        return parts.assembled(close=opened.pop_all().close)


class _Parts:
    """The parts of a stack, at work; `opened` ends their work and then closes the embedder."""

    def __init__(self, chosen: SpaceSettings, around: Surroundings, opened: ExitStack) -> None:
        settings = chosen.settings
        self._settings = settings
        self._around = around
        self._opened = opened
        self._work = ExitStack()
        self._space = EmbeddingSpace(settings.model, settings.dimensions)
        self._database = around.database.in_space(self._space)
        self._embeddings = self._text_embeddings(chosen.create_embedder())
        opened.enter_context(self._work)
        self._ann = AnnRegistry(self._database)
        self._run(self._ann)
        self._maintain_ann_indexes()
        self._sizes = self._user_sizes()
        self._probe = self._recall_probe()
        self._queue = self._embedding_queue()
        self._quotas = create_quotas(settings, self._database, dimensions=self._space.dimensions)

    def assembled(self, *, close: Callable[[], None]) -> Stack:
        """Returns the stack of these parts."""
        return Stack(
            space=self._space,
            embedder=self._settings.embedder,
            writing=self._writing(),
            importing=self._importing(),
            searching=self._searching(),
            recall=Recall(
                database=self._database,
                accesses=self._around.accesses,
                embeddings=self._embeddings,
                dimensions=self._space.dimensions,
                limits=self._around.limits,
                clock=self._around.clock,
            ),
            global_recall=GlobalRecall(
                enabled=self._settings.global_search,
                database=self._database,
                embeddings=self._embeddings,
                tuning=lambda: self._around.tuning.current,
                dimensions=self._space.dimensions,
                limits=self._around.limits,
            ),
            new_call=lambda timeout_s: self._database.call(timeout_s=timeout_s),
            end_work=self._work.close,
            close=close,
        )

    def _run(self, part: "_Threaded") -> None:
        part.start()
        self._work.callback(part.close)

    def _text_embeddings(self, embedder: Embedder | None) -> TextEmbeddings | None:
        if embedder is None:
            return None
        metrics, settings = self._around.metrics.embeddings, self._settings
        embedder = assemble(embedder, settings, metrics)
        self._opened.callback(embedder.close)
        cache = CacheOptions(
            enabled=settings.embedding_cache_max_rows > 0,
            ttl=timedelta(seconds=settings.embedding_cache_ttl_s),
            on_look_up=metrics.cache_looked_up,
        )
        return TextEmbeddings(embedder, self._database, self._around.clock, cache=cache)

    def _maintain_ann_indexes(self) -> None:
        settings = self._settings
        if supports_ann(settings):
            url = settings.direct_database_url or SecretStr(self._around.database_url)
            self._run(
                AnnMaintenance(
                    url.get_secret_value(),
                    ann_policy(settings),
                    interval_s=settings.ann_maintenance_interval_s,
                    build_memory_mb=settings.ann_build_memory_mb,
                )
            )

    def _user_sizes(self) -> UserSizes:
        demand = AnnDemand(self._database, self._ann, policy=ann_policy(self._settings), clock=self._around.clock)
        sizes = UserSizes(self._database, counted=demand.counted)
        self._run(sizes)
        return sizes

    def _recall_probe(self) -> RecallProbe:
        probe = RecallProbe(
            self._database,
            self._around.tuning,
            self._around.metrics.searches,
            coarse=coarse_of(self._space.dimensions),
            fraction=self._settings.recall_probe_fraction,
            clock=self._around.clock,
        )
        self._run(probe)
        return probe

    def _embedding_queue(self) -> EmbeddingQueue | None:
        """Returns what embeds what was stored with embed_async; None without an embedder."""
        if self._embeddings is None:
            return None
        settings = self._settings
        options = QueueOptions(
            threads=settings.embedding_queue_threads,
            poll_s=settings.embedding_queue_poll_s,
            batch=settings.embedding_queue_batch,
            lease_s=settings.embedding_queue_lease_s,
            max_attempts=settings.embedding_queue_attempts,
            first_delay_s=settings.embedding_queue_delay_s,
        )
        queue = EmbeddingQueue(
            self._database,
            self._embeddings,
            options,
            clock=self._around.clock,
            count=self._around.metrics.embedding_queue.count,
        )
        self._run(queue)
        queue.wake()  # a move to another space leaves work behind
        return queue

    def _wake_queue(self) -> None:
        if self._queue is not None:
            self._queue.wake()

    def _observe(self, user_id: str, outcome: Outcome) -> None:
        self._around.metrics.searches.searched(outcome.plan, outcome.considered)
        if outcome.dense is not None:
            self._probe.offer(user_id, *outcome.dense)

    def _writing(self) -> Writing:
        return Writing(
            database=self._database,
            embeddings=self._embeddings,
            dimensions=self._space.dimensions,
            limits=self._around.limits,
            clock=self._around.clock,
            wake_queue=self._wake_queue,
            quotas=self._quotas,
        )

    def _importing(self) -> Importing:
        return Importing(
            database=self._database,
            embeddings=self._embeddings,
            dimensions=self._space.dimensions,
            limits=self._around.limits,
            clock=self._around.clock,
            wake_queue=self._wake_queue,
            quotas=self._quotas,
        )

    def _searching(self) -> Searching:
        return Searching(
            database=self._database,
            accesses=self._around.accesses,
            embeddings=self._embeddings,
            ann=self._ann,
            sizes=self._sizes,
            tuning=lambda: self._around.tuning.current,
            observe=self._observe,
            ranking=self._around.ranking,
            dimensions=self._space.dimensions,
            limits=self._around.limits,
            clock=self._around.clock,
        )


class _Threaded(Protocol):
    """What works on threads of its own from `start` to `close`."""

    def start(self) -> object:
        """Begins."""

    def close(self) -> None:
        """Ends."""
