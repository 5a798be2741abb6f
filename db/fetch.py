"""Reading memories by id: one, to show it or to change it, or those that a search has chosen."""

from collections.abc import Sequence
from uuid import UUID

from psycopg.sql import SQL

from db.connection import Connection, Statement
from db.errors import EtagMismatch, MemoryNotFound, ReplyTooLarge
from db.filters import Filter, of_user, row_conditions
from db.memory import COLUMNS, Memory, View, from_row
from db.statement_cache import StatementCache

FETCH: dict[View, Statement] = {
    view: "/* fetch.one */ SELECT "
    + columns
    + """
FROM memory_entries m
LEFT JOIN memory_access a ON a.user_id = m.user_id AND a.id = m.id
WHERE m.user_id = %(user_id)s AND m.id = %(id)s
"""
    for view, columns in COLUMNS.items()
}

# The lock is the one UPDATE takes itself, so access counters (whose foreign key takes KEY SHARE) are not blocked.
FETCH_FOR_UPDATE: dict[View, Statement] = {
    view: "/* fetch.for_update */ SELECT "
    + columns
    + """
FROM memory_entries m
LEFT JOIN memory_access a ON a.user_id = m.user_id AND a.id = m.id
WHERE m.user_id = %(user_id)s AND m.id = %(id)s
FOR NO KEY UPDATE OF m
"""
    for view, columns in COLUMNS.items()
}


def fetch(conn: Connection, user_id: str, memory_id: UUID, *, view: View) -> Memory:
    """Returns the memory, live or soft-deleted.

    Raises:
        MemoryNotFound: When the user has no such memory.
    """
    return _one(conn, FETCH[view], user_id, memory_id)


def fetch_for_update(conn: Connection, user_id: str, memory_id: UUID, *, view: View, etag: str) -> Memory:
    """Returns the memory locked until the transaction's end; an `etag` that is not empty must be the memory's.

    Raises:
        MemoryNotFound: When the user has no such memory.
        EtagMismatch: When the memory has changed since its etag was read.
    """
    memory = _one(conn, FETCH_FOR_UPDATE[view], user_id, memory_id)
    require_etag(memory, etag)
    return memory


def require_etag(memory: Memory, etag: str) -> None:
    """Returns when `etag` is the memory's, or empty.

    Raises:
        EtagMismatch: When the memory has changed since its etag was read.
    """
    if etag and etag != memory.etag:
        # The etag sent is not quoted: it may be of any length, and errors travel in trailers of at most 16 KiB.
        raise EtagMismatch(f"memory {memory.id} has changed: its etag is now {memory.etag}")


def _one(conn: Connection, statement: Statement, user_id: str, memory_id: UUID) -> Memory:
    row = conn.query(statement, {"user_id": user_id, "id": memory_id}).fetchone()
    if row is None:
        raise MemoryNotFound(f"the user has no memory {memory_id}")
    return from_row(row)


# Text is read only when all of it fits the reply: otherwise `m` is NULL. OFFSET 0 keeps the planner from turning
# look-ups by id into a scan of all of the user's memories.
CHOSEN = SQL("""/* fetch.chosen */
WITH chosen AS MATERIALIZED (
    SELECT entries.id, sum({counted_bytes}) OVER () AS total_bytes
    FROM unnest(%(ids)s::uuid[]) AS wanted (id)
    CROSS JOIN LATERAL (
        SELECT id, text_bytes FROM memory_entries
        WHERE {conditions} AND id = wanted.id
        OFFSET 0
    ) entries
)
SELECT chosen.total_bytes, {columns}
FROM chosen
LEFT JOIN memory_entries m
    ON m.user_id = %(user_id)s AND m.id = chosen.id AND chosen.total_bytes <= %(max_text_bytes)s
LEFT JOIN LATERAL (
    SELECT access_count, last_accessed_at FROM memory_access WHERE user_id = %(user_id)s AND id = m.id OFFSET 0
) a ON true
""")


@StatementCache
def _chosen(view: View, names: frozenset[str], where: bytes | None) -> bytes:
    return CHOSEN.format(
        columns=SQL(COLUMNS[view]),
        conditions=of_user(row_conditions(names, where)),
        counted_bytes=SQL("0" if view is View.HEAD else "text_bytes"),
    ).as_bytes(None)


def fetch_chosen(
    conn: Connection,
    user_id: str,
    ids: Sequence[UUID],
    *,
    filter: Filter,  # noqa: A002 - the field's name everywhere
    view: View,
    max_text_bytes: int,
) -> dict[UUID, Memory]:
    """Returns those of the memories that still pass the filter of the search that chose them.

    Raises:
        ReplyTooLarge: When they hold more than `max_text_bytes` of text.
    """
    compiled = filter.compiled()
    parameters = compiled.parameters | {"user_id": user_id, "ids": list(ids), "max_text_bytes": max_text_bytes}
    rows = conn.query(_chosen(view, compiled.names, compiled.where), parameters).fetchall()
    if rows and rows[0][1] is None:
        raise ReplyTooLarge(count=len(rows), size=rows[0][0], allowed=max_text_bytes)
    return {row[1]: from_row(row[1:]) for row in rows}
