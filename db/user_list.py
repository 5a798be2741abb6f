"""Listing users and what they have stored, in the order of their ids, by keyset."""

from dataclasses import dataclass
from datetime import datetime

from db.connection import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class UserSummary:
    """One user."""

    user_id: str
    created_at: datetime
    live_count: int
    deleted_count: int
    stored_bytes: int
    """Of live and soft-deleted memories: text, metadata, and 2 bytes a dimension."""
    newest_created_at: datetime | None


# For each user of the page one scan of the index memory_entries_recent, which holds all of these columns. The time of
# the last change does not stand in any index, and would take reading every memory.
PAGE = """/* user_list.page */
WITH page AS MATERIALIZED (
    SELECT user_id, created_at FROM users WHERE user_id > %(after)s ORDER BY user_id LIMIT %(limit)s
)
SELECT page.user_id, page.created_at, counted.live_count, counted.deleted_count, counted.text_bytes, counted.newest,
    (SELECT count(*) FROM embedding_jobs j WHERE j.user_id = page.user_id)
FROM page
CROSS JOIN LATERAL (
    SELECT
        count(*) FILTER (WHERE m.deleted_at IS NULL) AS live_count,
        count(*) FILTER (WHERE m.deleted_at IS NOT NULL) AS deleted_count,
        coalesce(sum(m.text_bytes), 0) AS text_bytes,
        max(m.created_at) AS newest
    FROM memory_entries m
    WHERE m.user_id = page.user_id
) counted
ORDER BY page.user_id
"""


def read_page(conn: Connection, *, after: str, limit: int) -> list[UserSummary]:
    """Returns up to `limit` users that follow the one `after`, or the first ones for an empty string."""
    dimensions = 0 if conn.space is None else conn.space.dimensions
    rows = conn.query(PAGE, {"after": after, "limit": limit}).fetchall()
    return [
        UserSummary(
            user_id=user_id,
            created_at=created_at,
            live_count=live,
            deleted_count=deleted,
            # Each memory without an embedding has its job, see db/embedding_jobs.py.
            stored_bytes=text_bytes + (live + deleted - waiting) * 2 * dimensions,
            newest_created_at=newest,
        )
        for user_id, created_at, live, deleted, text_bytes, newest, waiting in rows
    ]


IDS = "/* user_list.ids */ SELECT user_id FROM users ORDER BY user_id LIMIT %(limit)s"


def read_ids(conn: Connection, *, limit: int) -> list[str]:
    """Returns the ids of the first `limit` users."""
    return [user_id for (user_id,) in conn.query(IDS, {"limit": limit}).fetchall()]
