"""What ranking has to know of the memories a search has found, before the best of them are read."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from psycopg.sql import SQL

from db.connection import Connection
from db.filters import Filter, of_user, row_conditions
from db.statement_cache import StatementCache
from db.vectors import Embedding, from_column, to_parameter


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What is known of a memory without its text."""

    id: UUID
    conversation_id: str | None
    importance: int
    created_at: datetime
    updated_at: datetime
    access_count: int
    last_accessed_at: datetime | None
    cosine: float | None = None
    """Similarity to the query; None where it was not asked for, or there is no embedding."""
    embedding: Embedding | None = None
    """Only where it was asked for, and there is one."""


# OFFSET 0 keeps the planner from turning look-ups by id into a scan of all of the user's memories.
FEATURES = SQL("""/* candidates.features */
SELECT entries.id, conversation_id, importance, created_at, updated_at, coalesce(access_count, 0), last_accessed_at,
    {cosine}, {embedding}, {norm}
FROM unnest(%(ids)s::uuid[]) AS wanted (id)
CROSS JOIN LATERAL (
    SELECT * FROM memory_entries
    WHERE {conditions} AND id = wanted.id
    OFFSET 0
) entries
LEFT JOIN LATERAL (
    SELECT access_count, last_accessed_at FROM memory_access
    WHERE user_id = %(user_id)s AND id = entries.id
    OFFSET 0
) accesses ON true
""")

_NULL = SQL("NULL")
# As the dense plans compute it. NULL, which greatest() and least() ignore, stays NULL.
_COSINE = SQL(
    "CASE WHEN embedding IS NOT NULL THEN greatest(-1.0, least(1.0, 1.0 - (embedding <=> %(unit)s))) END AS cosine"
)


@StatementCache
def _features(names: frozenset[str], where: bytes | None, *, cosine: bool, embeddings: bool) -> bytes:
    return FEATURES.format(
        conditions=of_user(row_conditions(names, where)),
        cosine=_COSINE if cosine else _NULL,
        embedding=SQL("embedding") if embeddings else _NULL,
        norm=SQL("embedding_norm") if embeddings else _NULL,
    ).as_bytes(None)


def features(
    conn: Connection,
    user_id: str,
    ids: Sequence[UUID],
    *,
    filter: Filter,  # noqa: A002 - the field's name everywhere
    near: Embedding | None,
    embeddings: bool,
) -> dict[UUID, Features]:
    """Returns what is known of those of the memories that still pass the filter.

    Args:
        conn: Where to ask.
        user_id: Whose memories.
        ids: Which ones.
        filter: The filter of the search that found them.
        near: What to tell the cosine to; None for no cosine.
        embeddings: Whether to read the embeddings themselves.
    """
    compiled = filter.compiled()
    parameters = compiled.parameters | {"user_id": user_id, "ids": list(ids)}
    if near is not None:
        parameters["unit"] = to_parameter(near)
    statement = _features(compiled.names, compiled.where, cosine=near is not None, embeddings=embeddings)
    found = {}
    for row in conn.query(statement, parameters).fetchall():
        memory_id, conversation_id, importance, created_at, updated_at, count, last_at, cosine, vector, norm = row
        found[memory_id] = Features(
            id=memory_id,
            conversation_id=conversation_id,
            importance=importance,
            created_at=created_at,
            updated_at=updated_at,
            access_count=count,
            last_accessed_at=last_at,
            cosine=cosine,
            embedding=None if vector is None else from_column(vector, norm),
        )
    return found


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Who stands beside a memory in its conversation, the nearest first."""

    previous: tuple[UUID, ...]
    next: tuple[UUID, ...]


# How many on either side: the second ones tell who stands beside the first.
REACH = 2

NEIGHBOURS = """/* candidates.neighbours */
SELECT wanted.id,
    ARRAY(
        SELECT id FROM memory_entries
        WHERE user_id = %(user_id)s AND conversation_id = entries.conversation_id AND deleted_at IS NULL
            AND (created_at, id) < (entries.created_at, entries.id)
        ORDER BY created_at DESC, id DESC
        LIMIT %(reach)s
    ),
    ARRAY(
        SELECT id FROM memory_entries
        WHERE user_id = %(user_id)s AND conversation_id = entries.conversation_id AND deleted_at IS NULL
            AND (created_at, id) > (entries.created_at, entries.id)
        ORDER BY created_at, id
        LIMIT %(reach)s
    )
FROM unnest(%(ids)s::uuid[]) AS wanted (id)
CROSS JOIN LATERAL (
    SELECT id, conversation_id, created_at FROM memory_entries
    WHERE user_id = %(user_id)s AND id = wanted.id AND deleted_at IS NULL
    OFFSET 0
) entries
"""


def neighbours(conn: Connection, user_id: str, ids: Sequence[UUID]) -> dict[UUID, Neighbours]:
    """Returns the live memories just before and after each of these in its conversation, by created_at, then id."""
    rows = conn.query(NEIGHBOURS, {"user_id": user_id, "ids": list(ids), "reach": REACH}).fetchall()
    return {memory_id: Neighbours(tuple(previous), tuple(following)) for memory_id, previous, following in rows}
