"""Whose turn it is at the queue of memories that wait for their embedding."""

from db.connection import Connection

# From user to user through the index, however many jobs each of them has.
WAITING_USERS = """/* embedding_turns.waiting_users */
WITH RECURSIVE walked AS (
    (
        SELECT user_id, 1 AS step FROM embedding_jobs
        WHERE failed_at IS NULL AND user_id > %(after)s
        ORDER BY user_id LIMIT 1
    ) UNION ALL (
        SELECT following.user_id, step + 1
        FROM walked
        CROSS JOIN LATERAL (
            SELECT user_id FROM embedding_jobs
            WHERE failed_at IS NULL AND user_id > walked.user_id
            ORDER BY user_id LIMIT 1
        ) following
        WHERE step < %(users)s
    )
)
SELECT user_id FROM walked ORDER BY user_id
"""


class Turns:
    """Whose turn it is: users get their shares of the batches in the order of their ids, round and round.

    Each process has its own, and one is not always the same as the other: that several processes serve a user at once
    does no harm.
    """

    def __init__(self) -> None:
        self._after = ""

    def next(self, conn: Connection, *, users: int) -> list[str]:
        """Returns up to so many users with jobs, those after the ones returned before; not all need have any due."""
        rows = conn.query(WAITING_USERS, {"after": self._after, "users": users}).fetchall()
        if len(rows) < users and self._after:
            rows += conn.query(WAITING_USERS, {"after": "", "users": users - len(rows)}).fetchall()
        found = list(dict.fromkeys(user_id for (user_id,) in rows))
        self._after = found[-1] if len(found) == users else ""
        return found
