"""Stopping what runs for a call: its deadline, its caller's cancellation, and the race between both and the end.

A cancel request that arrives late hits the next query on the same connection (SpiceDB #2294, #2434). So a call
holds its connection under a lock, a cancel in flight delays the call's end, and a connection whose query was
cancelled runs an empty one before anybody else gets it.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import psycopg
import structlog

from db.errors import CallCancelled, StatementTimeout
from db.schema import EmbeddingSpace

log = structlog.get_logger(__name__)

CANCEL_TIMEOUT_S = 2.0
REPEAT_S = 0.25


class Canceller:
    """The threads that send cancel requests: a caller's thread must not wait for the database to accept one.

    One more repeats those that had no effect, and cuts the connection in the end. PgBouncer takes requests for clients
    that still wait for a session, and forgets them (PgBouncer #1222).
    """

    def __init__(self) -> None:
        self._senders = ThreadPoolExecutor(max_workers=2, thread_name_prefix="cancel")
        self._repeater = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cancel-again")
        self._closing = threading.Event()

    def submit(self, call: "Call") -> None:
        """Stops what runs for `call`, soon."""
        with suppress(RuntimeError):  # closed: the pool is gone too
            self._senders.submit(self._send, call, time.monotonic() + CANCEL_TIMEOUT_S)

    def _send(self, call: "Call", cut_at: float) -> None:
        if call.cancel_statement():
            with suppress(RuntimeError):  # likewise
                self._repeater.submit(self._send_again, call, time.monotonic() + REPEAT_S, cut_at)

    def _send_again(self, call: "Call", at: float, cut_at: float) -> None:
        # All wait equally long, and so in the order in which they come.
        if self._closing.wait(at - time.monotonic()):
            return
        if at < cut_at:
            self._send(call, cut_at)
        else:
            call.cut()

    def close(self) -> None:
        """Waits for cancel requests under way."""
        self._senders.shutdown()
        self._closing.set()
        self._repeater.shutdown(cancel_futures=True)


class Call:
    """One caller's request as the database layer sees it: until when it may run, and how it is stopped."""

    def __init__(
        self,
        canceller: Canceller | None = None,
        *,
        timeout_s: float | None = None,
        space: EmbeddingSpace | None = None,
    ) -> None:
        self.space = space
        """What the call's embeddings are of; it gets no connection to a database of another one. None: any will do."""
        self._canceller = canceller
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._lock = threading.Lock()
        self._connection: psycopg.Connection[object] | None = None
        self._cancelled = False
        self._stop: Callable[[], object] | None = None
        self._cancel_sent = False
        self.was_cut = False
        """Whether its connection was cut although the database lives."""
        self.pool_wait_s = 0.0
        """Seconds the call has waited for connections."""
        self.database_s = 0.0
        """Seconds its statements have taken."""

    def remaining_s(self) -> float | None:
        """Returns the seconds left, at least 0, or None where there is no deadline."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def cancel(self) -> None:
        """Stops the call's current and further statements. Never blocks; may be called from any thread, at any time."""
        self._cancelled = True
        if (stop := self._stop) is not None:
            stop()
        if self._connection is not None and self._canceller is not None:
            self._canceller.submit(self)

    @contextmanager
    def stopping(self, stop: Callable[[], object]) -> Iterator[None]:
        """Lets `cancel` reach, through `stop`, what runs for the call elsewhere than in the database.

        `stop` must not block, and may be called more than once.
        """
        self._stop = stop
        try:
            if self._cancelled:  # before `stop` was known
                stop()
            yield
        finally:
            self._stop = None

    def ended_early(self) -> StatementTimeout | CallCancelled | None:
        """Returns why the call may not go on: its deadline has passed or it was cancelled."""
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return StatementTimeout("the deadline passed")
        if self._cancelled:
            return CallCancelled("the caller cancelled")
        return None

    def attach(self, connection: psycopg.Connection[object]) -> None:
        """Lets `cancel` reach what runs on this connection.

        Raises:
            StatementTimeout: When the deadline has passed.
            CallCancelled: When the call was cancelled.
        """
        with self._lock:
            # Before the check: a `cancel` in between finds either the connection or its own mark noticed.
            self._connection = connection
            self._cancel_sent = False
            if (error := self.ended_early()) is not None:
                self._connection = None
                raise error

    def detach(self) -> bool:
        """Ends what `attach` began, waiting for a cancel in flight; returns whether one was sent."""
        with self._lock:
            self._connection = None
            return self._cancel_sent

    def cancel_statement(self) -> bool:
        """Asks the database to stop this call's statement; returns whether it has taken the request.

        Where it does not answer, the connection is cut.
        """
        with self._lock:
            connection = self._connection
            if connection is None or connection.closed:
                return False
            self._cancel_sent = True
            try:
                connection.cancel_safe(timeout=CANCEL_TIMEOUT_S)
            except psycopg.Error:
                _cut(connection)  # a paused or unreachable server
                return False
            return True

    def cut(self) -> None:
        """Cuts the connection of a call that goes on although its cancel requests were taken."""
        with self._lock:
            if (connection := self._connection) is not None and not connection.closed:
                self.was_cut = True
                _cut(connection)


def _cut(connection: psycopg.Connection[object]) -> None:
    """Wakes the thread that waits for the connection, when that is the only way left to stop its call."""
    log.warning("cancel_failed_connection_cut")
    # Through a duplicate: the descriptor stays libpq's to close.
    with socket.socket(fileno=os.dup(connection.fileno())) as duplicate, suppress(OSError):
        duplicate.shutdown(socket.SHUT_RDWR)
