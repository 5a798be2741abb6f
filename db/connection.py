"""A database connection as the service uses it: binary results, timed statements, settings of its own."""

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, LiteralString

import psycopg
import structlog
from pgvector.psycopg import register_vector
from psycopg import Cursor, Transaction
from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.rows import TupleRow
from psycopg.sql import SQL
from psycopg.types.json import set_json_loads

from db.cancellation import Call
from db.schema import EmbeddingSpace
from db.wall import (
    ACROSS_USERS,
    AS_SESSION,
    ENTER,
    ENTER_IN_SPACE,
    ENTER_TIMED,
    SPACE,
    Roles,
    literal_settings,
    settings_of,
    timeouts,
)

log = structlog.get_logger(__name__)

# Text of a statement. bytes: composed through psycopg.sql and kept, see db/filters.py.
Statement = LiteralString | bytes

MAX_EXACT_INTEGER = 2**53

_NAME = re.compile(r"/\*\s*(\S+)\s*\*/")


class Connection(psycopg.Connection[TupleRow]):
    """A psycopg connection that reads results in binary (14 times faster for vectors) and reports slow statements."""

    slow_query_ms = 100.0
    made_at = 0.0
    """time.monotonic() of its beginning."""
    last_used_at = 0.0
    """time.monotonic() of the end of its last use."""
    space: EmbeddingSpace | None = None
    """What the database's embeddings are of, as read when the connection was made (db/embedding_space.py)."""
    database_s = 0.0
    """Seconds spent in statements since a call took the connection."""
    call: Call | None = None
    """Whose statements run; none follows once it was cancelled or its deadline has passed."""
    roles: Roles | None = None
    """The database's roles for row-level security, as read when the connection was made."""
    wall: Mapping[str, str] | None = None
    """Whose rows statements see, from `db.wall.settings_of`; None: what the session itself may see."""
    timeouts: Mapping[str, str] | None = None
    """Time limits that each transaction takes along, from `db.wall.timeouts`; None: the session has them."""
    _kept_cursor: Cursor[TupleRow] | None = None
    _wall_cursor: Cursor[TupleRow] | None = None
    _in_transaction = False

    def query(self, statement: Statement, parameters: Mapping[str, Any]) -> Cursor[TupleRow]:
        """Runs one statement, which begins with its name: /* area.name */.

        Raises:
            StatementTimeout: When the call's deadline has passed.
            CallCancelled: When the call was cancelled.
        """
        self._require_call_goes_on()
        cursor = self.cursor(binary=True)
        started_at = time.perf_counter()
        try:
            self._execute(cursor, statement, parameters)
            return cursor
        finally:
            self._finished(statement, time.perf_counter() - started_at)

    def rows(self, statement: Statement, parameters: Mapping[str, Any]) -> list[TupleRow]:
        """Returns the rows of a statement that is run again and again; raises what `query` does.

        Its cursor is kept: where the next statement is the same object, psycopg goes on with the dumpers and loaders
        that it has looked up, a quarter of the 150 µs that it takes for ten memories.
        """
        self._require_call_goes_on()
        if self._kept_cursor is None:
            self._kept_cursor = self.cursor(binary=True)
        started_at = time.perf_counter()
        try:
            self._execute(self._kept_cursor, statement, parameters)
            return self._kept_cursor.fetchall()
        finally:
            self._finished(statement, time.perf_counter() - started_at)

    def bulk(self, statement: Statement, parameters: Mapping[str, Any]) -> None:
        """Runs a statement over as many rows as a caller sent; raises what `query` does.

        It is never reported as slow: it takes as long as there are rows.
        """
        self._require_call_goes_on()
        started_at = time.perf_counter()
        try:
            self._execute(self.cursor(), statement, parameters)
        finally:
            self.database_s += time.perf_counter() - started_at

    def _execute(self, cursor: Cursor[TupleRow], statement: Statement, parameters: Mapping[str, Any]) -> None:
        """Runs a statement behind the wall: by itself in one round trip, which is one transaction."""
        if self.wall is None or self._in_transaction:
            cursor.execute(statement, parameters)
            return
        if self._on_citus:
            with self.pipelined_transaction():
                cursor.execute(statement, parameters)
            return
        with self.pipeline():
            self._enter_wall(self.wall)
            cursor.execute(statement, parameters)

    @property
    def _on_citus(self) -> bool:
        return self.roles is not None and self.roles.on_citus

    def _enter_wall(self, wall: Mapping[str, str]) -> None:
        if self._wall_cursor is None:
            self._wall_cursor = self.cursor()
        if self._on_citus:
            for command in literal_settings(wall):
                self._wall_cursor.execute(command)
        elif self.timeouts is None:
            self._wall_cursor.execute(ENTER, wall)
        if self.timeouts is not None:
            self._wall_cursor.execute(ENTER_IN_SPACE if "model" in wall else ENTER_TIMED, {**wall, **self.timeouts})

    @contextmanager
    def transaction(self, savepoint_name: str | None = None, force_rollback: bool = False) -> Iterator[Transaction]:  # noqa: FBT001, FBT002 - psycopg's own
        """Begins a transaction behind the wall, in one round trip; within another one, a savepoint."""
        if self.wall is None or self._in_transaction:
            with super().transaction(savepoint_name, force_rollback) as transaction:
                yield transaction
            return
        with ExitStack() as entered:
            with self.pipeline():
                # Of psycopg's own method the whole transaction would be a pipeline, and errors would come late.
                transaction = entered.enter_context(Transaction(self, savepoint_name, force_rollback))
                self._enter_wall(self.wall)
            entered.enter_context(self._within_transaction())
            yield transaction

    @contextmanager
    def pipelined_transaction(self) -> Iterator[None]:
        """Begins a transaction whose statements are sent without waiting for each: what they return is fetched last."""
        with self.pipeline(), super().transaction():
            if self.wall is not None:
                self._enter_wall(self.wall)
            with self._within_transaction():
                yield

    @contextmanager
    def as_session(self) -> Iterator[None]:
        """Runs statements as the role that logged in, for what PostgreSQL tells only to it: how its builds get on.

        They see no rows of users, unless that role is a superuser.
        """
        with self._behind(None if self.roles is None else AS_SESSION):
            yield

    @contextmanager
    def across_users(self) -> Iterator[None]:
        """Runs statements of a call for one user across users: those that cannot find anything fast behind the wall.

        They must not return what is in rows. In a transaction it changes nothing: that has its role.
        """
        if self.wall is None or self.roles is None:
            yield
            return
        space = {name: value for name, value in self.wall.items() if name in SPACE}
        with self._behind({**settings_of(ACROSS_USERS, self.roles), **space}):
            yield

    @contextmanager
    def _behind(self, wall: Mapping[str, str] | None) -> Iterator[None]:
        before, self.wall = self.wall, wall
        try:
            yield
        finally:
            self.wall = before

    @contextmanager
    def _within_transaction(self) -> Iterator[None]:
        self._in_transaction = True
        try:
            yield
        finally:
            self._in_transaction = False

    @property
    def halfvec_oid(self) -> int:
        """The number of pgvector's type halfvec, which differs between databases."""
        info = self.adapters.types.get("halfvec")
        assert info is not None  # noqa: S101 - registered by `configure`
        return info.oid

    def _require_call_goes_on(self) -> None:
        # A cancel request stops what runs when it arrives; between two statements of a transaction it hits nothing.
        if self.call is not None and (error := self.call.ended_early()) is not None:
            raise error

    def _finished(self, statement: Statement, duration_s: float) -> None:
        self.database_s += duration_s
        if duration_s * 1_000 > self.slow_query_ms:
            log.warning("slow_query", statement=name_of(statement), duration_ms=round(duration_s * 1_000, 1))


class EncodedArray(bytes):
    """An array in PostgreSQL's binary form, sent as it is; the statement has to cast it to its type."""


class _EncodedArrayDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: EncodedArray) -> EncodedArray:
        return obj


def name_of(statement: Statement) -> str:
    """Returns the name in a statement's leading comment."""
    text = statement.decode() if isinstance(statement, bytes) else statement
    match = _NAME.match(text.lstrip())
    return match[1] if match else "unnamed"


def configure(connection: Connection, *, statement_timeout_s: float, session_settings: bool) -> None:
    """Prepares a new connection; `session_settings` is off behind a transaction pooler, where they would leak."""
    if session_settings:
        timeout_ms = round(statement_timeout_s * 1_000)
        for setting in (
            SQL("SET statement_timeout = {}").format(timeout_ms),
            SQL("SET lock_timeout = {}").format(timeout_ms),
            # A handler that hangs inside a transaction must not hold its locks for ever.
            SQL("SET idle_in_transaction_session_timeout = {}").format(2 * timeout_ms),
            SQL("SET TimeZone = 'UTC'"),
            # Before its first ANALYZE a table looks tiny, and reading all of it for each candidate looks cheap: 40 ms
            # for 1,500 memories against 3. Every statement here has an index to use.
            SQL("SET enable_seqscan = off"),
            # Compiling a statement of a millisecond takes longer than running it.
            SQL("SET jit = off"),
        ):
            connection.execute(setting)
    else:
        connection.timeouts = timeouts(statement_timeout_s)
    register_vector(connection)
    connection.adapters.register_dumper(EncodedArray, _EncodedArrayDumper)
    set_json_loads(_read_json, connection)


def _number(digits: str) -> int | float:
    # jsonb writes 1e308 as an integer of 309 digits; beyond 2^53 it is the double that was stored.
    number = int(digits)
    return number if abs(number) <= MAX_EXACT_INTEGER else float(number)


_JSON = json.JSONDecoder(parse_int=_number)


def _read_json(data: str | bytes) -> Any:
    # PostgreSQL writes no white space around it, for which `decode` would look.
    value, _ = _JSON.raw_decode(data if isinstance(data, str) else data.decode())
    return value
