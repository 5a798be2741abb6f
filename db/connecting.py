"""Connections one by one: opening them, with errors that never quote the password, and what they lead to."""

import re
from typing import Any
from urllib.parse import unquote

import psycopg

from db.errors import DatabaseUnavailable, UnsupportedDatabase

CONNECT_TIMEOUT_S = 10

UNQUOTABLE = (
    "cannot connect to the database: the URL is malformed or the server did not answer "
    "(reserved characters in a password must be percent-encoded)"
)


def connect(url: str, *, autocommit: bool = False) -> psycopg.Connection[Any]:
    """Returns a connection to `url`, a URL or libpq keywords.

    Raises:
        DatabaseUnavailable: With the reason, as far as it holds no part of the password.
    """
    try:
        return psycopg.connect(url, autocommit=autocommit, connect_timeout=CONNECT_TIMEOUT_S)
    except psycopg.Error as error:
        raise DatabaseUnavailable(describe_failure(url, error)) from None


def is_pooled(connection: psycopg.Connection[Any]) -> bool:
    """Returns whether a pooler lies between, so that each transaction may be of another session.

    A pooler makes up the process id that it tells its clients, since they are to cancel by it (PgBouncer #1296).
    """
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    return row is None or row[0] != connection.info.backend_pid


def require_session(connection: psycopg.Connection[Any]) -> None:
    """Returns when all transactions are of one session, whose locks and settings last.

    Raises:
        UnsupportedDatabase: When a pooler lies between.
    """
    if is_pooled(connection):
        raise UnsupportedDatabase(
            "there is a connection pooler before the database, and this needs a session of its own: let "
            "MEMORY_DIRECT_DATABASE_URL name the database itself"
        )


def describe_failure(url: str, error: psycopg.Error) -> str:
    """Returns why a connection could not be made, for an operator's eyes.

    libpq quotes what it could not parse: in postgresql://u:p/w@h the "port" is part of the password.
    """
    reason = " ".join(str(error).split())
    if isinstance(error, psycopg.ProgrammingError) or any(secret in reason for secret in _secrets(url)):
        return UNQUOTABLE
    return f"cannot connect to the database: {reason}"


def _secrets(url: str) -> set[str]:
    """Returns every piece of `url` that may belong to the password, as written and decoded."""
    credentials = url.partition("://")[2].rpartition("@")[0] if "://" in url else ""
    pieces = re.split(r"[:@/?#&=]", credentials)[1:]  # the first is the user name
    pieces += re.findall(r"(?:ssl)?password\s*=\s*('(?:[^'\\]|\\.)*'|[^\s&]+)", url)
    return {form for piece in pieces for form in (piece.strip("'"), unquote(piece)) if form}
