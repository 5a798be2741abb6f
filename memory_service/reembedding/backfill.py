"""Rounds over the memories whose embedding of the other model is missing or out of date: read, embedded, stored."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from threading import Event
from uuid import UUID

from db import reembedding
from db.connection import Connection
from db.pool import Database
from db.reembedding import Progress, Reembedded, Stale
from db.wall import ACROSS_USERS
from memory_service.backoff import Backoff
from memory_service.config import ConfigurationError, Settings
from memory_service.embedding import create_embedder
from memory_service.embedding_chain import assemble_for_bulk
from memory_service.reembedding.patient_embedding import PatientEmbedding, Refused, Stopped

# Requests to a remote provider under way at the same time; the local model keeps a core busy by itself.
REMOTE_REQUESTS = 2
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Backfill:
    """Gives memories their embedding of the other model. All it has done is in the database: it can end at any time."""

    database: Database
    embedding: PatientEmbedding
    model: str
    batch: int
    """Memories read, embedded and stored together."""
    in_flight: int
    """Batches that are being embedded at the same time."""
    stop: Event

    def progress(self) -> Progress:
        """Returns how much is done, which takes a look at every memory."""
        return self.database.read(self.database.call(), reembedding.progress, user_id=ACROSS_USERS)

    def run_round(self, on_stored: Callable[[int], None]) -> int:
        """Goes once over all memories, those written behind its back excepted; returns how many it dealt with.

        `on_stored` is told the size of each batch.

        Raises:
            Stopped: `stop` was set; the batches under way are stored.
            EmbedderMisconfigured: The provider refuses whatever it is asked.
            DatabaseError: The database failed.
        """
        count = 0
        with closing(self._embedded()) as batches:
            for batch in batches:
                self._store(batch)
                count += len(batch)
                on_stored(len(batch))
        if self.stop.is_set():
            raise Stopped
        return count

    def _embedded(self) -> Generator[list[Reembedded], None, None]:
        """Yields the batches in their order; while one is stored, the next ones are being embedded."""
        with ThreadPoolExecutor(self.in_flight, thread_name_prefix="reembedding") as threads:
            under_way: deque[Future[list[Reembedded]]] = deque()
            try:
                for batch in self._stale_batches():
                    under_way.append(threads.submit(self._embed, batch))
                    if len(under_way) > self.in_flight:
                        yield under_way.popleft().result()
                while under_way:
                    yield under_way.popleft().result()
            finally:
                for future in under_way:
                    future.cancel()

    def _stale_batches(self) -> Iterator[list[Stale]]:
        after: tuple[str, UUID] | None = None
        while not self.stop.is_set() and (batch := self._read(after)):
            yield batch
            after = (batch[-1].user_id, batch[-1].id)

    def _read(self, after: tuple[str, UUID] | None) -> list[Stale]:
        def read(conn: Connection) -> list[Stale]:
            return reembedding.stale_batch(conn, after=after, limit=self.batch)

        return self.database.read(self.database.call(), read, user_id=ACROSS_USERS)

    def _embed(self, batch: list[Stale]) -> list[Reembedded]:
        found = self.embedding.embed([stale.text for stale in batch])
        return [
            Reembedded(stale=stale, embedding=None, error=answer.reason)
            if isinstance(answer, Refused)
            else Reembedded(stale=stale, embedding=answer, error=None)
            for stale, answer in zip(batch, found, strict=True)
        ]

    def _store(self, batch: list[Reembedded]) -> None:
        def store(conn: Connection) -> int:
            return reembedding.store_batch(conn, batch, model=self.model)

        self.database.write(self.database.call(), store, user_id=ACROSS_USERS)


@contextmanager
def open_backfill(target: Settings, database: Database, *, batch: int, stop: Event) -> Iterator[Backfill]:
    """Yields a back-fill with the model of these settings.

    Raises:
        ConfigurationError: They name none, or it cannot be had.
    """
    embedder = create_embedder(target)
    if embedder is None:
        raise ConfigurationError("memories cannot be embedded anew without an embedder")
    in_flight = REMOTE_REQUESTS if embedder.cacheable else 1
    with closing(assemble_for_bulk(embedder, target, concurrent_requests=in_flight)) as batching:
        yield Backfill(
            database=database,
            embedding=PatientEmbedding(
                batching=batching,
                pauses=Backoff(first_s=FIRST_PAUSE_S, longest_s=LONGEST_PAUSE_S),
                stop=stop,
            ),
            model=target.model,
            batch=batch,
            in_flight=in_flight,
            stop=stop,
        )
