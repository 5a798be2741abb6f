"""Counting what one user has stored."""

from dataclasses import dataclass
from datetime import datetime

from db.connection import Connection
from db.usage import BYTES_PER_DIMENSION


@dataclass(frozen=True, slots=True)
class ConversationStats:
    """What one conversation holds; None stands for the memories without one."""

    conversation_id: str | None
    live_count: int
    deleted_count: int
    newest_created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class UserStats:
    """What a user has stored. Importance, accesses and times are of live memories."""

    live_count: int
    deleted_count: int
    average_importance: float
    total_accesses: int
    oldest_created_at: datetime | None
    newest_created_at: datetime | None
    stored_bytes: int
    """Of live and soft-deleted memories: text, metadata, and 2 bytes a dimension."""
    conversation_count: int
    conversations: list[ConversationStats]


# In one statement, and so of one moment. One scan of the index memory_entries_recent, which holds all the columns of
# `counted`, whose first row is the total. Each memory without an embedding has its job, see db/embedding_jobs.py.
STATS = """/* stats.user */
WITH counted AS (
    SELECT
        grouping(conversation_id) = 1 AS is_total,
        conversation_id,
        count(*) FILTER (WHERE deleted_at IS NULL) AS live_count,
        count(*) FILTER (WHERE deleted_at IS NOT NULL) AS deleted_count,
        max(created_at) AS newest,
        min(created_at) FILTER (WHERE deleted_at IS NULL) AS oldest_live,
        max(created_at) FILTER (WHERE deleted_at IS NULL) AS newest_live,
        coalesce(avg(importance) FILTER (WHERE deleted_at IS NULL), 0)::float8 AS average_importance,
        coalesce(sum(text_bytes), 0) AS text_bytes
    FROM memory_entries
    WHERE user_id = %(user_id)s
    GROUP BY GROUPING SETS ((), (conversation_id))
)
SELECT
    conversation_id, live_count, deleted_count, newest, oldest_live, newest_live, average_importance, text_bytes,
    count(*) FILTER (WHERE NOT is_total AND conversation_id IS NOT NULL AND live_count > 0) OVER (),
    (
        SELECT coalesce(sum(a.access_count), 0)::bigint
        FROM memory_access a
        JOIN memory_entries m ON m.user_id = a.user_id AND m.id = a.id
        WHERE a.user_id = %(user_id)s AND m.deleted_at IS NULL
    ),
    (SELECT count(*) FROM embedding_jobs WHERE user_id = %(user_id)s)
FROM counted
ORDER BY is_total DESC, newest DESC, conversation_id
LIMIT %(limit)s
"""


def user_stats(conn: Connection, user_id: str, *, conversation_limit: int, dimensions: int) -> UserStats:
    """Returns the user's totals and, most recently written first, up to `conversation_limit` conversations."""
    rows = conn.query(STATS, {"user_id": user_id, "limit": conversation_limit + 1}).fetchall()
    _, live, deleted, _, oldest_live, newest_live, importance, text_bytes, conversations, accesses, waiting = rows[0]
    return UserStats(
        live_count=live,
        deleted_count=deleted,
        average_importance=importance,
        total_accesses=accesses,
        oldest_created_at=oldest_live,
        newest_created_at=newest_live,
        stored_bytes=text_bytes + (live + deleted - waiting) * BYTES_PER_DIMENSION * dimensions,
        conversation_count=conversations,
        conversations=[ConversationStats(*row[:4]) for row in rows[1:]],
    )
