"""What goes on beside calls while the database is in one space: counting, measuring, building, embedding."""

from contextlib import ExitStack
from typing import Protocol

from pydantic import SecretStr

from db.ann_demand import AnnDemand
from db.ann_maintenance import AnnMaintenance
from db.ann_registry import AnnRegistry
from db.pool import Database
from db.recall_probe import RecallProbe
from db.search_plan import coarse_of
from db.usage import Usage
from db.user_sizes import UserSizes
from memory_service.access.own_quotas import OwnQuotas
from memory_service.access.quotas import Quotas, UserQuotas, quota_of_all
from memory_service.ann_settings import ann_policy, supports_ann
from memory_service.config import Settings
from memory_service.embedding_queue import EmbeddingQueue, QueueOptions
from memory_service.process_parts import ProcessParts
from memory_service.search_outcome import Outcome
from memory_service.text_embeddings import TextEmbeddings


class SpaceWork:
    """Threads at work on one space, from construction until `close`, and what they know."""

    def __init__(
        self, settings: Settings, process: ProcessParts, database: Database, embeddings: TextEmbeddings | None
    ) -> None:
        """Begins to work; `database` and `embeddings` are of the space that `settings` name."""
        self._settings = settings
        self._process = process
        self._database = database
        self._at_work = ExitStack()
        with ExitStack() as opened:
            opened.callback(self.close)
            self.ann = AnnRegistry(database)
            """Which users have an approximate index."""
            self._start(self.ann)
            self._maintain_ann_indexes()
            self.sizes = self._user_sizes()
            """How many memories users have."""
            self._probe = self._recall_probe()
            self._queue = None if embeddings is None else self._embedding_queue(embeddings)
            self.quotas = self._user_quotas()
            """What users may store."""
            opened.pop_all()

    def close(self) -> None:
        """Ends all work."""
        self._at_work.close()

    def wake_queue(self) -> None:
        """Has what was just stored with embed_async embedded at once."""
        if self._queue is not None:
            self._queue.wake()

    def observe(self, user_id: str, outcome: Outcome) -> None:
        """Takes note of what a search has found."""
        self._process.metrics.searches.searched(outcome.plan, outcome.considered)
        if outcome.dense is not None:
            self._probe.offer(user_id, *outcome.dense)

    def _start(self, part: "_Threaded") -> None:
        part.start()
        self._at_work.callback(part.close)

    def _maintain_ann_indexes(self) -> None:
        settings = self._settings
        if supports_ann(settings.dimensions):
            url = settings.direct_database_url or SecretStr(self._process.database_url)
            self._start(
                AnnMaintenance(
                    url.get_secret_value(),
                    ann_policy(settings, settings.dimensions),
                    interval_s=settings.ann_maintenance_interval_s,
                    build_memory_mb=settings.ann_build_memory_mb,
                )
            )

    def _user_sizes(self) -> UserSizes:
        policy = ann_policy(self._settings, self._settings.dimensions)
        demand = AnnDemand(self._database, self.ann, policy=policy, clock=self._process.clock)
        sizes = UserSizes(self._database, counted=demand.counted)
        self._start(sizes)
        return sizes

    def _recall_probe(self) -> RecallProbe:
        probe = RecallProbe(
            self._database,
            self._process.tuning,
            self._process.metrics.searches,
            coarse=coarse_of(self._settings.dimensions),
            fraction=self._settings.recall_probe_fraction,
            clock=self._process.clock,
        )
        self._start(probe)
        return probe

    def _embedding_queue(self, embeddings: TextEmbeddings) -> EmbeddingQueue:
        """Returns what embeds what was stored with embed_async."""
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
            embeddings,
            options,
            clock=self._process.clock,
            count=self._process.metrics.embedding_queue.count,
        )
        self._start(queue)
        queue.wake()  # a move to another space leaves work behind
        return queue

    def _user_quotas(self) -> Quotas:
        of_all, own = quota_of_all(self._settings), OwnQuotas(self._database)
        if of_all == Usage():  # else all are counted anyway
            self._start(own)
        return UserQuotas(self._database, of_all, dimensions=self._settings.dimensions, own_exist=lambda: own.exist)


class _Threaded(Protocol):
    """What works on threads of its own from `start` to `close`."""

    def start(self) -> object:
        """Begins."""

    def close(self) -> None:
        """Ends."""
