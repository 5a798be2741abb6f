"""What others have set for the database, the role or the environment, and what that must not change."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from db import duplicates, migrate
from db.connection import Connection
from db.duplicates import Receipt
from db.embedded import EmbeddedPostgres
from db.errors import UnsupportedDatabase
from db.schema import EmbeddingSpace
from tests.fix_database import DIMENSIONS, MODEL
from tests.storage.concurrency import Activity, wait_for
from tests.storage.conftest import OpenDatabase
from tests.storage.sample_duplicates import SKIP, bring, live_ids
from tests.storage.sample_memories import LATER, new_memory, read, store, stored


def set_for(url: str, name: str, value: str) -> None:
    """Sets what further sessions of a database begin with."""
    database = sql.Identifier(str(conninfo_to_dict(url)["dbname"]))
    command = sql.SQL("ALTER DATABASE {} SET {} = {}").format(database, sql.Identifier(name), sql.Literal(value))
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(command)


@pytest.mark.parametrize("prepared_statements", [None, False])
def test_whoever_takes_turns_sees_what_the_one_before_has_stored(
    database_url: str,
    open_database: OpenDatabase,
    activity_of: Callable[[str], Activity],
    *,
    prepared_statements: bool | None,
) -> None:
    set_for(database_url, "default_transaction_isolation", "repeatable read")
    database = open_database(database_url, min_size=3, prepared_statements=prepared_statements)
    activity = activity_of(database_url)

    def make_others_wait(conn: Connection) -> list[Future[list[Receipt]]]:
        with conn.transaction():
            duplicates.take_turns(conn, "ada", now=LATER)
            others = [threads.submit(bring, database, "ada", SKIP, new_memory(content="same")) for _ in range(2)]
            wait_for(lambda: activity.blocked("duplicates.take_turns") == len(others))
        return others

    store(database, "ada", new_memory(content="something else"))
    with ThreadPoolExecutor() as threads:
        for other in database.write(database.call(), make_others_wait, user_id="ada"):
            other.result()
    assert len(live_ids(database, "ada")) == 2


@pytest.mark.parametrize("where", ["environment", "database"])
def test_texts_have_all_characters_whatever_the_client_encoding(
    database_url: str, open_database: OpenDatabase, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    if where == "environment":
        monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    else:
        set_for(database_url, "client_encoding", "LATIN1")
    database = open_database(database_url)
    content = "caf\u00e9 \u96ea \U0001f600"
    assert read(database, "ada", stored(database, "ada", content=content)).content == content


@pytest.fixture
def latin1_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The URL of an empty database that keeps text as LATIN1."""
    with psycopg.connect(postgres.database_url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE test_latin1 TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
        yield postgres.database_url("test_latin1")
        connection.execute("DROP DATABASE test_latin1 WITH (FORCE)")


def test_a_database_of_another_encoding_is_refused(latin1_url: str) -> None:
    with pytest.raises(UnsupportedDatabase, match="keeps text as LATIN1"):
        migrate.upgrade(latin1_url, EmbeddingSpace(MODEL, DIMENSIONS))
