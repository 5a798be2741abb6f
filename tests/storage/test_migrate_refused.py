"""Databases and roles that cannot be migrated: each is refused with a reason that says what to do, and no password."""

import uuid
from collections.abc import Iterator

import pytest
from psycopg import sql

from db import migrate
from db.errors import DatabaseUnavailable, SchemaMismatch, UnsupportedDatabase
from db.schema import EmbeddingSpace
from tests.storage.migrate_calls import SPACE, connected, tables


@pytest.fixture
def ordinary_role(empty_database_url: str) -> Iterator[str]:
    """The URL of an empty database for a role that owns nothing; `empty_database_url` is the superuser's."""
    name = f"role_{uuid.uuid4().hex[:12]}"
    with connected(empty_database_url) as superuser:
        superuser.execute(sql.SQL("CREATE ROLE {} LOGIN CREATEROLE").format(sql.Identifier(name)))
        yield empty_database_url.replace("://postgres@", f"://{name}@")
        superuser.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(name)))


def test_a_role_that_may_not_create_pgvector_is_told_who_may(ordinary_role: str, empty_database_url: str) -> None:
    with connected(empty_database_url) as superuser:
        superuser.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
    with pytest.raises(UnsupportedDatabase, match=r"administrator .* superuser: CREATE EXTENSION vector"):
        migrate.upgrade(ordinary_role, SPACE)
    with connected(empty_database_url) as superuser:
        superuser.execute("CREATE EXTENSION vector")
    assert migrate.upgrade(ordinary_role, SPACE)[0] == "0001"


def test_a_role_that_may_not_create_tables_is_told_so(ordinary_role: str, empty_database_url: str) -> None:
    with connected(empty_database_url) as superuser:
        superuser.execute("CREATE EXTENSION vector")
    with pytest.raises(SchemaMismatch, match=r"may not change the schema .*schema public"):
        migrate.upgrade(ordinary_role, SPACE)


def test_another_applications_tables_are_left_alone(empty_database_url: str) -> None:
    with connected(empty_database_url) as connection:
        connection.execute("CREATE TABLE users (id integer)")
    with pytest.raises(SchemaMismatch, match=r'"users" already exists.*use a database of its own'):
        migrate.upgrade(empty_database_url, SPACE)
    assert tables(empty_database_url) == {"users"}


@pytest.mark.parametrize(
    ("revision", "message"),
    [("9999", "this binary is older than the database"), ("ae1027a6acf", "another application's schema")],
)
def test_an_unknown_revision_is_refused(empty_database_url: str, revision: str, message: str) -> None:
    migrate.upgrade(empty_database_url, SPACE)
    with connected(empty_database_url) as connection:
        connection.execute("UPDATE alembic_version SET version_num = %s", [revision])
    with pytest.raises(SchemaMismatch, match=message):
        migrate.upgrade(empty_database_url, SPACE)
    with pytest.raises(SchemaMismatch, match=message):
        migrate.pending(empty_database_url)


def test_a_database_made_for_another_space_is_refused(empty_database_url: str) -> None:
    migrate.upgrade(empty_database_url, SPACE, revision="0001")
    with pytest.raises(SchemaMismatch, match=r"'test-model' with 8 dimensions.*'other' with 16 dimensions"):
        migrate.upgrade(empty_database_url, EmbeddingSpace("other", 16))
    assert "request_ids" not in tables(empty_database_url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:s3cret@127.0.0.1:1/db",
        "postgresql://me:s3cret/@127.0.0.1:1/db",
        "postgresql://me:12/s3cret@127.0.0.1:1/db",
        "postgresql://me:s3cret@s3cret@127.0.0.1:1/db",
        "postgresql://me:s3cret%zz@127.0.0.1:1/db",
        "postgresql://me:s3cret?x=1@127.0.0.1:1/db",
        "host=127.0.0.1 port=1 user=me password=s3cret",
        "host=127.0.0.1 port=1 user=me password='s3cret",
        "host=127.0.0.1 port=1 user=me password=a s3cret",
    ],
)
def test_a_failed_connection_never_quotes_the_password(url: str) -> None:
    with pytest.raises(DatabaseUnavailable, match="cannot connect to the database") as upgrading:
        migrate.upgrade(url, SPACE)
    with pytest.raises(DatabaseUnavailable, match="cannot connect to the database") as asking:
        migrate.pending(url)
    assert "s3cret" not in f"{upgrading.value}{asking.value}"


def test_a_failed_connection_says_why() -> None:
    with pytest.raises(DatabaseUnavailable, match=r"127\.0\.0\.1.*Connection refused"):
        migrate.pending("postgresql://me:s3cret@127.0.0.1:1/db")
