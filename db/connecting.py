"""Opens single connections, for what does not go through the pool, with errors that never quote the password."""

import re
from typing import Any
from urllib.parse import unquote

import psycopg

from db.errors import DatabaseUnavailable

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
