"""A connection for building and dropping indexes: patient with statements, impatient with locks, and cancellable."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from types import TracebackType
from typing import Any, Self, TypeVar

import psycopg
import structlog
from psycopg import errors as pg
from psycopg.sql import SQL, Composed

from db import sqlstate
from db.connecting import describe_failure, require_session
from db.connection import Connection
from db.errors import Conflict, DatabaseUnavailable, SchemaMismatch
from db.pool import CONNECT
from db.wall import Entrance, Whose, read_roles, settings_of

log = structlog.get_logger(__name__)

LOCK_TIMEOUT_S = 10
CANCEL_TIMEOUT_S = 2.0

OPTIONS: dict[str, Any] = {**CONNECT, "application_name": "memory-service index"}

T = TypeVar("T")


class AnnLock(Enum):
    """The session's locks, each held by one session of the database at most and free once that has ended."""

    LEADER = 1
    """Held as long as a process maintains the indexes."""
    WORK = 2
    """Held while indexes are built or dropped, by the leader or by a command."""


# Polled, not waited for, as migrations do: a session waiting in a statement holds a snapshot, for whose end a
# concurrent build waits. "memo" in ASCII, and the number of the lock.
TRY_LOCK = "/* ann_session.lock */ SELECT pg_try_advisory_lock(x'6d656d6f'::int, %(lock)s)"
UNLOCK = "/* ann_session.unlock */ SELECT pg_advisory_unlock(x'6d656d6f'::int, %(lock)s)"

# Limits on time set for the role are not meant for builds. transaction_timeout is new in PostgreSQL 17.
UNLIMITED = """/* ann_session.unlimited */
SELECT set_config(name, '0', false) FROM pg_settings
WHERE name IN (
    'statement_timeout', 'transaction_timeout', 'idle_session_timeout', 'idle_in_transaction_session_timeout'
)
"""


class AnnSession:
    """One connection, not through a transaction pooler: locks and settings belong to the session."""

    def __init__(self, url: str, *, build_memory_mb: int | None = None) -> None:
        """Connects.

        Raises:
            DatabaseUnavailable: With the reason for the operator.
            UnsupportedDatabase: A pooler lies between.
        """
        try:
            self._connection = Connection.connect(url, autocommit=True, prepare_threshold=None, **OPTIONS)
        except psycopg.Error as error:
            raise DatabaseUnavailable(describe_failure(url, error)) from None
        self._connection.slow_query_ms = float("inf")  # building is slow
        self._connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED  # as in db/session.py
        self._connection.add_notice_handler(_report)
        try:
            self._prepare(build_memory_mb)
        except BaseException:
            self.close()
            raise

    def _prepare(self, build_memory_mb: int | None) -> None:
        self.query(require_session)
        self._connection.roles = self.query(read_roles)
        self.query(lambda conn: conn.query(UNLIMITED, {}))
        self.run(SQL("SET lock_timeout = {}").format(f"{LOCK_TIMEOUT_S}s"))
        if build_memory_mb is not None:
            self.run(SQL("SET maintenance_work_mem = {}").format(f"{build_memory_mb}MB"))

    def run(self, command: SQL | Composed) -> None:
        """Runs a command that returns nothing.

        Raises:
            Conflict: Other transactions were in the way for LOCK_TIMEOUT_S.
            SchemaMismatch: The role may not do this.
            DatabaseError: What else `db.sqlstate` knows: cancelled, disk full, connection lost ...
        """
        with _translated():
            self._connection.execute(command)

    def query(self, query: Callable[[Connection], T], *, user_id: Whose | None = None) -> T:
        """Runs `query` on the connection; raises what `run` does.

        Without `user_id` as the role that logged in: the owner of the tables, who may change them and sees no rows of
        users. See `Database.read` for the others.
        """
        conn = self._connection
        with _translated():
            conn.wall = None if user_id is None or conn.roles is None else Entrance(settings_of(user_id, conn.roles))
            try:
                return query(conn)
            finally:
                conn.wall = None

    def try_lock(self, lock: AnnLock) -> bool:
        """Takes the lock if nobody else has it; taken twice, it has to be given back twice."""
        row = self.query(lambda conn: conn.query(TRY_LOCK, {"lock": lock.value}).fetchone())
        return row is not None and bool(row[0])

    def unlock(self, lock: AnnLock) -> None:
        """Gives the lock back."""
        self.query(lambda conn: conn.query(UNLOCK, {"lock": lock.value}))

    def cancel(self) -> None:
        """Stops what runs at the moment; for other threads."""
        try:
            self._connection.cancel_safe(timeout=CANCEL_TIMEOUT_S)
        except psycopg.Error as error:
            log.info("ann_cancel_failed", error=type(error).__name__)

    @property
    def closed(self) -> bool:
        """Whether the connection is closed, or was found broken."""
        return self._connection.closed

    def close(self) -> None:
        """Closes the connection, which frees the locks."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except pg.LockNotAvailable as error:
        raise Conflict(f"other transactions were in the way for {LOCK_TIMEOUT_S} s") from error
    except pg.DuplicateTable as error:
        raise Conflict("the name is taken by another table or index") from error
    except pg.InsufficientPrivilege as error:
        raise SchemaMismatch(
            "the database role may not change indexes: it has to own the table memory_entries"
        ) from error
    except psycopg.Error as error:
        if (translated := sqlstate.translate(error)) is None:
            raise
        raise translated from error


def _report(notice: psycopg.errors.Diagnostic) -> None:
    # "hnsw graph no longer fits into maintenance_work_mem after 12345 tuples": the rest takes ten times as long.
    message = notice.message_primary or ""
    if "maintenance_work_mem" in message:
        log.warning("ann_build_lacks_memory", message=message, hint="raise MEMORY_ANN_BUILD_MEMORY_MB")
