"""A database connection as the service uses it: binary results, timed statements, settings of its own."""

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, LiteralString

import psycopg
import structlog
from pgvector.psycopg import register_vector
from psycopg import Cursor
from psycopg.rows import TupleRow
from psycopg.sql import SQL
from psycopg.types.json import set_json_loads

from db.cancellation import Call

log = structlog.get_logger(__name__)

# Text of a statement. bytes: composed through psycopg.sql and kept, see db/filters.py.
Statement = LiteralString | bytes

MAX_EXACT_INTEGER = 2**53

_NAME = re.compile(r"/\*\s*(\S+)\s*\*/")


class Connection(psycopg.Connection[TupleRow]):
    """A psycopg connection that reads results in binary (14 times faster for vectors) and reports slow statements."""

    slow_query_ms = 100.0
    last_used_at = 0.0
    """time.monotonic() of the end of its last use."""
    database_s = 0.0
    """Seconds spent in statements since a call took the connection."""
    call: Call | None = None
    """Whose statements run; none follows once it was cancelled or its deadline has passed."""
    _kept_cursor: Cursor[TupleRow] | None = None

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
            return cursor.execute(statement, parameters)
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
            return self._kept_cursor.execute(statement, parameters).fetchall()
        finally:
            self._finished(statement, time.perf_counter() - started_at)

    def copy_rows(self, statement: Statement, types: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Feeds a COPY ... FROM STDIN (FORMAT BINARY) whose columns have these types; raises what `query` does."""
        self._require_call_goes_on()
        started_at = time.perf_counter()
        try:
            with self.cursor().copy(statement) as copy:
                copy.set_types(types)
                for row in rows:
                    copy.write_row(row)
        finally:
            # Never reported as slow: it takes as long as there are rows.
            self.database_s += time.perf_counter() - started_at

    def _require_call_goes_on(self) -> None:
        # A cancel request stops what runs when it arrives; between two statements of a transaction it hits nothing.
        if self.call is not None and (error := self.call.ended_early()) is not None:
            raise error

    def _finished(self, statement: Statement, duration_s: float) -> None:
        self.database_s += duration_s
        if duration_s * 1_000 > self.slow_query_ms:
            log.warning("slow_query", statement=name_of(statement), duration_ms=round(duration_s * 1_000, 1))


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
    register_vector(connection)
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
