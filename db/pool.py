"""The way to the database: lends a connection to a call, for reading or writing, and cleans up after it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import psycopg
import psycopg_pool
import structlog
from psycopg.sql import SQL, Identifier

from db import session, sqlstate
from db.cancellation import Call, Canceller
from db.connection import Connection
from db.embedding_space import read_space
from db.errors import (
    Conflict,
    DatabaseError,
    DatabaseUnavailable,
    EmbeddingSpaceChanged,
    PoolExhausted,
    StatementTimeout,
)
from db.schema import EmbeddingSpace
from db.wall import ACROSS_USERS, Entrance, Whose, read_roles, settings_of

log = structlog.get_logger(__name__)

T = TypeVar("T")

ATTEMPTS = 3
# A connection unused this long is tried out before it is lent: 46 µs, against 4 µs for one just returned.
IDLE_BEFORE_CHECK_S = 5.0
# Gaps between attempts double until this time has passed, and a healed database looks down meanwhile: for minutes with
# the default of 300 s, for 4 s with 10 s. Now there are two attempts; whoever asks for a connection starts the next.
RECONNECT_TIMEOUT_S = 1.0

# Notice a dead server in seconds: libpq would wait for ever to connect, and TCP for two hours once connected.
CONNECT = {
    "connect_timeout": 3,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    "application_name": "memory-service",
    # Not PGCLIENTENCODING's, nor the role's.
    "client_encoding": "UTF8",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    """How many connections there are, and how long anything may take."""

    min_size: int = 4
    max_size: int = 16
    timeout_s: float = 1.0
    statement_timeout_s: float = 10.0
    slow_query_ms: float = 100.0
    prepared_statements: bool | None = None
    """None: where no pooler lies between. False: as if one did."""
    row_level_security: bool = True
    """Off: whoever is named, statements run as those across users do."""


@dataclass(slots=True)
class _Loans:
    """What all views of a pool count together."""

    lent: int = 0
    callers: int = 0
    """Who hold a connection or wait for one."""
    drained_at: float = 0.0
    """When the idle connections were replaced last, by time.monotonic()."""


class Database:
    """A pool of connections to one database.

    Whoever borrows one says whose rows it is for, which PostgreSQL then holds it to (db/wall.py):

        database.read(call, lambda conn: fetch.fetch(conn, user_id, memory_id, view=view), user_id=user_id)
        database.write(call, lambda conn: delete.purge(conn, now=now, limit=500), user_id=ACROSS_USERS)
    """

    def __init__(self, url: str, options: PoolOptions, *, expected_space: EmbeddingSpace | None = None) -> None:
        self.space = expected_space
        """What the embeddings of further calls are of; a call keeps what it began with. None: any will do."""
        self._options = options
        self._canceller = Canceller()
        self._lock = threading.Lock()
        self._loans = _Loans()
        self._pool = psycopg_pool.ConnectionPool(
            url,
            connection_class=Connection,
            kwargs={
                **CONNECT,
                "autocommit": True,
                "prepare_threshold": 5,
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
        conn.made_at = conn.last_used_at = time.monotonic()
        session.configure(
            conn,
            statement_timeout_s=self._options.statement_timeout_s,
            prepared_statements=self._options.prepared_statements,
        )
        conn.space = read_space(conn)
        conn.roles = read_roles(conn)
        if conn.roles is not None and not self._options.row_level_security and conn.settings is None:
            conn.execute(SQL("SET ROLE {}").format(Identifier(conn.roles.all_users)))

    def open(self, *, timeout_s: float = 30.0) -> None:
        """Opens the pool and waits for its first connection.

        Raises:
            DatabaseUnavailable: When it cannot be made in time.
        """
        self._pool.open()
        gives_up_at = time.monotonic() + timeout_s
        while True:
            try:
                # Not psycopg_pool's `wait`, which starts no attempts when the first ones have failed.
                self._pool.putconn(self._pool.getconn(min(timeout_s, self._options.timeout_s)))
            except psycopg_pool.PoolTimeout:
                if time.monotonic() >= gives_up_at:
                    self._pool.close()
                    raise DatabaseUnavailable("the database cannot be reached") from None
            else:
                return

    def close(self) -> None:
        """Closes the pool; calls under way keep their connections until they end."""
        self._pool.close(timeout=5)
        self._canceller.close()

    def call(self, *, timeout_s: float | None = None) -> Call:
        """Returns a call that may run for `timeout_s` seconds and whose `cancel` reaches the database."""
        return Call(self._canceller, timeout_s=timeout_s, space=self.space)

    def in_space(self, space: EmbeddingSpace) -> Self:
        """Returns a view of the same pool for calls whose embeddings are of `space`; closing it closes the pool."""
        view = copy(self)
        view.space = space
        return view

    def statistics(self) -> dict[str, int]:
        """Returns psycopg_pool's counters; one that is absent is 0."""
        # It counts callers who gave up long ago as waiting.
        return {**self._pool.get_stats(), "requests_waiting": max(0, self._loans.callers - self._loans.lent)}

    def read(self, call: Call, query: Callable[[Connection], T], *, user_id: Whose) -> T:
        """Runs `query` on a connection for this user's rows, again where the connection turns out to be dead.

        Reading twice does no harm, and after a restart of the server the second connection is a new one. That one may
        have been ended as well, by a move to another embedding model right after.

        Raises:
            DatabaseError: One of its subclasses, see `db.errors`.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._run(call, query, user_id)
            except DatabaseUnavailable as error:
                was_lost = isinstance(error.__cause__, psycopg.Error)
                if attempt == ATTEMPTS or call.ended_early() is not None or (attempt > 1 and not was_lost):
                    raise
        raise AssertionError("the last attempt returns or raises")

    def write(self, call: Call, change: Callable[[Connection], T], *, user_id: Whose) -> T:
        """Runs `change` on a connection for this user's rows, up to 3 times where transactions collide (40001, 40P01).

        `change` is one statement, or opens a transaction of its own, so that a failed attempt has left nothing.

        Raises:
            DatabaseError: One of its subclasses, see `db.errors`.
        """
        try:
            for _ in range(ATTEMPTS - 1):
                try:
                    return self._run(call, change, user_id)
                except Conflict as error:
                    if not (isinstance(error.__cause__, psycopg.Error) and sqlstate.retryable(error.__cause__)):
                        raise
            return self._run(call, change, user_id)
        except DatabaseUnavailable:
            self._require_same_space(call, user_id)
            raise

    def _require_same_space(self, call: Call, user_id: Whose) -> None:
        """Tells a connection lost to a move from others, after a change that was lost with it.

        A move ends sessions while it holds the memories: a transaction that changed them has committed before, and has
        said so, or is undone. Whoever then gets EmbeddingSpaceChanged may try the change again.

        Raises:
            EmbeddingSpaceChanged: The database has moved to another embedding space since the call began.
        """
        if call.space is None or call.ended_early() is not None:
            return
        with suppress(DatabaseUnavailable, PoolExhausted, StatementTimeout):
            # Behind a pooler it is `query` that asks for the space, along with the statement.
            self.read(call, lambda conn: conn.query("", {}), user_id=user_id)

    def _run(self, call: Call, work: Callable[[Connection], T], user_id: Whose) -> T:
        with self._connection(call) as conn:
            conn.wall = self._entrance(conn, call, user_id)
            try:
                return self._work(conn, work)
            except psycopg.Error as error:
                if sqlstate.lost_connection(error):
                    self._discard(conn, died=not call.was_cut)
                if isinstance(error, psycopg.errors.DivisionByZero) and conn.wall is not None and conn.wall.space:
                    # No statement of ours divides by zero but `wall.ENTER_IN_SPACE`.
                    raise EmbeddingSpaceChanged(f"embeddings are not of {call.space} any more: try again") from error
                if (translated := sqlstate.translate(error)) is None:
                    raise
                if isinstance(translated, StatementTimeout) or call.was_cut:
                    translated = call.ended_early() or translated
                raise translated from error

    @staticmethod
    def _work(conn: Connection, work: Callable[[Connection], T]) -> T:
        try:
            return work(conn)
        except psycopg.errors.InvalidSqlStatementName:
            # Where a pipeline fails before the statement that it was to prepare, because it was cancelled for example,
            # psycopg 3.3 takes that for prepared ever after. What has failed so has done nothing.
            conn.forget_prepared()
            return work(conn)

    def _entrance(self, conn: Connection, call: Call, user_id: Whose) -> Entrance | None:
        """Returns what transactions begin with; None where the session has all that it needs, a role as well."""
        confined = self._options.row_level_security
        if conn.settings is None:
            return Entrance(settings_of(user_id, conn.roles)) if confined and conn.roles is not None else None
        whose = user_id if confined else ACROSS_USERS
        role = {} if conn.roles is None else settings_of(whose, conn.roles)
        return Entrance({**role, **conn.settings}, call.space)

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
            conn.wall = None
            call.database_s += conn.database_s
            if attached and call.detach():
                _absorb_late_cancel(conn)
            conn.last_used_at = time.monotonic()
            with self._lock:
                self._loans.lent -= 1
                self._loans.callers -= 1
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
            self._require_space(conn, call)
        except BaseException:
            with self._lock:
                self._loans.callers -= 1
            raise
        with self._lock:
            self._loans.lent += 1
        return conn

    def _require_space(self, conn: Connection, call: Call) -> None:
        """Gives the connection back where its database holds other embeddings than the call's (db/embedding_space.py).

        Raises:
            EmbeddingSpaceChanged: Then.
        """
        if call.space is None or conn.settings is not None:
            return
        if conn.space != call.space:
            self._pool.putconn(conn)
            raise EmbeddingSpaceChanged(f"embeddings are of {conn.space} now, not of {call.space}: try again")

    def _enter(self) -> None:
        """Counts a caller in; there may be as many waiting for a connection as there are connections."""
        with self._lock:
            if self._loans.callers >= 2 * self._options.max_size:
                if self._loans.lent == 0:
                    raise DatabaseUnavailable("the database cannot be reached")
                raise PoolExhausted("all database connections are busy and the queue for them is full")
            self._loans.callers += 1

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
        if self._loans.lent >= self._options.max_size:
            return PoolExhausted(f"all {self._options.max_size} database connections stayed busy")
        return DatabaseUnavailable("the database cannot be reached")

    def _discard(self, conn: Connection, *, died: bool = True) -> None:
        """Closes a connection; if it died, replaces the idle ones, which died with it, unless another's death did."""
        conn.close()
        with self._lock:
            if not died or conn.made_at <= self._loans.drained_at:
                return
            self._loans.drained_at = time.monotonic()
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
