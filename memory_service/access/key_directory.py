"""The API keys a process knows: read when they are first used, read again every second while they are in use.

A call whose key is known waits for no database. A revocation reaches every process within REFRESH_S and the time of one
query. A key read longer than MAX_AGE_S ago, because the database does not answer, is trusted no longer: calls are
UNAVAILABLE then.
"""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime, timedelta

from db import api_keys
from db.api_keys import ApiKey
from db.errors import PoolExhausted
from db.periodic import PeriodicThread
from db.pool import Database
from db.wall import ACROSS_USERS
from memory_service.access.principal import EVERYONE, Principal, Role, UserScope

REFRESH_S = 1.0
MAX_AGE_S = 3.0
# Keys not used for this long are read anew when they come back.
FORGET_AFTER_S = 300.0
MAX_KEYS = 20_000
# Of the connections in the pool; whoever sends keys that do not exist gets no more of it.
CONCURRENT_READS = 2
READ_TIMEOUT_S = 2.0
# All suspects together have one connection of their own, so that nobody else waits behind them, and wait for it no
# longer than a few queries of others take: they hold a thread meanwhile.
SUSPECT_WAIT_S = 0.1
# How exactly the last use of a key is stored.
USE_RESOLUTION = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A key and who calls with it."""

    key: ApiKey
    principal: Principal


@dataclass(slots=True)
class _Entry:
    known: KnownKey
    read_at: float
    used_at: float


class KeyDirectory:
    """Finds keys by their ids."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._used: dict[str, datetime] = {}
        self._reads = threading.BoundedSemaphore(CONCURRENT_READS)
        self._suspect_reads = threading.BoundedSemaphore(1)
        self._thread = PeriodicThread("api-keys", self.refresh, interval_s=REFRESH_S, final_run=True)

    def start(self) -> None:
        """Begins to keep the keys current."""
        self._thread.start()

    def close(self) -> None:
        """Notes the last uses and ends."""
        self._thread.close()

    def known(self, key_id: str) -> KnownKey | None:
        """Returns a key that was read lately, None where finding out takes a query: `read`."""
        entry = self._entries.get(key_id)
        now = time.monotonic()
        if entry is None or now - entry.read_at > MAX_AGE_S:
            return None
        entry.used_at = now
        return entry.known

    def read(self, key_id: str, *, suspect: bool = False) -> KnownKey | None:
        """Returns a key as it is in the database, None where there is none; suspects share one connection.

        Raises:
            DatabaseError: When the database does not answer, or too many ask for keys that are not known.
        """
        reads, wait_s = (self._suspect_reads, SUSPECT_WAIT_S) if suspect else (self._reads, READ_TIMEOUT_S)
        if not reads.acquire(timeout=wait_s):
            raise PoolExhausted("too many calls bring keys that have to be looked up")
        try:
            asked_at = time.monotonic()
            key = self._query([key_id]).get(key_id)
        finally:
            reads.release()
        return None if key is None else self._remember(key, asked_at)

    def used(self, key: ApiKey, *, now: datetime) -> None:
        """Notes that a call was let in with a key; written later."""
        if key.last_used_at is None or now - key.last_used_at >= USE_RESOLUTION:
            with self._lock:
                self._used[key.id] = now

    def refresh(self) -> None:
        """Writes which keys were used and reads again those in use.

        Raises:
            DatabaseError: When that is not possible; the uses are written the next time.
        """
        self._write_uses()
        asked_at = time.monotonic()
        with self._lock:
            self._forget(unused_since=asked_at - FORGET_AFTER_S)
            ids = list(self._entries)
        if ids:
            self._renew(ids, self._query(ids), asked_at)

    def _renew(self, ids: list[str], found: dict[str, ApiKey], asked_at: float) -> None:
        with self._lock:
            for key_id in ids:
                entry = self._entries.get(key_id)
                if entry is None or entry.read_at > asked_at:  # a call has read it since, and knows better
                    continue
                if key_id in found:
                    entry.known, entry.read_at = _known(found[key_id]), asked_at
                else:
                    del self._entries[key_id]

    def _query(self, ids: list[str]) -> dict[str, ApiKey]:
        call = self._database.call(timeout_s=READ_TIMEOUT_S)
        return self._database.read(call, lambda conn: api_keys.read(conn, ids), user_id=ACROSS_USERS)

    def _remember(self, key: ApiKey, asked_at: float) -> KnownKey:
        known = _known(key)
        with self._lock:
            self._entries.pop(key.id, None)
            self._entries[key.id] = _Entry(known, read_at=asked_at, used_at=asked_at)
            if len(self._entries) > MAX_KEYS:
                self._entries.popitem(last=False)
        return known

    def _forget(self, *, unused_since: float) -> None:
        for key_id in [key_id for key_id, entry in self._entries.items() if entry.used_at < unused_since]:
            del self._entries[key_id]

    def _write_uses(self) -> None:
        with self._lock:
            used, self._used = self._used, {}
        if not used:
            return
        try:
            self._database.write(
                self._database.call(), lambda conn: api_keys.note_used(conn, used), user_id=ACROSS_USERS
            )
        except Exception:
            with self._lock:
                self._used = used | self._used
            raise


def _known(key: ApiKey) -> KnownKey:
    scope = EVERYONE if key.everyone else UserScope(users=frozenset(key.users), prefixes=key.prefixes)
    return KnownKey(key, Principal(subject=f"key:{key.id}", role=Role[key.role.upper()], scope=scope))
