"""Gathers entries of the audit log in memory and writes them in batches: no caller waits for it.

What is gathered and not yet written is lost when the process is killed, half a second of it. While the database does
not answer, entries wait; beyond MAX_ENTRIES further ones are dropped, counted and logged.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from enum import Enum

import structlog

from db import audit
from db.audit import AuditEntry
from db.errors import InvalidValue
from db.periodic import PeriodicThread
from db.pool import Database
from db.wall import ACROSS_USERS

log = structlog.get_logger(__name__)

FLUSH_INTERVAL_S = 0.5
MAX_ENTRIES = 100_000
MAX_MEMORY_IDS = 2_000_000
FLUSH_ENTRIES = 1_000
FLUSH_MEMORY_IDS = 50_000


class AuditOutcome(Enum):
    """What became of entries."""

    WRITTEN = "written"
    DROPPED = "dropped"
    """There were too many."""
    REFUSED = "refused"
    """The database would not have them."""
    LEFT_OUT = "left_out"
    """They were not made: there were too many of their kind."""


Count = Callable[[AuditOutcome, int], object]


class AuditBuffer:
    """Writes what is added every half second, sooner where there is much, and when it is closed."""

    def __init__(self, database: Database, *, count: Count = lambda _outcome, _entries: None) -> None:
        self._database = database
        self._count = count
        self._lock = threading.Lock()
        self._entries: list[AuditEntry] = []
        self._memory_ids = 0
        self._dropped = 0
        self._left_out = 0
        self._thread = PeriodicThread("audit-flush", self.flush, interval_s=FLUSH_INTERVAL_S, final_run=True)

    def start(self) -> None:
        """Starts writing."""
        self._thread.start()

    def close(self) -> None:
        """Writes what is left and ends."""
        self._thread.close()

    def add(self, entry: AuditEntry) -> None:
        """Takes an entry, to be written soon. Never blocks."""
        with self._lock:
            if len(self._entries) >= MAX_ENTRIES or self._memory_ids >= MAX_MEMORY_IDS:
                self._dropped += 1
                return
            self._entries.append(entry)
            self._memory_ids += len(entry.memory_ids)
            is_much = len(self._entries) == FLUSH_ENTRIES
        if is_much:
            self._thread.wake()

    def leave_out(self) -> None:
        """Takes note of an entry that is not made. Never blocks."""
        with self._lock:
            self._left_out += 1

    def write_now(self, entry: AuditEntry, *, timeout_s: float | None) -> None:
        """Writes an entry before it returns.

        Raises:
            DatabaseError: When it could not be written.
        """
        call = self._database.call(timeout_s=timeout_s)
        self._database.write(call, lambda conn: audit.write(conn, [entry]), user_id=ACROSS_USERS)
        self._count(AuditOutcome.WRITTEN, 1)

    def flush(self) -> None:
        """Writes what was added; what cannot be written now is kept for the next time."""
        with self._lock:
            entries, self._entries, self._memory_ids = self._entries, [], 0
            dropped, self._dropped = self._dropped, 0
            left_out, self._left_out = self._left_out, 0
        if dropped:
            self._count(AuditOutcome.DROPPED, dropped)
            log.error("audit_entries_dropped", count=dropped)
        if left_out:
            self._count(AuditOutcome.LEFT_OUT, left_out)
            log.warning("audit_entries_left_out", count=left_out)
        written = 0
        try:
            for batch in _batches(entries):
                self._write(batch)
                written += len(batch)
        except Exception:
            self._keep(entries[written:])
            raise

    def _write(self, batch: Sequence[AuditEntry]) -> None:
        try:
            self._database.write(self._database.call(), lambda conn: audit.write(conn, batch), user_id=ACROSS_USERS)
        except InvalidValue:
            # One of them must not hold up all others for ever.
            if len(batch) > 1:
                for entry in batch:
                    self._write([entry])
                return
            self._count(AuditOutcome.REFUSED, 1)
            log.exception("audit_entry_refused", method=batch[0].method, request_id=batch[0].request_id)
            return
        self._count(AuditOutcome.WRITTEN, len(batch))

    def _keep(self, entries: list[AuditEntry]) -> None:
        with self._lock:
            self._entries = entries + self._entries
            self._memory_ids = sum(len(entry.memory_ids) for entry in self._entries)


def _batches(entries: Sequence[AuditEntry]) -> Iterator[Sequence[AuditEntry]]:
    """Yields the entries in runs that one statement takes."""
    start, memory_ids = 0, 0
    for end, entry in enumerate(entries):
        if end > start and (end - start >= FLUSH_ENTRIES or memory_ids + len(entry.memory_ids) > FLUSH_MEMORY_IDS):
            yield entries[start:end]
            start, memory_ids = end, 0
        memory_ids += len(entry.memory_ids)
    if start < len(entries):
        yield entries[start:]
