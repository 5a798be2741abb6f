"""What deploy/compose.yaml gives its PostgreSQL to run is all that the service needs, and makes no superuser of it."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from db import migrate
from db.embedded import EmbeddedPostgres
from db.embedded.programs import find_installation
from db.schema import EmbeddingSpace
from db.wall_facts import require_wall, wall_of
from tests.fix_database import DIMENSIONS, FAST, MODEL

SCRIPT = Path(__file__).parents[2] / "deploy" / "database.sql"
PASSWORD = "it's a secret"  # noqa: S105 - of the test


@pytest.fixture
def login_url(data_dir: Path) -> Iterator[str]:
    """The URL by which the service reaches the database that the script has made."""
    with EmbeddedPostgres.start(data_dir, settings=FAST) as postgres:
        superuser = postgres.database_url("postgres")
        with psycopg.connect(superuser, autocommit=True) as connection:
            connection.execute("DROP DATABASE memory")
        # As the image calls it.
        subprocess.run(
            [find_installation() / "bin" / "psql", "--no-psqlrc", "-v", "ON_ERROR_STOP=1", "-f", SCRIPT, superuser],
            env=os.environ | {"POSTGRES_PASSWORD": PASSWORD},
            check=True,
            timeout=60,
        )
        yield psycopg.conninfo.make_conninfo(postgres.url, user="memory")


def test_the_service_is_no_superuser_of_its_database(login_url: str) -> None:
    assert migrate.upgrade(login_url, EmbeddingSpace(MODEL, DIMENSIONS))
    facts = wall_of(login_url)
    require_wall(facts)
    assert not facts.login_sees_all
    with psycopg.connect(login_url) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("SELECT FROM pg_authid")


def test_its_password_is_not_the_superusers(login_url: str) -> None:
    with psycopg.connect(psycopg.conninfo.make_conninfo(login_url, user="postgres")) as connection:
        found = connection.execute("SELECT rolname, rolpassword IS NULL FROM pg_authid WHERE rolcanlogin").fetchall()
    assert dict(found) == {"postgres": True, "memory": False}
