"""How far a move to another embedding model is: counted aside once somebody has asked, and remembered for a while."""

import time
from collections.abc import Callable

import structlog

from db import reembedding
from db.cancellation import Call
from db.errors import ReembeddingConflict
from db.periodic import PeriodicThread
from db.pool import Database
from db.reembedding import Progress
from db.wall import ACROSS_USERS

log = structlog.get_logger(__name__)

REMEMBERED_S = 5.0
# Counting reads every memory, seconds for some millions: so much of the time at most.
MAX_SHARE = 0.05
# Nobody asks, nobody counts.
NEVER_S = 86_400.0


class BackfillCount:
    """Remembers the last count. Safe to use from many threads."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Prepares to count; `clock` returns seconds."""
        self._database = database
        self._clock = clock
        self._latest: Progress | None = None
        self._good_until = 0.0
        self._call: Call | None = None
        self._closing = False
        self._thread = PeriodicThread("backfill-count", self._count, interval_s=NEVER_S)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self) -> None:
        """Ends it, cancelling a count under way."""
        self._closing = True
        if self._call is not None:
            self._call.cancel()
        self._thread.close()

    def latest(self) -> Progress | None:
        """Returns the last count, and has a new one made soon if that is old; None before the first. Never blocks."""
        if self._clock() >= self._good_until:
            self._thread.wake()
        return self._latest

    def _count(self) -> None:
        started_at = self._clock()
        if started_at < self._good_until:
            return
        call = self._call = self._database.call()
        if self._closing:  # `close` may have found the call before
            return
        try:
            self._latest = self._database.read(call, reembedding.progress, user_id=ACROSS_USERS)
        except ReembeddingConflict:  # none is under way any more
            self._latest = None
        now = self._clock()
        self._good_until = now + max(REMEMBERED_S, (now - started_at) / MAX_SHARE)
