"""What serves calls while the database holds embeddings of one space: the embedder, and all that depends on it."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta

from db.pool import Database
from db.schema import EmbeddingSpace
from memory_service.access import late_charges
from memory_service.calls_in_flight import CallsInFlight
from memory_service.config import Settings
from memory_service.embedding import Embedder
from memory_service.embedding_chain import assemble
from memory_service.global_recall import GlobalRecall
from memory_service.importing import Importing
from memory_service.process_parts import ProcessParts
from memory_service.recall import Recall
from memory_service.rpc_call import NewCall
from memory_service.searching import Searching
from memory_service.space_settings import SpaceSettings
from memory_service.space_work import SpaceWork
from memory_service.text_embeddings import TextEmbeddings
from memory_service.vector_cache import CacheOptions
from memory_service.writing import Writing


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


def open_stack(chosen: SpaceSettings, process: ProcessParts) -> Stack:
    """Returns a stack at work.

    Raises:
        DatabaseError: The database failed; EmbeddingSpaceChanged when it has moved on meanwhile.
    """
    settings, space = chosen.settings, chosen.space
    database = process.database.in_space(space)
    with ExitStack() as opened:
        embeddings = None
        if (embedder := chosen.create_embedder()) is not None:
            embeddings = _text_embeddings(embedder, settings, process, database, opened)
        work = SpaceWork(settings, process, database, embeddings)
        opened.callback(work.close)
        return Stack(
            space=space,
            embedder=settings.embedder,
            writing=Writing(
                database=database,
                embeddings=embeddings,
                dimensions=space.dimensions,
                limits=process.limits,
                clock=process.clock,
                wake_queue=work.wake_queue,
                quotas=work.quotas,
                charge=late_charges.charge,
            ),
            importing=Importing(
                database=database,
                embeddings=embeddings,
                dimensions=space.dimensions,
                limits=process.limits,
                clock=process.clock,
                wake_queue=work.wake_queue,
                quotas=work.quotas,
            ),
            searching=Searching(
                database=database,
                accesses=process.accesses,
                embeddings=embeddings,
                ann=work.ann,
                sizes=work.sizes,
                tuning=lambda: process.tuning.current,
                observe=work.observe,
                ranking=process.ranking,
                dimensions=space.dimensions,
                limits=process.limits,
                clock=process.clock,
            ),
            recall=Recall(
                database=database,
                accesses=process.accesses,
                embeddings=embeddings,
                dimensions=space.dimensions,
                limits=process.limits,
                clock=process.clock,
            ),
            global_recall=GlobalRecall(
                enabled=settings.global_search,
                database=database,
                embeddings=embeddings,
                tuning=lambda: process.tuning.current,
                dimensions=space.dimensions,
                limits=process.limits,
            ),
            new_call=lambda timeout_s: database.call(timeout_s=timeout_s),
            end_work=work.close,
            close=opened.pop_all().close,
        )


def _text_embeddings(
    embedder: Embedder, settings: Settings, process: ProcessParts, database: Database, opened: ExitStack
) -> TextEmbeddings:
    """Returns what embeds texts by `embedder`, which `opened` closes."""
    metrics = process.metrics.embeddings
    assembled = assemble(embedder, settings, metrics)
    opened.callback(assembled.close)
    cache = CacheOptions(
        enabled=settings.embedding_cache_max_rows > 0,
        ttl=timedelta(seconds=settings.embedding_cache_ttl_s),
        on_look_up=metrics.cache_looked_up,
    )
    return TextEmbeddings(assembled, database, process.clock, cache=cache)
