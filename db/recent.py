"""Listing the memories of one user, newest first, by keyset: pages stay stable while others write."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from psycopg.sql import SQL

from db.connection import Connection
from db.filters import Filter, of_user, row_conditions
from db.memory import COLUMNS, Memory, View, from_row
from db.statement_cache import StatementCache


@dataclass(frozen=True, slots=True)
class Position:
    """Where a page ended: the sort key of its last memory."""

    created_at: datetime
    id: UUID


@dataclass(frozen=True, slots=True)
class Page:
    """Some memories, and where the next page begins, if there is one."""

    memories: list[Memory]
    end: Position | None


# One memory more than the page tells whether there is a next one. A page ends early where its texts would exceed
# the reply, but holds at least one memory. OFFSET 0 keeps the planner from reading all of a user's access counters.
RECENT = SQL("""/* recent.page */
WITH page AS (
    SELECT id, created_at, text_bytes
    FROM memory_entries
    WHERE {where}
    ORDER BY created_at DESC, id DESC
    LIMIT %(limit)s
), sized AS (
    SELECT id, created_at, row_number() OVER (ORDER BY created_at DESC, id DESC) AS position,
        sum(text_bytes) OVER (ORDER BY created_at DESC, id DESC) AS text_bytes
    FROM page
)
SELECT (SELECT count(*) FROM page), {columns}
FROM sized
JOIN memory_entries m ON m.user_id = %(user_id)s AND m.id = sized.id
LEFT JOIN LATERAL (
    SELECT access_count, last_accessed_at FROM memory_access WHERE user_id = %(user_id)s AND id = sized.id OFFSET 0
) a ON true
WHERE sized.position < %(limit)s AND (sized.text_bytes <= %(max_text_bytes)s OR sized.position = 1)
ORDER BY sized.position
""")

AFTER = SQL(" AND (created_at, id) < (%(after_created_at)s, %(after_id)s)")


@StatementCache
def _statement(view: View, names: frozenset[str], where: bytes | None, *, after: bool) -> bytes:
    conditions = of_user(row_conditions(names, where))
    if after:
        conditions += AFTER
    return RECENT.format(where=conditions, columns=SQL(COLUMNS[view])).as_bytes(None)


def recent(
    conn: Connection,
    user_id: str,
    *,
    filter: Filter,  # noqa: A002 - the field's name everywhere
    after: Position | None,
    page_size: int,
    view: View,
    max_text_bytes: int,
) -> Page:
    """Returns the page of at most `page_size` memories that follows `after`."""
    compiled = filter.compiled()
    parameters = compiled.parameters | {
        "user_id": user_id,
        "after_created_at": after and after.created_at,
        "after_id": after and after.id,
        "limit": page_size + 1,
        "max_text_bytes": max_text_bytes,
    }
    statement = _statement(view, compiled.names, compiled.where, after=after is not None)
    rows = conn.query(statement, parameters).fetchall()
    memories = [from_row(row[1:]) for row in rows]
    if not rows or rows[0][0] == len(rows):
        return Page(memories, None)
    return Page(memories, Position(memories[-1].created_at, memories[-1].id))
