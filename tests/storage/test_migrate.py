"""Migrations: from nothing, over rows, and printed."""

import subprocess
import uuid
from datetime import UTC, datetime

import psycopg
import pytest
from psycopg import sql

from db import migrate, revisions
from db.embedded.programs import find_installation
from db.schema import EmbeddingSpace, read_facts
from tests.fix_database import NewDatabase
from tests.storage.migrate_calls import SPACE, connected, revisions_after

# Everything that could be taken for a quote, a parameter or a placeholder on the way to the server.
AWKWARD_SPACE = EmbeddingSpace("it's 100% {odd} %s %(x)s :name ::text \\:b \\ $1 é", 8)


def test_a_fresh_database_gets_every_migration_once(empty_database_url: str) -> None:
    every = migrate.pending(empty_database_url)
    assert every[0] == "0001"
    assert every[-1] == revisions.head()
    assert migrate.upgrade(empty_database_url, SPACE) == every
    assert migrate.pending(empty_database_url) == []
    assert migrate.upgrade(empty_database_url, SPACE) == []
    with connected(empty_database_url) as connection:
        facts = read_facts(connection)
    assert (facts.revision, facts.space) == (revisions.head(), SPACE)


def test_revisions_are_numbers_that_grow(empty_database_url: str) -> None:
    revisions = migrate.pending(empty_database_url)
    assert all(revision.isdigit() for revision in revisions)
    assert revisions == sorted(revisions, key=int)


def test_rows_stay_when_the_schema_grows(empty_database_url: str) -> None:
    assert migrate.upgrade(empty_database_url, SPACE, revision="0001") == ["0001"]
    now, memory_id = datetime(2026, 1, 2, tzinfo=UTC), uuid.uuid4()
    with connected(empty_database_url) as connection:
        connection.execute("INSERT INTO users VALUES ('alice', %s)", [now])
        connection.execute("INSERT INTO conversations VALUES ('alice', 'first', %s)", [now])
        connection.execute(
            "INSERT INTO memory_entries (user_id, id, conversation_id, content, summary, metadata, embedding,"
            " embedding_norm, embedding_model, importance, version, created_at, updated_at) VALUES ('alice', %(id)s,"
            " 'first', 'tea', '', '{}', '[1,0,0,0,0,0,0,0]', 2.5, 'm', 5, 1, %(now)s, %(now)s)",
            {"id": memory_id, "now": now},
        )
        connection.execute("INSERT INTO memory_access VALUES ('alice', %s, 3, %s)", [memory_id, now])
    before = contents(empty_database_url)
    assert migrate.upgrade(empty_database_url, SPACE) == revisions_after("0001", empty_database_url)
    after = contents(empty_database_url)
    assert {table: after[table] for table in before} == before
    assert [len(rows) for rows in before.values()] == [1, 1, 1, 1]


# Columns that came after revision 0001, or are computed.
ADDED = [
    *("text_bytes", "conversation_key", "bits", "language", "superseded_by", "embedding_error"),
    *("content_hash", "lexemes", "lexeme_count", "standby_stale"),
]


def contents(url: str) -> dict[str, list[str]]:
    statement = sql.SQL("SELECT (to_jsonb(t) - %s::text[])::text FROM {} t")
    names = ("users", "conversations", "memory_entries", "memory_access")
    with connected(url) as connection:
        return {
            name: [row[0] for row in connection.execute(statement.format(sql.Identifier(name)), [ADDED])]
            for name in names
        }


def test_the_model_name_reaches_the_database_as_it_is(empty_database_url: str) -> None:
    migrate.upgrade(empty_database_url, AWKWARD_SPACE)
    with connected(empty_database_url) as connection:
        assert read_facts(connection).space == AWKWARD_SPACE


@pytest.mark.parametrize("client", ["psql", "psycopg"])
def test_the_printed_script_makes_the_same_database(new_database: NewDatabase, client: str) -> None:
    migrated, scripted = new_database(dimensions=None), new_database(dimensions=None)
    migrate.upgrade(migrated, AWKWARD_SPACE)
    script = migrate.script(AWKWARD_SPACE)
    if client == "psql":
        run_program("psql", "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--quiet", scripted, given=script)
    else:
        with connected(scripted) as connection:
            connection.execute(script.encode())
    assert dump(scripted) == dump(migrated)
    assert migrate.upgrade(scripted, AWKWARD_SPACE) == []


def dump(url: str) -> list[str]:
    """Returns everything in a database, rows included, as pg_dump writes it."""
    # Roles are named after the database.
    name = str(psycopg.conninfo.conninfo_to_dict(url)["dbname"])
    lines = run_program("pg_dump", url).replace(name, "itself").splitlines()
    # A random word guards each dump against commands hidden in it.
    return [line for line in lines if not line.startswith((r"\restrict", r"\unrestrict"))]


def run_program(program: str, *arguments: str, given: str = "") -> str:
    path = find_installation() / "bin" / program
    done = subprocess.run([path, *arguments], input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
