"""Purging what has had its time.

These are soft-deleted memories past their purge_at, request ids past their retention, cached embeddings that nobody
used for long or that are too many, and months of the audit log.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from db import audit, delete, embedding_cache, requests
from db.connection import Connection
from db.errors import DatabaseError
from db.periodic import PeriodicThread
from db.pool import Database
from db.wall import ACROSS_USERS

log = structlog.get_logger(__name__)

# Small transactions: a purge must not hold many rows while callers want to restore one.
BATCH = 500


class Evicted(Protocol):
    """Is told what left the cache of embeddings."""

    def __call__(self, *, expired: int, excess: int) -> object:
        """Takes the numbers of entries."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheBounds:
    """What may stay in the cache of embeddings."""

    max_rows: int
    ttl: timedelta
    """How long an entry lives without being used."""
    on_evict: Evicted


class Housekeeping:
    """A thread that purges every `interval_s` seconds. Several processes may run one: they skip each other's rows."""

    def __init__(
        self,
        database: Database,
        *,
        clock: Callable[[], datetime],
        interval_s: float,
        cache: CacheBounds | None = None,
        audit_retention: timedelta | None = None,
    ) -> None:
        """Does nothing yet; without `cache`, the cache of embeddings is left alone, and so is the audit log."""
        self._database = database
        self._clock = clock
        self._cache = cache
        self._audit_retention = audit_retention
        self._thread = PeriodicThread("housekeeping", self.purge, interval_s=interval_s)

    def start(self) -> None:
        """Makes the audit log's partitions, before the first entries come, and starts purging."""
        try:
            self._turn_audit_log()
        except DatabaseError as error:  # entries go to the default partition then
            log.warning("audit_log_not_turned", error=str(error))
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
        if self._cache is not None:
            self._evict(self._cache, now - self._cache.ttl)
        self._turn_audit_log()

    def _turn_audit_log(self) -> None:
        """Makes the next months' partitions, and drops those that hold nothing to be kept."""
        if self._audit_retention is None:
            return
        now = self._clock()
        keep_from = now - self._audit_retention
        made = self._write(lambda conn: audit.prepare_partitions(conn, now=now))
        dropped = self._write(lambda conn: audit.trim(conn, before=keep_from))
        if made or dropped:
            log.info("audit_log_turned", partitions_made=made, partitions_dropped=dropped)

    def _evict(self, cache: CacheBounds, expired_at: datetime) -> None:
        expired = self._evict_all(expired_at)
        limit = self._database.read(
            self._database.call(),
            lambda conn: embedding_cache.excess(conn, max_rows=cache.max_rows),
            user_id=ACROSS_USERS,
        )
        excess = self._evict_all(limit) if limit is not None else 0
        cache.on_evict(expired=expired, excess=excess)
        if expired or excess:
            log.info("embedding_cache_evicted", expired=expired, excess=excess)

    def _evict_all(self, used_until: datetime) -> int:
        return self._purge_all(lambda conn: embedding_cache.evict(conn, used_until=used_until, limit=BATCH))

    def _purge_all(self, purge_batch: Callable[[Connection], int]) -> int:
        total = 0
        while purged := self._write(purge_batch):
            total += purged
        return total

    def _write(self, change: Callable[[Connection], int]) -> int:
        return self._database.write(self._database.call(), change, user_id=ACROSS_USERS)
