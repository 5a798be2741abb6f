"""The way to the database: lends a connection to a call, for reading or writing, and cleans up after it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg
import psycopg_pool
import structlog

from db import connection, sqlstate
from db.cancellation import Call, Canceller
from db.connection import Connection
from db.errors import Conflict, DatabaseError, DatabaseUnavailable, PoolExhausted, StatementTimeout

log = structlog.get_logger(__name__)

T = TypeVar("T")

ATTEMPTS = 3
# A connection unused this long is tried out before it is lent: 46 µs, against 4 µs for one just returned.
IDLE_BEFORE_CHECK_S = 5.0
# With the default of 300 s the gaps between attempts grow to minutes, and a healed database looks down. Whoever asks
# for a connection starts the next attempts.
RECONNECT_TIMEOUT_S = 10.0

# Notice a dead server in seconds: libpq would wait for ever to connect, and TCP for two hours once connected.
CONNECT = {
    "connect_timeout": 3,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    "application_name": "memory-service",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    """How many connections there are, and how long anything may take."""

    min_size: int = 4
    max_size: int = 16
    timeout_s: float = 1.0
    statement_timeout_s: float = 10.0
    slow_query_ms: float = 100.0
    prepared_statements: bool = True


class Database:
    """A pool of connections to one database."""

    def __init__(self, url: str, options: PoolOptions) -> None:
        self._options = options
        self._canceller = Canceller()
        self._lock = threading.Lock()
        self._lent = 0
        self._callers = 0  # who hold a connection or wait for one
        self._drained_at = 0.0
        self._pool = psycopg_pool.ConnectionPool(
            url,
            connection_class=Connection,
            kwargs={
                **CONNECT,
                "autocommit": True,
                "prepare_threshold": 5 if options.prepared_statements else None,
            },
            min_size=options.min_size,
            max_size=options.max_size,
            timeout=options.timeout_s,
            # `_enter` bounds the queue: psycopg_pool 3.3 counts callers who gave up long ago as waiting, and once
            # `max_waiting` is full of them it refuses everybody and never tries to connect again.
            max_waiting=0,
            max_lifetime=1_800,
            max_idle=300,
            reconnect_timeout=RECONNECT_TIMEOUT_S,
            configure=self._configure,
            name="memory",
            open=False,
        )

    def _configure(self, conn: Connection) -> None:
        conn.slow_query_ms = self._options.slow_query_ms
        conn.last_used_at = time.monotonic()
        connection.configure(
            conn,
            statement_timeout_s=self._options.statement_timeout_s,
            session_settings=self._options.prepared_statements,
        )

    def open(self, *, timeout_s: float = 30.0) -> None:
        """Opens the pool and waits for its first connections.

        Raises:
            DatabaseUnavailable: When they cannot be made in time.
        """
        self._pool.open()
        try:
            self._pool.wait(timeout_s)
        except psycopg_pool.PoolTimeout:
            raise DatabaseUnavailable("the database cannot be reached") from None

    def close(self) -> None:
        """Closes the pool; calls under way keep their connections until they end."""
        self._pool.close(timeout=5)
        self._canceller.close()

    def call(self, *, timeout_s: float | None = None) -> Call:
        """Returns a call that may run for `timeout_s` seconds and whose `cancel` reaches the database."""
        return Call(self._canceller, timeout_s=timeout_s)

    def statistics(self) -> dict[str, int]:
        """Returns psycopg_pool's counters; one that is absent is 0."""
        # It counts callers who gave up long ago as waiting.
        return {**self._pool.get_stats(), "requests_waiting": max(0, self._callers - self._lent)}

    def read(self, call: Call, query: Callable[[Connection], T]) -> T:
        """Runs `query` on a connection, once more where the connection turns out to be dead.

        Raises:
            DatabaseError: One of its subclasses, see `db.errors`.
        """
        try:
            return self._run(call, query)
        except DatabaseUnavailable:
            # Reading twice does no harm, and after a restart of the server the second connection is a new one.
            if call.ended_early() is not None:
                raise
            return self._run(call, query)

    def write(self, call: Call, change: Callable[[Connection], T]) -> T:
        """Runs `change` on a connection, up to 3 times where transactions collide (40001, 40P01).

        `change` is one statement, or opens a transaction of its own, so that a failed attempt has left nothing.

        Raises:
            DatabaseError: One of its subclasses, see `db.errors`.
        """
        for _ in range(ATTEMPTS - 1):
            try:
                return self._run(call, change)
            except Conflict as error:
                if not (isinstance(error.__cause__, psycopg.Error) and sqlstate.retryable(error.__cause__)):
                    raise
        return self._run(call, change)

    def _run(self, call: Call, work: Callable[[Connection], T]) -> T:
        with self._connection(call) as conn:
            try:
                return work(conn)
            except psycopg.Error as error:
                if sqlstate.lost_connection(error):
                    self._discard(conn)
                if (translated := sqlstate.translate(error)) is None:
                    raise
                if isinstance(translated, StatementTimeout):
                    translated = call.ended_early() or translated
                raise translated from error

    @contextmanager
    def _connection(self, call: Call) -> Iterator[Connection]:
        started_at = time.perf_counter()
        conn = self._take(call)
        call.pool_wait_s += time.perf_counter() - started_at
        conn.database_s = 0.0
        attached = False
        try:
            call.attach(conn)
            attached = True
            conn.call = call
            yield conn
        finally:
            conn.call = None
            call.database_s += conn.database_s
            if attached and call.detach():
                _absorb_late_cancel(conn)
            conn.last_used_at = time.monotonic()
            with self._lock:
                self._lent -= 1
                self._callers -= 1
            self._pool.putconn(conn)

    def _take(self, call: Call) -> Connection:
        self._enter()
        try:
            conn = self._borrow(call)
            # Not psycopg_pool's `check`: it tries connections out one a second, and those of a restarted server died
            # together.
            while _died_idle(conn):
                self._discard(conn)
                self._pool.putconn(conn)
                conn = self._borrow(call)
        except BaseException:
            with self._lock:
                self._callers -= 1
            raise
        with self._lock:
            self._lent += 1
        return conn

    def _enter(self) -> None:
        """Counts a caller in; there may be as many waiting for a connection as there are connections."""
        with self._lock:
            if self._callers >= 2 * self._options.max_size:
                if self._lent == 0:
                    raise DatabaseUnavailable("the database cannot be reached")
                raise PoolExhausted("all database connections are busy and the queue for them is full")
            self._callers += 1

    def _borrow(self, call: Call) -> Connection:
        if (error := call.ended_early()) is not None:
            raise error
        remaining_s = call.remaining_s()
        timeout_s = self._options.timeout_s if remaining_s is None else min(self._options.timeout_s, remaining_s)
        try:
            return self._pool.getconn(timeout_s)
        except psycopg_pool.PoolTimeout as error:
            raise call.ended_early() or self._why_none_was_free() from error
        except psycopg_pool.PoolClosed as error:
            raise DatabaseUnavailable("the server is shutting down") from error

    def _why_none_was_free(self) -> DatabaseError:
        # A pool that cannot connect times out as well; the difference is whether its connections are in use.
        if self._lent >= self._options.max_size:
            return PoolExhausted(f"all {self._options.max_size} database connections stayed busy")
        return DatabaseUnavailable("the database cannot be reached")

    def _discard(self, conn: Connection) -> None:
        """Closes a dead connection and, once a second at most, replaces the idle ones: they died with it."""
        conn.close()
        now = time.monotonic()
        with self._lock:
            if now - self._drained_at < 1.0:
                return
            self._drained_at = now
        log.warning("database_connection_lost")
        self._pool.drain()


def _died_idle(conn: Connection) -> bool:
    if time.monotonic() - conn.last_used_at <= IDLE_BEFORE_CHECK_S:
        return False
    try:
        conn.execute("")
    except psycopg.Error:
        return True
    return False


def _absorb_late_cancel(conn: psycopg.Connection[Any]) -> None:
    """Runs an empty statement, for a cancel request that outlived its query to hit, and rolls back."""
    if conn.closed:
        return
    try:
        conn.execute("")
    except psycopg.errors.QueryCanceled:
        return
    except psycopg.Error:
        conn.close()
