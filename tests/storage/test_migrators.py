"""Several migrators at once, and migrators that are killed: one works, the others wait, nothing stays half done."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from db import migrate, revisions
from db.errors import Conflict
from tests.storage.concurrency import wait_for
from tests.storage.migrate_calls import SPACE, connected, revisions_after, tables

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
            wait_for(lambda: stuck_sessions(watcher) == 0, limit_s=4)
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
