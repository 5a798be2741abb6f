"""What waits for its embedding and what failed: counted, listed, and tried again, for operators."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from db.connection import Connection

RETRY_ROWS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueCounts:
    """How much waits."""

    pending: int
    failed: int
    oldest_queued_at: datetime | None
    """When the oldest of those pending was stored; None when none is."""


COUNTS = """/* embedding_queue_state.counts */
SELECT count(*) FILTER (WHERE failed_at IS NULL), count(*) FILTER (WHERE failed_at IS NOT NULL),
    min(queued_at) FILTER (WHERE failed_at IS NULL)
FROM embedding_jobs
"""


def read_counts(conn: Connection) -> QueueCounts:
    """Returns the counts over all users."""
    row = conn.query(COUNTS, {}).fetchone()
    assert row is not None  # noqa: S101 - an aggregate has a row
    return QueueCounts(pending=row[0], failed=row[1], oldest_queued_at=row[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class UserQueue:
    """How much of a user's waits."""

    user_id: str
    counts: QueueCounts
    last_error: str | None
    """Of a pending job, where one was tried in vain."""


BY_USER = """/* embedding_queue_state.by_user */
SELECT user_id, count(*) FILTER (WHERE failed_at IS NULL), count(*) FILTER (WHERE failed_at IS NOT NULL),
    min(queued_at) FILTER (WHERE failed_at IS NULL), max(last_error) FILTER (WHERE failed_at IS NULL)
FROM embedding_jobs
WHERE %(user_id)s::text IS NULL OR user_id = %(user_id)s
GROUP BY user_id
ORDER BY count(*) DESC, user_id
LIMIT %(limit)s
"""


def read_users(conn: Connection, *, user_id: str | None, limit: int) -> list[UserQueue]:
    """Returns the users with the longest queues, or the one named if it has any."""
    rows = conn.query(BY_USER, {"user_id": user_id, "limit": limit}).fetchall()
    return [
        UserQueue(
            user_id=user,
            counts=QueueCounts(pending=pending, failed=failed, oldest_queued_at=oldest),
            last_error=last_error,
        )
        for user, pending, failed, oldest, last_error in rows
    ]


@dataclass(frozen=True, slots=True)
class FailedJob:
    """A memory that is not tried again by itself."""

    user_id: str
    id: UUID
    attempts: int
    failed_at: datetime
    error: str


FAILED = """/* embedding_queue_state.failed */
SELECT user_id, id, attempts, failed_at, coalesce(last_error, '')
FROM embedding_jobs
WHERE failed_at IS NOT NULL AND (%(user_id)s::text IS NULL OR user_id = %(user_id)s)
ORDER BY failed_at DESC, user_id, id
LIMIT %(limit)s
"""


def list_failed(conn: Connection, *, user_id: str | None, limit: int) -> list[FailedJob]:
    """Returns what failed for good, the latest first, of one user or of all."""
    rows = conn.query(FAILED, {"user_id": user_id, "limit": limit}).fetchall()
    return [FailedJob(*row) for row in rows]


# Memories first, as everywhere; a job that was ended meanwhile stays as it is.
RETRY = """/* embedding_queue_state.retry */
WITH memories AS (
    SELECT m.user_id, m.id
    FROM embedding_jobs j
    JOIN memory_entries m ON m.user_id = j.user_id AND m.id = j.id
    WHERE j.failed_at IS NOT NULL AND (%(user_id)s::text IS NULL OR j.user_id = %(user_id)s)
    ORDER BY m.user_id, m.id
    LIMIT %(limit)s
    FOR NO KEY UPDATE OF m
), jobs AS (
    UPDATE embedding_jobs j
    SET attempts = 0, failed_at = NULL, last_error = NULL, next_attempt_at = %(now)s
    FROM memories
    WHERE j.user_id = memories.user_id AND j.id = memories.id AND j.failed_at IS NOT NULL
    RETURNING j.user_id, j.id
)
UPDATE memory_entries m
SET embedding_error = NULL
FROM jobs
WHERE m.user_id = jobs.user_id AND m.id = jobs.id
"""


def retry(conn: Connection, *, user_id: str | None, now: datetime) -> int:
    """Puts up to RETRY_ROWS failed memories, of one user or of all, back in the queue; returns how many."""
    return conn.query(RETRY, {"user_id": user_id, "now": now, "limit": RETRY_ROWS}).rowcount
