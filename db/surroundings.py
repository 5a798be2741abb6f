"""Reading the memories around others in their conversations: what was said before and after."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from uuid import UUID

from psycopg.sql import SQL

from db.connection import Connection
from db.errors import ReplyTooLarge
from db.memory import COLUMNS, Memory, View, from_row


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What stands around a memory in its conversation, oldest first."""

    before: list[Memory] = field(default_factory=list)
    after: list[Memory] = field(default_factory=list)


# A memory without a conversation has no surroundings: NULL equals nothing. Text is read only when all of it fits.
AROUND = SQL("""/* surroundings.around */
WITH around AS MATERIALIZED (
    SELECT wanted.id AS of_id, near.precedes, near.id, near.created_at, near.text_bytes
    FROM unnest(%(ids)s::uuid[]) AS wanted (id)
    CROSS JOIN LATERAL (
        SELECT id, conversation_id, created_at FROM memory_entries
        WHERE user_id = %(user_id)s AND id = wanted.id
        OFFSET 0
    ) entries
    CROSS JOIN LATERAL (
        (
            SELECT true AS precedes, id, created_at, text_bytes FROM memory_entries
            WHERE user_id = %(user_id)s AND conversation_id = entries.conversation_id AND deleted_at IS NULL
                AND (created_at, id) < (entries.created_at, entries.id)
            ORDER BY created_at DESC, id DESC
            LIMIT %(reach)s
        ) UNION ALL (
            SELECT false, id, created_at, text_bytes FROM memory_entries
            WHERE user_id = %(user_id)s AND conversation_id = entries.conversation_id AND deleted_at IS NULL
                AND (created_at, id) > (entries.created_at, entries.id)
            ORDER BY created_at, id
            LIMIT %(reach)s
        )
    ) near
), sized AS (
    SELECT *, sum({counted_bytes}) OVER () AS total_bytes FROM around
)
SELECT of_id, precedes, total_bytes, {columns}
FROM sized
LEFT JOIN memory_entries m
    ON m.user_id = %(user_id)s AND m.id = sized.id AND sized.total_bytes <= %(max_text_bytes)s
LEFT JOIN LATERAL (
    SELECT access_count, last_accessed_at FROM memory_access WHERE user_id = %(user_id)s AND id = m.id OFFSET 0
) a ON true
ORDER BY sized.created_at, sized.id
""")


@cache
def _statement(view: View) -> bytes:
    counted_bytes = SQL("0" if view is View.HEAD else "text_bytes")
    return AROUND.format(columns=SQL(COLUMNS[view]), counted_bytes=counted_bytes).as_bytes(None)


def around(
    conn: Connection, user_id: str, ids: Sequence[UUID], *, reach: int, view: View, max_text_bytes: int
) -> dict[UUID, Surroundings]:
    """Returns up to `reach` live memories before and after each of these in its conversation, by created_at, then id.

    Raises:
        ReplyTooLarge: When they hold more than `max_text_bytes` of text.
    """
    parameters = {"user_id": user_id, "ids": list(ids), "reach": reach, "max_text_bytes": max_text_bytes}
    rows = conn.query(_statement(view), parameters).fetchall()
    found = {memory_id: Surroundings() for memory_id in ids}
    for of_id, precedes, total_bytes, *columns in rows:
        if columns[0] is None:
            raise ReplyTooLarge(count=len(rows), size=total_bytes, allowed=max_text_bytes)
        surroundings = found[of_id]
        (surroundings.before if precedes else surroundings.after).append(from_row(tuple(columns)))
    return found
