"""How many live memories the users with an approximate index have: counted again only after enough has changed."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from db.ann_policy import UserRows
from db.connection import Connection
from db.user_sizes import count_live

# Of a user's memories: as many changes, of whichever users, make the next count due.
CHANGED = 0.1
# A busy table changes by more than that all the time; counting reads some hundred bytes a memory.
LEAST_INTERVAL_S = 60.0

# Inserts, updates and deletes of all users since statistics were last reset; soft deletes are updates.
CHANGES = """/* ann_counts.changes */
SELECT pg_stat_get_tuples_inserted(c.oid) + pg_stat_get_tuples_updated(c.oid) + pg_stat_get_tuples_deleted(c.oid),
       greatest(c.reltuples, 0)::bigint
FROM pg_class c WHERE c.oid = to_regclass('memory_entries')
"""


# By the covering index alone, but all of it: for commands.
EARNED = """/* ann_counts.earned */
SELECT user_id, count(*) FROM memory_entries
WHERE deleted_at IS NULL
GROUP BY user_id HAVING count(*) >= %(min_rows)s
ORDER BY 2 DESC, 1
"""


@dataclass(slots=True)
class _Count:
    rows: int
    peak: int
    changes: int
    at: float


class AnnCounts:
    """Remembers counts for as long as the table as a whole has changed too little to matter."""

    def __init__(self) -> None:
        self._counts: dict[str, _Count] = {}

    def of(self, conn: Connection, users: Iterable[str]) -> dict[str, UserRows]:
        """Returns the number of live memories of each user, off by a tenth at most for changes a minute old."""
        changes, _ = _changes(conn)
        kept = {user_id: self._counted(conn, user_id, changes) for user_id in users}
        self._counts = kept
        return {user_id: UserRows(count.rows, count.peak) for user_id, count in kept.items()}

    def built(self, user_id: str, rows: int) -> None:
        """Notes that the user's index now holds just the live memories."""
        if (count := self._counts.get(user_id)) is not None:
            count.peak = rows

    def _counted(self, conn: Connection, user_id: str, changes: int) -> _Count:
        known = self._counts.get(user_id)
        if known is not None and not _due(known, changes):
            return known
        rows = count_live(conn, user_id)
        peak = rows if known is None else max(known.peak, rows)
        return _Count(rows, peak, changes, time.monotonic())


def _due(count: _Count, changes: int) -> bool:
    # Fewer changes than before: the statistics were reset, by a crash for example.
    enough = changes < count.changes or changes - count.changes > CHANGED * count.rows
    return enough and time.monotonic() - count.at >= LEAST_INTERVAL_S


def earned(conn: Connection, *, min_rows: int) -> dict[str, int]:
    """Returns the users with so many live memories or more, and how many, largest first."""
    return {user_id: int(rows) for user_id, rows in conn.query(EARNED, {"min_rows": min_rows}).fetchall()}


def total_rows(conn: Connection) -> int:
    """Returns the number of rows of all users as of the last vacuum or analyze."""
    return _changes(conn)[1]


def _changes(conn: Connection) -> tuple[int, int]:
    row = conn.query(CHANGES, {}).fetchone()
    return (0, 0) if row is None else (int(row[0]), int(row[1]))
