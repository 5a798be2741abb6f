"""Quotas: how many memories and bytes a user may have stored, soft-deleted ones included.

What a user may store is what all may, or its own quota (db/user_quotas.py).

No counter is kept in the database, which would be one hot row for all of a user's writers. A process counts a user's
memories through an index and remembers the number for ten seconds, adding what it stores itself. Far from the quota,
that is all. Near it, writers of the user take turns, and each counts within its transaction before and after: then
the quota is exact, whatever other processes do, and so is what a policy for duplicates has left out.

"Near" begins 1,000 memories or 16 MiB before the quota. A user can get past it only by storing more than that within
the ten seconds through other processes, or through this one in the moment in which it counts.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from db import duplicates, usage
from db.cancellation import Call
from db.connection import Connection
from db.pool import Database
from db.usage import Account, Usage
from memory_service.access.errors import QuotaExceeded
from memory_service.config import Settings

REMEMBERED_S = 10.0
MAX_USERS = 50_000
NEAR_MEMORIES = 1_000
NEAR_BYTES = 16 * 2**20


class Room(Protocol):
    """A user's room for one write."""

    def enforced(self, conn: Connection, *, now: datetime) -> AbstractContextManager[None]:
        """Surrounds the write itself; raises QuotaExceeded, which rolls it back, when it went past the quota."""
        ...


class Quotas(Protocol):
    """Decides whether a user may store more."""

    def expect(self, user_id: str, adding: Callable[[], Usage], call: Call, *, certain: bool) -> Room:
        """Takes a first look, before anything is done for a write.

        Args:
            user_id: Who stores.
            adding: Returns what the write stores at most.
            call: Whose write it is.
            certain: Whether it stores all of that, if anything.

        Raises:
            QuotaExceeded: When it is certain that the user has no room for it.
        """
        ...


class NoQuotas:
    """Room for everything."""

    def expect(self, _user_id: str, _adding: Callable[[], Usage], _call: Call, *, certain: bool) -> "NoQuotas":  # noqa: ARG002 - as in the protocol
        """Returns the room there is."""
        return self

    def enforced(self, _conn: Connection, *, now: datetime) -> AbstractContextManager[None]:  # noqa: ARG002 - likewise
        """Surrounds the write with nothing."""
        return nullcontext()


NO_QUOTAS = NoQuotas()


@dataclass(slots=True)
class _Known:
    """What this process knows of a user."""

    used: Usage
    """What there was when it was counted, and what this process has stored since."""
    allowed: Usage
    counted_at: float
    storing: Usage
    """What it is storing. May be among what was counted: rather too much than too little."""


class UserQuotas:
    """The same quotas for every user, but for those who have quotas of their own."""

    def __init__(
        self,
        database: Database,
        of_all: Usage,
        *,
        dimensions: int,
        own_exist: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepares to enforce what is allowed.

        Args:
            database: Where it is counted.
            of_all: What users without a quota of their own may store, 0 standing for any number.
            dimensions: Of embeddings.
            own_exist: Returns whether any user may have a quota of its own.
            clock: Returns seconds.
        """
        self._database = database
        self._of_all = of_all
        self._dimensions = dimensions
        self._own_exist = own_exist
        self._clock = clock
        self._lock = threading.Lock()
        self._known: OrderedDict[str, _Known] = OrderedDict()

    def expect(self, user_id: str, adding: Callable[[], Usage], call: Call, *, certain: bool) -> Room:
        """Takes a first look; see the protocol."""
        if self._of_all == Usage() and not self._own_exist():
            return NO_QUOTAS
        amount, known = adding(), self._known.get(user_id)
        if known is None or not self._is_far(known, amount):
            counted = self._database.read(call, lambda conn: self._count(conn, user_id), user_id=user_id)
            self._remember(user_id, counted)
            if certain:
                _require(counted.allowed, counted.used, counted.used + amount)
        return _UserRoom(self, user_id, amount)

    @contextmanager
    def enforce(self, conn: Connection, user_id: str, adding: Usage, *, now: datetime) -> Iterator[None]:
        """Surrounds a write of at most `adding`; see Room."""
        if (known := self._let_in(user_id, adding)) is not None:
            stored = Usage()
            try:
                yield
                stored = adding
            finally:
                with self._lock:
                    known.storing -= adding
                    known.used += stored
            return
        with conn.transaction():
            duplicates.take_turns(conn, user_id, now=now)
            before = self._count(conn, user_id)
            yield
            after = self._count(conn, user_id)
            _require(after.allowed, before.used, after.used)
        self._remember(user_id, after)

    def _count(self, conn: Connection, user_id: str) -> Account:
        return usage.count(conn, user_id, of_all=self._of_all, dimensions=self._dimensions)

    def _let_in(self, user_id: str, adding: Usage) -> _Known | None:
        """Takes note of what is being stored where that is certain to stay far from the quota."""
        with self._lock:
            known = self._known.get(user_id)
            if known is None or not self._is_far(known, adding):
                return None
            known.storing += adding
            return known

    def _is_far(self, known: _Known, adding: Usage) -> bool:
        if self._clock() - known.counted_at > REMEMBERED_S:
            return False
        there_will_be = known.used + known.storing + adding
        return not (
            _too_many(there_will_be.memories, known.allowed.memories, margin=NEAR_MEMORIES)
            or _too_many(there_will_be.bytes, known.allowed.bytes, margin=NEAR_BYTES)
        )

    def _remember(self, user_id: str, counted: Account) -> None:
        with self._lock:
            # The same object for as long as somebody stores: `storing` goes on.
            known = self._known.setdefault(user_id, _Known(counted.used, counted.allowed, 0.0, Usage()))
            known.used, known.allowed, known.counted_at = counted.used, counted.allowed, self._clock()
            self._known.move_to_end(user_id)
            if len(self._known) > MAX_USERS:
                self._known.popitem(last=False)


def _too_many(used: int, allowed: int, *, margin: int = 0) -> bool:
    """Whether so many are more than are allowed, 0 standing for any number, less a margin."""
    return allowed > 0 and used > allowed - margin


def _require(allowed: Usage, before: Usage, after: Usage) -> None:
    """Raises QuotaExceeded where there is more than allowed of something, and more of it than before."""
    if _too_many(after.memories, allowed.memories) and after.memories > before.memories:
        raise QuotaExceeded(
            f"the user has {before.memories} memories, at most {allowed.memories} are allowed",
            quota="MEMORY_QUOTA_MEMORIES",
        )
    if _too_many(after.bytes, allowed.bytes) and after.bytes > before.bytes:
        raise QuotaExceeded(
            f"the user's memories take {before.bytes} bytes, at most {allowed.bytes} are allowed",
            quota="MEMORY_QUOTA_BYTES",
        )


def quota_of_all(settings: Settings) -> Usage:
    """Returns what users without a quota of their own may store, 0 standing for any number."""
    return Usage(memories=settings.quota_memories, bytes=settings.quota_bytes)


@dataclass(frozen=True, slots=True)
class _UserRoom:
    """One write, as UserQuotas expects it."""

    quotas: UserQuotas
    user_id: str
    adding: Usage

    def enforced(self, conn: Connection, *, now: datetime) -> AbstractContextManager[None]:
        """Surrounds the write itself; see the protocol."""
        return self.quotas.enforce(conn, self.user_id, self.adding, now=now)
