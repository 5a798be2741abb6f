"""Storing new memories, one or a batch, with the user and the conversations they belong to."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from db import bulk_insert, embedding_jobs, sign_bits
from db.connection import Connection
from db.errors import Conflict, MemoryExists
from db.memory import NewMemory
from db.vectors import to_parameter

# One round trip: the foreign keys are checked at the end of the statement, when all rows are there.
_INSERT = """/* insert.one */
WITH owner AS (
    INSERT INTO users (user_id, created_at) VALUES (%(user_id)s, %(now)s)
    ON CONFLICT DO NOTHING
    RETURNING 1
), conversation AS (
    INSERT INTO conversations (user_id, conversation_id, created_at)
    SELECT %(user_id)s, %(conversation_id)s::text, %(now)s
    WHERE %(conversation_id)s::text IS NOT NULL
        -- Always true, and makes the owner's row come first: a new user's first calls lock in one order.
        AND (SELECT count(*) FROM owner) >= 0
    ON CONFLICT DO NOTHING
)
INSERT INTO memory_entries (
    user_id, id, conversation_id, content, summary, metadata, embedding, embedding_norm, embedding_model,
    importance, version, created_at, updated_at, language{bits})
VALUES (
    %(user_id)s, %(id)s, %(conversation_id)s, %(content)s, %(summary)s, %(metadata)s, %(embedding)s,
    %(embedding_norm)s, %(embedding_model)s, %(importance)s, 1, %(created_at)s, %(now)s, %(language)s{signs})
"""
INSERT = _INSERT.format(bits="", signs="")
INSERT_WITH_BITS = _INSERT.format(bits=", bits", signs=", binary_quantize(%(embedding)s)")


def insert(conn: Connection, user_id: str, memory: NewMemory, *, now: datetime) -> None:
    """Stores one memory, and a job for its embedding where it has none.

    Raises:
        MemoryExists: When the user has a memory with this id, live or soft-deleted.
    """
    try:
        if memory.embedding is not None:
            statement = INSERT_WITH_BITS if sign_bits.kept_beside([memory.embedding]) else INSERT
            conn.query(statement, _parameters(user_id, memory, now))
            return
        with conn.transaction():
            conn.query(INSERT, _parameters(user_id, memory, now))
            embedding_jobs.enqueue(conn, user_id, [memory], now=now)
    except psycopg.errors.UniqueViolation as error:
        raise MemoryExists(f"the user has a memory {memory.id} already") from error


OWNERS = """/* insert.owners */
WITH owner AS (
    INSERT INTO users (user_id, created_at) VALUES (%(user_id)s, %(now)s)
    ON CONFLICT DO NOTHING
    RETURNING 1
)
INSERT INTO conversations (user_id, conversation_id, created_at)
SELECT %(user_id)s, conversation_id, %(now)s
FROM unnest(%(conversation_ids)s::text[]) AS given (conversation_id)
WHERE (SELECT count(*) FROM owner) >= 0  -- as in insert.one
-- Concurrent batches lock shared conversations in one order, not in the callers'.
ORDER BY conversation_id
ON CONFLICT DO NOTHING
"""

TAKEN = """/* insert.taken */
SELECT id FROM memory_entries WHERE user_id = %(user_id)s AND id = ANY(%(ids)s)
"""


def insert_batch(conn: Connection, user_id: str, memories: Sequence[NewMemory], *, now: datetime) -> None:
    """Stores all of the memories or, when one cannot be, none; with jobs for those that have no embedding.

    Raises:
        MemoryExists: When the user has a memory with one of the ids; `index` says which of the batch.
        Conflict: When one was inserted and erased again meanwhile.
    """
    positions = {memory.id: index for index, memory in enumerate(memories)}
    try:
        with conn.transaction():
            conversation_ids = {memory.conversation_id for memory in memories if memory.conversation_id is not None}
            conn.query(OWNERS, {"user_id": user_id, "conversation_ids": list(conversation_ids), "now": now})
            require_free(conn, user_id, memories)
            bulk_insert.insert_rows(conn, user_id, memories, now=now)
            embedding_jobs.enqueue(conn, user_id, memories, now=now)
    except psycopg.errors.UniqueViolation as error:  # inserted by somebody else since we looked
        if (taken := _first_taken(conn, user_id, positions)) is None:
            raise Conflict("a memory with one of these ids came and went meanwhile") from error
        raise _exists(memories, taken) from error


def require_free(conn: Connection, user_id: str, memories: Sequence[NewMemory]) -> None:
    """Returns when none of the ids is taken.

    Raises:
        MemoryExists: When the user has a memory with one of them; `index` says which.
    """
    if (taken := _first_taken(conn, user_id, {memory.id: index for index, memory in enumerate(memories)})) is not None:
        raise _exists(memories, taken)


def _exists(memories: Sequence[NewMemory], index: int) -> MemoryExists:
    return MemoryExists(f"the user has a memory {memories[index].id} already", index=index)


def _first_taken(conn: Connection, user_id: str, positions: dict[UUID, int]) -> int | None:
    rows = conn.query(TAKEN, {"user_id": user_id, "ids": list(positions)}).fetchall()
    return min((positions[row[0]] for row in rows), default=None)


def _parameters(user_id: str, memory: NewMemory, now: datetime) -> dict[str, Any]:
    return {
        "user_id": user_id,
        "id": memory.id,
        "conversation_id": memory.conversation_id,
        "content": memory.content,
        "summary": memory.summary,
        "metadata": Jsonb(memory.metadata),
        "embedding": None if memory.embedding is None else to_parameter(memory.embedding),
        "embedding_norm": None if memory.embedding is None else memory.embedding.norm,
        "embedding_model": memory.embedding_model,
        "importance": memory.importance,
        "created_at": memory.created_at,
        "now": now,
        "language": memory.language,
    }
