"""Which stack serves calls: one after the other takes over, each time the database has moved to another space."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from db.embedding_space import read_space
from db.errors import EmbeddingSpaceChanged
from db.periodic import PeriodicThread
from db.pool import Database
from db.wall import ACROSS_USERS
from memory_service.stack import Stack

log = structlog.get_logger(__name__)

# How often the database is looked at without a call having met another space: the embedding queue has to follow, too.
LOOK_EVERY_S = 1.0
LOOK_TIMEOUT_S = 1.0
# How long a call waits for the next stack: the local model loads in 0.2 s.
PATIENCE_S = 10.0
RETIRE_LOOK_S = 1.0


class Succession:
    """Lends the current stack to calls, and opens the next one when the database is in another space.

    A stack is closed when the last call that began on it has ended. Safe to use from many threads.
    """

    def __init__(self, database: Database, open_stack: Callable[[], Stack]) -> None:
        """Opens the first stack; `open_stack` opens one for the space that the database is in at the time."""
        self._database = database
        self._open_stack = open_stack
        self._current = open_stack()
        self._lock = threading.Lock()
        """Held to read or change which stack is the current one, for a moment."""
        self._following = threading.Lock()
        """Held while the next stack is opened."""
        self._closing = threading.Event()
        self._retiring: set[threading.Thread] = set()
        self._watch = PeriodicThread("embedding-space", self._look, interval_s=LOOK_EVERY_S)

    def start(self) -> None:
        """Begins to watch the database."""
        self._watch.start()

    def close(self) -> None:
        """Ends watching, and closes what is open."""
        self._closing.set()
        self._watch.close()
        for thread in list(self._retiring):
            thread.join()
        self._current.close()

    @contextmanager
    def lend(self) -> Iterator[Stack]:
        """Yields the current stack, which stays open meanwhile."""
        with self._lock:  # or it could be closed before the call is counted
            stack = self._current
            stack.calls.__enter__()
        try:
            yield stack
        finally:
            stack.calls.__exit__(None, None, None)

    def follow(self, met: Stack, *, timeout_s: float | None) -> None:
        """Returns when another stack than `met` is the current one, or the database turns out not to have moved.

        Raises:
            EmbeddingSpaceChanged: The next stack is not open in time.
            DatabaseError: The database failed.
        """
        patience_s = PATIENCE_S if timeout_s is None else min(timeout_s, PATIENCE_S)
        if not self._following.acquire(timeout=patience_s):
            raise EmbeddingSpaceChanged("the server is still moving to another embedding model: try again")
        try:
            if self._current is met:
                self._succeed()
        finally:
            self._following.release()

    def _look(self) -> None:
        met = self._current
        if self._has_moved_from(met):
            self.follow(met, timeout_s=None)

    def _has_moved_from(self, stack: Stack) -> bool:
        space = self._database.read(self._database.call(timeout_s=LOOK_TIMEOUT_S), read_space, user_id=ACROSS_USERS)
        return space is not None and space != stack.space

    def _succeed(self) -> None:
        former = self._current
        if not self._has_moved_from(former):
            return
        following = self._open_stack()
        with self._lock:
            self._current = following
        log.info("embedding_space_followed", former=str(former.space), now=str(following.space))
        thread = threading.Thread(target=self._retire, args=(former,), name="embedding-space-former")
        self._retiring.add(thread)
        thread.start()

    def _retire(self, former: Stack) -> None:
        """Ends a stack's work, and closes it when its calls have ended; at once when the process ends."""
        former.end_work()
        while not former.calls.wait_for_none(timeout_s=RETIRE_LOOK_S) and not self._closing.is_set():
            pass
        former.close()
        self._retiring.discard(threading.current_thread())
