"""A worker of the embedding queue that tests drive, the time it goes by, and memories that wait for it."""

from collections import Counter
from dataclasses import replace
from typing import Any
from uuid import UUID

from db import embedding_queue_state as state
from db.memory import NewMemory
from db.pool import Database
from db.wall import ACROSS_USERS
from memory_service.embedding_queue import EmbeddingQueue, QueueOptions
from memory_service.job_outcome import JobOutcome
from memory_service.text_embeddings import TextEmbeddings
from tests.clock import Clock
from tests.storage.sample_embedder import SampleEmbedder
from tests.storage.sample_memories import new_memory, store

OPTIONS = QueueOptions(threads=1, poll_s=3_600, batch=8, lease_s=60, max_attempts=3, first_delay_s=1.0)


class Worker:
    """A queue as a process has one, with what it has counted."""

    def __init__(self, database: Database, embedder: SampleEmbedder, clock: Clock, **options: Any) -> None:
        self.outcomes: Counter[str] = Counter()
        self.queue = EmbeddingQueue(
            database,
            TextEmbeddings(embedder, database, clock),
            replace(OPTIONS, **options),
            clock=clock,
            count=self._count,
        )

    def _count(self, outcome: JobOutcome, memories: int) -> None:
        if memories:
            self.outcomes[outcome.value] += memories

    def run(self) -> None:
        """Embeds what is due, on this thread, as if the last pause were over."""
        self.queue._outage._until = 0.0  # noqa: SLF001 - pauses take real time
        self.queue.embed_due()


def waiting(content: str, **changes: object) -> NewMemory:
    return new_memory(**{"content": content, "embedding": None, "embedding_model": "sample-model", **changes})


def stored(database: Database, *contents: str, user_id: str = "ada") -> list[UUID]:
    memories = [waiting(content) for content in contents]
    store(database, user_id, *memories)
    return [memory.id for memory in memories]


def counts(database: Database) -> tuple[int, int]:
    """Returns how many wait and how many have failed."""
    found = database.read(database.call(), state.read_counts, user_id=ACROSS_USERS)
    return found.pending, found.failed
