"""Calls of the queue of waiting memories, as a worker makes them, and of what changes a memory meanwhile."""

from datetime import datetime, timedelta
from uuid import UUID

from db import embedding_jobs
from db import embedding_queue_state as state
from db.embedding_jobs import EmbeddingJob
from db.memory import NewMemory
from db.pool import Database
from db.update import Changes, update
from db.vectors import Embedding
from db.wall import ACROSS_USERS
from tests.storage.sample_memories import LATER, NOW, new_memory, rows, unit

LEASE = timedelta(minutes=2)
MODEL = "the-model"


def waiting(content: str = "The harbour freezes in January.", **changes: object) -> NewMemory:
    return new_memory(**{"content": content, "embedding": None, "embedding_model": MODEL, **changes})


def take(queue: Database, *, now: datetime = NOW, limit: int = 100) -> list[EmbeddingJob]:
    return queue.write(
        queue.call(),
        lambda conn: embedding_jobs.take(conn, now=now, leased_until=now + LEASE, limit=limit),
        user_id=ACROSS_USERS,
    )


def complete(queue: Database, *jobs: EmbeddingJob, embedding: Embedding | None = None) -> int:
    embeddings = [embedding or unit(1)] * len(jobs)
    return queue.write(
        queue.call(),
        lambda conn: embedding_jobs.complete(conn, jobs, embeddings, model="newer-model"),
        user_id=ACROSS_USERS,
    )


def postpone(queue: Database, *jobs: EmbeddingJob, until: datetime, error: str = "it is down") -> None:
    queue.write(
        queue.call(),
        lambda conn: embedding_jobs.postpone(conn, jobs, [until for _ in jobs], error=error),
        user_id=ACROSS_USERS,
    )


def give_up(queue: Database, job: EmbeddingJob, *, error: str = "it is too long") -> None:
    queue.write(
        queue.call(), lambda conn: embedding_jobs.give_up(conn, job, error=error, now=LATER), user_id=ACROSS_USERS
    )


def retry(queue: Database, user_id: str | None = None) -> int:
    return queue.write(queue.call(), lambda conn: state.retry(conn, user_id=user_id, now=LATER), user_id=ACROSS_USERS)


def counts(queue: Database) -> state.QueueCounts:
    return queue.read(queue.call(), state.read_counts, user_id=ACROSS_USERS)


def change(queue: Database, user_id: str, memory_id: UUID, **changes: object) -> None:
    queue.write(
        queue.call(),
        lambda conn: update(
            conn,
            user_id,
            memory_id,
            Changes(**changes),  # type: ignore[arg-type]
            etag="",
            now=LATER,
            check_metadata=lambda _: None,
        ),
        user_id=user_id,
    )


def embedded(queue: Database, memory_id: UUID) -> tuple[object, ...]:
    """Returns the memory's norm, model and error."""
    statement = b"SELECT embedding_norm, embedding_model, embedding_error FROM memory_entries WHERE id = %s"
    [row] = rows(queue, statement, [memory_id])
    return row
