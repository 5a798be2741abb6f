"""Purging what has expired: soft-deleted memories past their purge_at, and request ids past their retention."""

from collections.abc import Callable
from datetime import datetime

import structlog

from db import delete, requests
from db.connection import Connection
from db.periodic import PeriodicThread
from db.pool import Database

log = structlog.get_logger(__name__)

# Small transactions: a purge must not hold many rows while callers want to restore one.
BATCH = 500


class Housekeeping:
    """A thread that purges every `interval_s` seconds. Several processes may run one: they skip each other's rows."""

    def __init__(self, database: Database, *, clock: Callable[[], datetime], interval_s: float) -> None:
        self._database = database
        self._clock = clock
        self._thread = PeriodicThread("housekeeping", self.purge, interval_s=interval_s)

    def start(self) -> None:
        """Starts purging."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, waiting for a purge under way."""
        self._thread.close()

    def purge(self) -> None:
        """Purges everything that has expired by now."""
        now = self._clock()
        memories = self._purge_all(lambda conn: delete.purge(conn, now=now, limit=BATCH))
        request_ids = self._purge_all(lambda conn: requests.purge(conn, now=now, limit=BATCH))
        if memories or request_ids:
            log.info("purged", memories=memories, request_ids=request_ids)

    def _purge_all(self, purge_batch: Callable[[Connection], int]) -> int:
        total = 0
        while purged := self._database.write(self._database.call(), purge_batch):
            total += purged
        return total
