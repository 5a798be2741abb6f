"""Memories to store in tests, and the shortest way to store and read them."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import numpy as np
from numpy.typing import NDArray

from db import delete, fetch, insert
from db.memory import Memory, NewMemory, View
from db.pool import Database
from db.vectors import Embedding, normalize
from db.wall import ACROSS_USERS

DIMENSIONS = 8
NOW = datetime(2026, 5, 4, 3, 2, 1, 987_654, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
PURGE_AT = NOW + timedelta(days=30)


def unit(axis: int = 0, *, dimensions: int = DIMENSIONS) -> Embedding:
    """Returns the embedding along one axis, of norm 1."""
    return normalize(np.eye(dimensions)[axis])


def random_vector(seed: int, *, dimensions: int = DIMENSIONS) -> NDArray[np.float32]:
    """Returns a vector that `seed` decides, of any direction and a norm around 3."""
    return np.random.default_rng(seed).normal(size=dimensions).astype(np.float32)


def new_memory(**changes: Any) -> NewMemory:
    """Returns a memory to store with these fields, and something plain in the others."""
    fields: dict[str, Any] = {
        "id": uuid4(),
        "conversation_id": None,
        "content": "The harbour freezes in January.",
        "summary": "",
        "metadata": {},
        "embedding": unit(),
        "embedding_model": "test-model",
        "importance": 5,
        "created_at": NOW,
    }
    return NewMemory(**(fields | changes))


def embedding_of(memory: NewMemory) -> Embedding:
    """Returns the embedding that a memory to store brings."""
    assert memory.embedding is not None
    return memory.embedding


def store(database: Database, user_id: str, *memories: NewMemory, now: datetime = NOW) -> None:
    """Stores memories, in one transaction."""
    database.write(
        database.call(), lambda conn: insert.insert_batch(conn, user_id, list(memories), now=now), user_id=user_id
    )


def stored(database: Database, user_id: str, **changes: Any) -> UUID:
    """Stores one memory with these fields and returns its id."""
    memory = new_memory(**changes)
    store(database, user_id, memory)
    return memory.id


def read(database: Database, user_id: str, memory_id: UUID, *, view: View = View.FULL) -> Memory:
    """Returns a stored memory."""
    return database.read(
        database.call(), lambda conn: fetch.fetch(conn, user_id, memory_id, view=view), user_id=user_id
    )


def soft_delete(database: Database, user_id: str, memory_id: UUID, *, purge_at: datetime = PURGE_AT) -> Memory:
    """Soft-deletes a stored memory and returns it."""
    return database.write(
        database.call(),
        lambda conn: delete.soft_delete(conn, user_id, memory_id, etag="", now=LATER, purge_at=purge_at),
        user_id=user_id,
    )


def hard_delete(database: Database, user_id: str, memory_id: UUID) -> Memory:
    """Erases a stored memory and returns what it was."""
    return database.write(
        database.call(), lambda conn: delete.hard_delete(conn, user_id, memory_id, etag=""), user_id=user_id
    )


def rows(database: Database, statement: bytes, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
    """Returns what a statement of the test's own finds."""
    return database.read(
        database.call(), lambda conn: conn.execute(statement, parameters).fetchall(), user_id=ACROSS_USERS
    )
