"""Counting accesses: readers only note them in memory, a thread writes them in batches.

A search must not wait for a write, and a counter in the wide vector row made 0 % of its updates HOT. What is noted
and not yet written is lost when the process is killed: counters are statistics, not records.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import structlog

from db.connection import Connection
from db.errors import Conflict
from db.periodic import PeriodicThread
from db.pool import Database
from db.wall import ACROSS_USERS

log = structlog.get_logger(__name__)

# An id is its integer here: UUIDs are compared and hashed by Python code.
Key = tuple[str, int]

# Beyond this many memories between two flushes (a database that is down), further ones are not counted.
MAX_NOTED = 100_000
FLUSH_ROWS = 1_000


@dataclass(slots=True)
class Accesses:
    """How often a memory was returned, and when last."""

    count: int
    last_at: datetime


# In key order, so that processes which flush the same memories lock them in the same order. The join leaves out
# memories that were erased since.
FLUSH = """/* access.flush */
INSERT INTO memory_access (user_id, id, access_count, last_accessed_at)
SELECT noted.user_id, noted.id, noted.access_count, to_timestamp(noted.last_accessed_us / 1e6)
FROM unnest(%(user_ids)s::text[], %(ids)s::text::uuid[], %(counts)s::text::bigint[], %(times_us)s::text::bigint[])
    AS noted (user_id, id, access_count, last_accessed_us)
JOIN memory_entries m ON m.user_id = noted.user_id AND m.id = noted.id
ORDER BY noted.user_id, noted.id
ON CONFLICT (user_id, id) DO UPDATE SET
    access_count = memory_access.access_count + EXCLUDED.access_count,
    last_accessed_at = greatest(memory_access.last_accessed_at, EXCLUDED.last_accessed_at)
"""


class AccessBuffer:
    """Gathers accesses and writes them every `flush_interval_s` seconds, and when it is closed."""

    def __init__(self, database: Database, *, flush_interval_s: float) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._noted: dict[Key, Accesses] = {}
        self._dropped_count = 0
        self._reported_count = 0
        self._thread = PeriodicThread("access-flush", self.flush, interval_s=flush_interval_s, final_run=True)

    @property
    def size(self) -> int:
        """How many memories have accesses not yet written."""
        return len(self._noted)

    @property
    def dropped_count(self) -> int:
        """How many accesses were not counted, since the beginning, because there were MAX_NOTED."""
        return self._dropped_count

    def start(self) -> None:
        """Starts writing."""
        self._thread.start()

    def close(self) -> None:
        """Writes what is left and ends."""
        self._thread.close()

    def record(self, user_id: str, ids: Iterable[UUID], *, at: datetime) -> None:
        """Notes that these memories were returned to a caller."""
        with self._lock:
            for memory_id in ids:
                self._note((user_id, memory_id.int), 1, at)

    def _note(self, key: Key, count: int, at: datetime) -> None:
        noted = self._noted.get(key)
        if noted is not None:
            noted.count += count
            noted.last_at = max(noted.last_at, at)
        elif len(self._noted) < MAX_NOTED:
            self._noted[key] = Accesses(count, at)
        else:
            self._dropped_count += count

    def flush(self) -> None:
        """Writes what is noted; what cannot be written now is kept for the next flush."""
        with self._lock:
            noted, self._noted = self._noted, {}
            dropped = self._dropped_count - self._reported_count
            self._reported_count = self._dropped_count
        if dropped:
            log.warning("accesses_not_counted", count=dropped)
        pending = list(noted.items())
        while pending:
            batch = pending[:FLUSH_ROWS]
            try:
                self._write(batch)
            except Exception:
                self._keep(pending)
                raise
            pending = pending[FLUSH_ROWS:]

    def _write(self, batch: list[tuple[Key, Accesses]]) -> None:
        try:
            self._database.write(self._database.call(), lambda conn: write_accesses(conn, batch), user_id=ACROSS_USERS)
        except Conflict:  # 23503: a memory was erased between the join and the foreign key's check
            self._database.write(self._database.call(), lambda conn: write_accesses(conn, batch), user_id=ACROSS_USERS)

    def _keep(self, pending: list[tuple[Key, Accesses]]) -> None:
        with self._lock:
            for key, accesses in pending:
                self._note(key, accesses.count, accesses.last_at)


def write_accesses(conn: Connection, batch: list[tuple[Key, Accesses]]) -> None:
    """Adds a batch to the counters.

    Arrays go as texts: as lists they cost psycopg three times as much (9 ms for 1,000 rows), and searches wait for
    the interpreter meanwhile.
    """
    conn.query(
        FLUSH,
        {
            "user_ids": [user_id for (user_id, _), _ in batch],
            "ids": _array(f"{memory_id:032x}" for (_, memory_id), _ in batch),
            "counts": _array(str(accesses.count) for _, accesses in batch),
            "times_us": _array(str(round(accesses.last_at.timestamp() * 1_000_000)) for _, accesses in batch),
        },
    )


def _array(elements: Iterable[str]) -> str:
    """Returns the text of an array; the elements need no quotes."""
    return "{" + ",".join(elements) + "}"
