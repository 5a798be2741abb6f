"""Setting up a new connection: what its statements run with, and how values go out and come in."""

import json
from typing import Any

from pgvector.psycopg import register_vector
from psycopg import IsolationLevel
from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.sql import SQL, Identifier, Literal
from psycopg.types.json import set_json_loads

from db.connecting import is_pooled
from db.connection import Connection, EncodedArray

MAX_EXACT_INTEGER = 2**53

# Compiling a statement of a millisecond takes longer than running it. Before its first ANALYZE a table looks tiny, and
# reading all of it for each candidate looks cheap: 40 ms for 1,500 memories against 3. Every statement here has an
# index to use.
PLANNING = {"jit": "off", "enable_seqscan": "off"}

# The second is for statements by themselves; transactions begin with theirs.
OF_SESSIONS = {"TimeZone": "UTC", "default_transaction_isolation": "read committed"}


def configure(connection: Connection, *, statement_timeout_s: float, prepared_statements: bool | None) -> None:
    """Prepares a new connection: sets up its session, or where a pooler may take that away, each of its transactions.

    Args:
        connection: The connection.
        statement_timeout_s: How long a statement may run and wait for a lock, and half of how long a transaction may
            do nothing: a handler that hangs inside one must not hold its locks for ever.
        prepared_statements: Whether statements stay prepared. None: unless there is a pooler, which may know of none.
            False: treat the session as a pooler's, whatever it looks like.
    """
    timeout_ms = round(statement_timeout_s * 1_000)
    settings = PLANNING | {
        "statement_timeout": str(timeout_ms),
        "lock_timeout": str(timeout_ms),
        "idle_in_transaction_session_timeout": str(2 * timeout_ms),
    }
    if prepared_statements is False or is_pooled(connection):
        connection.settings = settings
        if not prepared_statements:
            connection.prepare_threshold = None
    else:
        for name, value in (settings | OF_SESSIONS).items():
            connection.execute(SQL("SET {} = {}").format(Identifier(name), Literal(value)))
    # Whatever the role has: who waits for a lock has to see what was written meanwhile.
    connection.isolation_level = IsolationLevel.READ_COMMITTED
    register_vector(connection)
    connection.adapters.register_dumper(EncodedArray, _EncodedArrayDumper)
    set_json_loads(_read_json, connection)


class _EncodedArrayDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: EncodedArray) -> EncodedArray:
        return obj


def _number(digits: str) -> int | float:
    # jsonb writes 1e308 as an integer of 309 digits; beyond 2^53 it is the double that was stored.
    number = int(digits)
    return number if abs(number) <= MAX_EXACT_INTEGER else float(number)


_JSON = json.JSONDecoder(parse_int=_number)


def _read_json(data: str | bytes) -> Any:
    # PostgreSQL writes no white space around it, for which `decode` would look.
    value, _ = _JSON.raw_decode(data if isinstance(data, str) else data.decode())
    return value
