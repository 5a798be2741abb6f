"""A database connection as the service uses it: binary results, timed statements, settings of its own."""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, LiteralString

import psycopg
import structlog
from psycopg import Cursor, Transaction
from psycopg.rows import TupleRow

from db.cancellation import Call
from db.schema import EmbeddingSpace
from db.wall import ACROSS_USERS, AS_SESSION, Entrance, Roles, Settings, enter, literal_settings, settings_of

log = structlog.get_logger(__name__)

# Text of a statement. bytes: composed through psycopg.sql and kept, see db/filters.py.
Statement = LiteralString | bytes

NO_SETTINGS: Settings = {}

# Each connection keeps the texts of 200 statements that are prepared or may be, and PostgreSQL the plans of half of
# them: no place for the texts of long filters, up to 120 KB.
MAX_PREPARED_BYTES = 8_192

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
    wall: Entrance | None = None
    """How transactions begin, whose rows they see; None: with what the session itself has and may see."""
    settings: Settings | None = None
    """What each transaction takes along where a pooler gives it any session; None: the session has been set up."""
    _kept_cursor: Cursor[TupleRow] | None = None
    _wall_cursor: Cursor[TupleRow] | None = None
    _in_transaction = False

    def query(
        self, statement: Statement, parameters: Mapping[str, Any], *, settings: Settings = NO_SETTINGS
    ) -> Cursor[TupleRow]:
        """Runs one statement, which begins with its name: /* area.name */.

        With `settings` of PostgreSQL, which end with the transaction.

        Raises:
            StatementTimeout: When the call's deadline has passed.
            CallCancelled: When the call was cancelled.
        """
        self._require_call_goes_on()
        cursor = self.cursor(binary=True)
        started_at = time.perf_counter()
        try:
            self._execute(cursor, statement, parameters, settings)
            return cursor
        finally:
            self._finished(statement, time.perf_counter() - started_at)

    def rows(
        self, statement: Statement, parameters: Mapping[str, Any], *, settings: Settings = NO_SETTINGS
    ) -> list[TupleRow]:
        """Returns the rows of a statement that is run again and again, as `query` does.

        Its cursor is kept: where the next statement is the same object, psycopg goes on with the dumpers and loaders
        that it has looked up, a quarter of the 150 µs that it takes for ten memories.
        """
        self._require_call_goes_on()
        if self._kept_cursor is None:
            self._kept_cursor = self.cursor(binary=True)
        started_at = time.perf_counter()
        try:
            self._execute(self._kept_cursor, statement, parameters, settings)
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
            self._execute(self.cursor(), statement, parameters, NO_SETTINGS)
        finally:
            self.database_s += time.perf_counter() - started_at

    def _execute(
        self, cursor: Cursor[TupleRow], statement: Statement, parameters: Mapping[str, Any], settings: Settings
    ) -> None:
        """Runs a statement behind the wall: by itself in one round trip, which is one transaction."""
        prepare = None if len(statement) <= MAX_PREPARED_BYTES else False
        if self._in_transaction or (self.wall is None and not settings):
            self.set_locally(settings)
            cursor.execute(statement, parameters, prepare=prepare)
            return
        with self._pipelined_transaction() if self._on_citus else self.pipeline():
            self._enter(_beginning(self.wall, settings))
            cursor.execute(statement, parameters, prepare=prepare)

    def set_locally(self, settings: Settings) -> None:
        """Makes settings of PostgreSQL until the transaction ends, in which this has to be."""
        if settings:
            self._enter(Entrance(settings))

    @property
    def _on_citus(self) -> bool:
        return self.roles is not None and self.roles.on_citus

    def _enter(self, entrance: Entrance) -> None:
        if self._wall_cursor is None:
            self._wall_cursor = self.cursor()
        if self._on_citus:
            for command in literal_settings(entrance.settings):
                self._wall_cursor.execute(command)
            if entrance.space is None:
                return
        self._wall_cursor.execute(*enter(entrance))

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
                self._enter(self.wall)
            entered.enter_context(self._within_transaction())
            yield transaction

    @contextmanager
    def _pipelined_transaction(self) -> Iterator[None]:
        with self.pipeline(), super().transaction():
            yield

    @contextmanager
    def as_session(self) -> Iterator[None]:
        """Runs statements as the role that logged in, for what PostgreSQL tells only to it: how its builds get on.

        They see no rows of users, unless that role is a superuser.
        """
        with self._behind(NO_SETTINGS if self.roles is None else AS_SESSION):
            yield

    @contextmanager
    def across_users(self) -> Iterator[None]:
        """Runs statements of a call for one user across users: those that cannot find anything fast behind the wall.

        They must not return what is in rows. In a transaction it changes nothing: that has its role.
        """
        if self.wall is None or self.roles is None:
            yield
            return
        with self._behind(settings_of(ACROSS_USERS, self.roles)):
            yield

    @contextmanager
    def _behind(self, settings: Settings) -> Iterator[None]:
        before = self.wall
        if settings:
            self.wall = _beginning(before, settings)
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

    def forget_prepared(self) -> None:
        """Lets statements be prepared anew, whatever psycopg takes for prepared: it notices this command."""
        self.execute("DEALLOCATE ALL")

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


def _beginning(wall: Entrance | None, settings: Settings) -> Entrance:
    """Returns how a transaction begins with further settings, which override those of the wall."""
    if wall is None:
        return Entrance(settings)
    return replace(wall, settings={**wall.settings, **settings}) if settings else wall


class EncodedArray(bytes):
    """An array in PostgreSQL's binary form, sent as it is; the statement has to cast it to its type."""


def name_of(statement: Statement) -> str:
    """Returns the name in a statement's leading comment."""
    text = statement.decode() if isinstance(statement, bytes) else statement
    match = _NAME.match(text.lstrip())
    return match[1] if match else "unnamed"
