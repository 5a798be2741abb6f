"""Moving a database to another model in tests: two models that are functions of the text, and the steps of a move."""

from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID
from zlib import crc32

import psycopg

from db import reembedding
from db.connection import Connection
from db.pool import Database
from db.reembedding import Reembedded, Reembedding, Stale, SwitchOutcome
from db.schema import EmbeddingSpace
from db.vectors import Embedding, normalize
from db.wall import ACROSS_USERS
from tests.fix_database import MODEL
from tests.storage.sample_memories import LATER, NOW, new_memory, random_vector

OLD = EmbeddingSpace(MODEL, 8)
NEW = EmbeddingSpace("new-model", 8)
"""As many dimensions: nothing but the tests' care would notice a mixture."""

REFUSED = "!"
"""Texts that begin so are refused by every model."""


def embedding_of(text: str, space: EmbeddingSpace) -> Embedding:
    """Returns what a model makes of a text: some direction, which another text or model does not share."""
    return normalize(random_vector(crc32(f"{space.model}:{text}".encode()), dimensions=space.dimensions))


def memory_of(text: str, space: EmbeddingSpace, **changes: Any) -> Any:
    """Returns a memory to store, embedded by the space's model."""
    return new_memory(content=text, embedding=embedding_of(text, space), embedding_model=space.model, **changes)


def begin(database: Database, standby: EmbeddingSpace = NEW, *, embedder: str = "openai") -> Reembedding:
    """Begins a move."""
    return database.write(
        database.call(),
        lambda conn: reembedding.begin(conn, embedder, standby, live_embedder="local", now=NOW),
        user_id=ACROSS_USERS,
    )


def state(database: Database) -> Reembedding | None:
    """Returns the move under way."""
    return database.read(database.call(), reembedding.read_reembedding, user_id=ACROSS_USERS)


def batch_after(database: Database, after: tuple[str, UUID] | None = None, *, limit: int = 1_000) -> list[Stale]:
    """Returns what is to be embedded next."""
    return database.read(
        database.call(),
        lambda conn: reembedding.stale_batch(conn, after=after, limit=limit),
        user_id=ACROSS_USERS,
    )


def embedded(batch: Sequence[Stale], standby: EmbeddingSpace) -> list[Reembedded]:
    """Returns what the model makes of a batch."""
    return [
        Reembedded(stale=stale, embedding=None, error="nothing to embed")
        if stale.text.startswith(REFUSED)
        else Reembedded(stale=stale, embedding=embedding_of(stale.text, standby), error=None)
        for stale in batch
    ]


def store_batch(database: Database, batch: Sequence[Stale], standby: EmbeddingSpace = NEW) -> int:
    """Embeds a batch and stores it."""

    def change(conn: Connection) -> int:
        return reembedding.store_batch(conn, embedded(batch, standby), model=standby.model)

    return database.write(database.call(), change, user_id=ACROSS_USERS)


def run_round(database: Database, standby: EmbeddingSpace = NEW, *, limit: int = 1_000) -> int:
    """Goes once over all that lacks its embedding; returns how many were stored."""
    after, count = None, 0
    while batch := batch_after(database, after, limit=limit):
        count += store_batch(database, batch, standby)
        after = (batch[-1].user_id, batch[-1].id)
    return count


def build(url: str, on_progress: Callable[[str, float], None] = lambda *_: None) -> None:
    """Builds the indexes of the standby embeddings."""
    reembedding.build_indexes(url, on_progress=on_progress)


def switch(url: str, *, max_pending: int = 0, lock_timeout_s: float = 5.0) -> SwitchOutcome:
    """Switches, or switches back."""
    return reembedding.switch(url, now=LATER, max_pending=max_pending, lock_timeout_s=lock_timeout_s)


def reconnect(database: Database) -> None:
    """Lets a pool find out that the switch has ended its connections: a read is tried again, a write is not."""
    state(database)


def move(database: Database, url: str, standby: EmbeddingSpace = NEW) -> SwitchOutcome:
    """Moves a database from beginning to switch."""
    begin(database, standby)
    run_round(database, standby)
    build(url)
    outcome = switch(url)
    reconnect(database)
    return outcome


def clean_up(url: str) -> None:
    """Ends a move."""
    reembedding.clean_up(url, on_progress=lambda *_: None)


def columns_of(url: str) -> list[str]:
    """Returns the names of the columns of memories."""
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = 'memory_entries'::regclass AND attnum > 0"
            " AND NOT attisdropped ORDER BY attname"
        ).fetchall()
    return [name for (name,) in rows]
