"""Reading what the database at a URL is: for the command line, before there is a pool."""

import psycopg

from db.connecting import connect, describe_failure
from db.errors import DatabaseUnavailable
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
