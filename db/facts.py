"""Reading what the database at a URL is: for the command line, before there is a pool."""

import psycopg

from db.connecting import CONNECT_TIMEOUT_S, connect, describe_failure
from db.connection import Connection
from db.errors import DatabaseUnavailable
from db.reembedding_state import Reembedding, read_reembedding
from db.schema import SchemaFacts, read_facts


def facts_of(url: str) -> SchemaFacts:
    """Returns the facts of the database at `url`.

    Raises:
        DatabaseUnavailable: When it cannot be reached or read, with the reason for the operator.
    """
    with connect(url, autocommit=True) as connection:
        try:
            return read_facts(connection)
        except psycopg.Error as error:
            raise DatabaseUnavailable(describe_failure(url, error)) from None


def move_of(url: str) -> Reembedding | None:
    """Returns the move to another embedding model that is under way in the database at `url`, migrated or not.

    Raises:
        DatabaseUnavailable: When it cannot be reached or read, with the reason for the operator.
    """
    try:
        with Connection.connect(url, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as connection:
            return read_reembedding(connection)
    except psycopg.errors.UndefinedTable:
        return None
    except psycopg.Error as error:
        raise DatabaseUnavailable(describe_failure(url, error)) from None
