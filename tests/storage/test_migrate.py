"""Migrations: from nothing, over rows, at the same time, killed, printed, and refused with a reason."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from db import migrate, revisions
from db.embedded.programs import find_installation
from db.errors import Conflict, DatabaseUnavailable, SchemaMismatch, UnsupportedDatabase
from db.schema import EmbeddingSpace, read_facts
from tests.fix_database import NewDatabase

SPACE = EmbeddingSpace("test-model", 8)
# Everything that could be taken for a quote, a parameter or a placeholder on the way to the server.
AWKWARD_SPACE = EmbeddingSpace("it's 100% {odd} %s %(x)s :name ::text \\:b \\ $1 é", 8)

# Migrates argv[1] with the scripts in argv[2]; prints what it does.
MIGRATOR = """
import sys
from pathlib import Path
from db import migrate, revisions
from db.schema import EmbeddingSpace
revisions.SCRIPTS = migrate.SCRIPTS = Path(sys.argv[2])
space = EmbeddingSpace("test-model", 8)
applied = migrate.upgrade(sys.argv[1], space, on_wait=lambda _: print("waiting", file=sys.stderr, flush=True))
print("applied", *applied, file=sys.stderr, flush=True)
"""

CONCURRENT_INDEX = '''"""An index built without stopping writers."""
from alembic import op
from db.migrate import verbatim
revision = "9000"
down_revision = "{head}"
def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute(verbatim("CREATE INDEX CONCURRENTLY IF NOT EXISTS later ON users (created_at)"))
'''

MIGRATORS_LOCK = "SELECT pg_advisory_lock(x'6d656d6f7279'::bigint)"


@contextmanager
def migrator(url: str, scripts: Path = revisions.SCRIPTS) -> Iterator[subprocess.Popen[str]]:
    """Runs a migrator in a process of its own; what it says is on its standard error."""
    process = subprocess.Popen(
        [sys.executable, "-c", MIGRATOR, url, str(scripts)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.readline().strip()


def connected(url: str) -> psycopg.Connection:
    return psycopg.connect(url, autocommit=True)


def tables(url: str) -> set[str]:
    with connected(url) as connection:
        rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    return {row[0] for row in rows}


def wait_for(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


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


def revisions_after(revision: str, url: str) -> list[str]:
    with connected(url) as connection:
        connection.execute("DELETE FROM alembic_version")
        every = migrate.pending(url)
        connection.execute("INSERT INTO alembic_version VALUES (%s)", [revisions.head()])
    return every[every.index(revision) + 1 :]


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


def test_two_migrators_at_once_share_the_work(empty_database_url: str) -> None:
    with migrator(empty_database_url) as one, migrator(empty_database_url) as two:
        said = [process.communicate(timeout=60)[1].splitlines()[-1] for process in (one, two)]
    every = " ".join(["applied", "0001", *revisions_after("0001", empty_database_url)])
    assert sorted(said) == ["applied", every]


def test_a_migrator_waits_for_another_and_says_so(empty_database_url: str) -> None:
    waits: list[float] = []
    waiting = threading.Event()

    def on_wait(waited_s: float) -> None:
        waits.append(waited_s)
        waiting.set()

    with connected(empty_database_url) as other:
        other.execute(MIGRATORS_LOCK)
        release = threading.Thread(target=close_after, args=(waiting, other))
        release.start()
        assert migrate.upgrade(empty_database_url, SPACE, on_wait=on_wait)[0] == "0001"
        release.join()
    assert len(waits) == 1
    assert waits[0] < 5


def close_after(event: threading.Event, connection: psycopg.Connection) -> None:
    event.wait(20)
    connection.close()


def test_a_migrator_waits_only_so_long(empty_database_url: str) -> None:
    with connected(empty_database_url) as other:
        other.execute(MIGRATORS_LOCK)
        with pytest.raises(Conflict, match="another migration of this database has not ended"):
            migrate.upgrade(empty_database_url, SPACE, lock_timeout_s=0.3)
    assert tables(empty_database_url) == set()


def test_a_migrator_killed_while_it_waits_leaves_nothing(empty_database_url: str) -> None:
    with connected(empty_database_url) as other:
        other.execute(MIGRATORS_LOCK)
        with migrator(empty_database_url) as process:
            while next_line(process) != "waiting":
                assert process.poll() is None
            process.kill()
            process.wait()
    assert migrate.upgrade(empty_database_url, SPACE)[0] == "0001"


def test_a_migrator_killed_at_work_can_be_run_again(empty_database_url: str) -> None:
    migrate.upgrade(empty_database_url, SPACE, revision="0001")
    with connected(empty_database_url) as watcher, psycopg.connect(empty_database_url) as blocker:
        blocker.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")  # 0002 refers to it
        with migrator(empty_database_url) as process:
            wait_for(lambda: stuck_sessions(watcher) == 1)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            # The server notices that its client has gone before the lock is free or the statement's time is over.
            wait_for(lambda: stuck_sessions(watcher) == 0, timeout_s=4)
    assert migrate.upgrade(empty_database_url, SPACE) == revisions_after("0001", empty_database_url)


def stuck_sessions(watcher: psycopg.Connection) -> int:
    row = watcher.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'relation'"
    ).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.long
def test_a_migration_does_not_queue_for_a_table_for_ever(empty_database_url: str) -> None:
    migrate.upgrade(empty_database_url, SPACE, revision="0001")
    with psycopg.connect(empty_database_url) as blocker:
        blocker.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(Conflict, match="another session holds a lock on a table"):
            migrate.upgrade(empty_database_url, SPACE)
    assert "request_ids" not in tables(empty_database_url)


def test_an_index_is_built_concurrently_while_another_migrator_waits(empty_database_url: str, tmp_path: Path) -> None:
    scripts = tmp_path / "migrations"
    shutil.copytree(revisions.SCRIPTS, scripts)
    (scripts / "versions" / "9000_later.py").write_text(CONCURRENT_INDEX.format(head=revisions.head()))
    migrate.upgrade(empty_database_url, SPACE)
    # Building concurrently waits for older transactions: this one holds it up until the other migrator waits too.
    with psycopg.connect(empty_database_url) as older, migrator(empty_database_url, scripts) as one:
        older.execute("LOCK TABLE users IN ROW EXCLUSIVE MODE")
        with connected(empty_database_url) as watcher:
            wait_for(lambda: building_sessions(watcher) == 1)
        with migrator(empty_database_url, scripts) as two:
            while next_line(two) != "waiting":
                assert two.poll() is None
            older.rollback()
            assert "applied 9000" in one.communicate(timeout=30)[1].splitlines()
            assert "applied" in two.communicate(timeout=30)[1].splitlines()
    with connected(empty_database_url) as connection:
        row = connection.execute("SELECT indisvalid FROM pg_index WHERE indexrelid = 'later'::regclass").fetchone()
        assert row == (True,)


def building_sessions(watcher: psycopg.Connection) -> int:
    row = watcher.execute(
        "SELECT count(*) FROM pg_stat_progress_create_index WHERE datname = current_database()"
    ).fetchone()
    assert row is not None
    return int(row[0])


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
