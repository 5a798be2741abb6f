"""What a psycopg error means: the one place that reads SQLSTATEs (PostgreSQL documentation, appendix A)."""

import psycopg
from psycopg import errors as pg

from db import errors

# Whole classes by their first two characters, single states by all five; the longer match wins.
_MEANING: dict[str, tuple[type[errors.DatabaseError], str]] = {
    "08": (errors.DatabaseUnavailable, "the database connection was lost"),
    "22": (errors.InvalidValue, "the database refused a value"),
    "23503": (errors.Conflict, "a row this one belongs to was deleted meanwhile"),
    "23514": (errors.InvalidValue, "a value is out of range"),
    "25006": (errors.DatabaseUnavailable, "the database is read-only at the moment"),
    "25P03": (errors.DatabaseUnavailable, "the transaction was left alone for too long"),
    "40": (errors.Conflict, "concurrent transactions collided"),
    "42P01": (errors.SchemaMismatch, "the database schema is not migrated; run: memory-service migrate"),
    "42703": (errors.SchemaMismatch, "the database schema is not migrated; run: memory-service migrate"),
    "53": (errors.PoolExhausted, "the database is short of resources"),
    "53100": (errors.StorageFull, "the database has no space left"),
    "53300": (errors.PoolExhausted, "the database accepts no more connections"),
    "54": (errors.InvalidValue, "a value is too large for the database"),
    "55P03": (errors.Conflict, "a row is locked by another transaction"),
    "57014": (errors.StatementTimeout, "the statement took too long and was cancelled"),
    "57P": (errors.DatabaseUnavailable, "the database is restarting"),
}

# The connection is unusable, or usable only on a server that has since been demoted.
_CONNECTION_LOST = ("08", "57P", "25006", "25P03")


def translate(error: psycopg.Error) -> errors.DatabaseError | None:
    """Returns the error of `db.errors` that `error` stands for, or None for a defect of ours.

    The message never quotes the database's, which may hold values and SQL.
    """
    state = error.sqlstate
    if state is None:
        # psycopg itself refuses what it cannot send, for example NUL in text.
        if isinstance(error, psycopg.DataError):
            return errors.InvalidValue("the database refused a value")
        # libpq reports a broken connection without a state.
        return errors.DatabaseUnavailable("the database connection was lost") if lost_connection(error) else None
    for length in (5, 3, 2):
        if (meaning := _MEANING.get(state[:length])) is not None:
            kind, message = meaning
            return kind(message)
    return None


def lost_connection(error: psycopg.Error) -> bool:
    """Tells whether the connection that raised `error` must not be used again."""
    if error.sqlstate is None:
        return isinstance(error, psycopg.OperationalError)
    return error.sqlstate.startswith(_CONNECTION_LOST)


def retryable(error: psycopg.Error) -> bool:
    """Tells whether running the same transaction again may succeed: 40001, 40P01."""
    return isinstance(error, pg.SerializationFailure | pg.DeadlockDetected)
