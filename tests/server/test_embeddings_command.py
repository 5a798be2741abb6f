"""`memory-service embeddings`: what it counts and lists, what it puts back, and how it is used wrongly."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from db import embedding_jobs
from db.errors import DatabaseUnavailable, SchemaMismatch
from db.pool import Database, PoolOptions
from db.wall import ACROSS_USERS
from memory_service import config, embeddings_command
from memory_service.__main__ import main
from memory_service.embeddings_command import Request
from memory_service.service import utc_now
from memory_service.text_table import duration
from tests.fix_database import DIMENSIONS, MODEL, NewDatabase
from tests.fix_server import COMMAND, environment
from tests.storage.sample_memories import LATER, NOW, new_memory, rows, store

BASICS = {"embedder": "none", "embedding_model": MODEL, "embedding_dimensions": DIMENSIONS, "log_format": "json"}
LIMIT_S = 60


@pytest.fixture
def url(new_database: NewDatabase) -> str:
    """A database of the test's own."""
    return new_database()


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    """A pool over it."""
    with closing(Database(url, PoolOptions(min_size=1, max_size=2))) as database:
        database.open()
        yield database


def queue(database: Database, user_id: str, *, pending: int = 0, failed: int = 0, error: str = "is too long") -> None:
    """Lets so many memories of a user wait, and so many have failed an hour later."""
    store(database, user_id, *[waiting() for _ in range(failed)])
    jobs = database.write(
        database.call(),
        lambda conn: embedding_jobs.take(conn, now=NOW, leased_until=LATER, limit=failed),
        user_id=ACROSS_USERS,
    )
    for job in jobs:
        database.write(
            database.call(),
            lambda conn, job=job: embedding_jobs.give_up(conn, job, error=error, now=LATER),  # type: ignore[misc]
            user_id=ACROSS_USERS,
        )
    if pending:
        store(database, user_id, *[waiting() for _ in range(pending)], now=utc_now())


def waiting() -> Any:
    return new_memory(embedding=None)


def run(url: str, action: Any, **request: Any) -> list[str]:
    """Runs the command in this process; returns the lines it said."""
    said: list[str] = []
    settings = config.load(**BASICS, database_url=url)
    assert embeddings_command.run(settings, Request(action=action, **request), said.append) == 0
    return "\n".join(said).splitlines()


def test_an_empty_queue(url: str) -> None:
    assert run(url, "status") == ["nothing waits for its embedding, and nothing failed"]
    assert run(url, "failed") == ["nothing failed"]
    assert run(url, "retry", every_user=True) == ["nothing failed, nothing to do"]


def test_status_counts_user_by_user(url: str, database: Database) -> None:
    queue(database, "ada", pending=2, failed=3)
    queue(database, "bob\n", pending=1)
    lines = run(url, "status")
    assert lines[0].split() == ["USER", "PENDING", "FAILED", "OLDEST", "LAST", "ERROR"]
    assert [re.split(r"  +", line)[:3] for line in lines[1:3]] == [["ada", "2", "3"], [r"'bob\n'", "1", "0"]]
    assert lines[1].endswith(" s")
    assert lines[3:] == ["3 pending and 3 failed of all users"]
    assert len(run(url, "status", user_id="ada")) == 2
    assert run(url, "status", limit=1)[2:] == [
        "3 pending and 3 failed of all users; the 1 longest queues are shown, see --limit"
    ]


def test_failed_lists_memories_with_the_reason(url: str, database: Database) -> None:
    queue(database, "ada", failed=2, error="is too long:\n9000 tokens")
    queue(database, "bob", failed=1, pending=4)
    lines = run(url, "failed")
    assert lines[0].split() == ["USER", "MEMORY", "ATTEMPTS", "FAILED", "AT", "(UTC)", "ERROR"]
    [first, second] = [
        str(id_) for [id_] in rows(database, b"SELECT id FROM embedding_jobs WHERE user_id = 'ada' ORDER BY id")
    ]
    assert [line.split()[:3] for line in lines[1:3]] == [["ada", first, "1"], ["ada", second, "1"]]
    assert lines[1].endswith("2026-05-04 04:02:01  is too long: 9000 tokens")
    assert lines[3].startswith("bob")
    assert len(lines) == 4
    assert len(run(url, "failed", user_id="bob")) == 2
    assert run(url, "failed", limit=2)[3:] == ["the latest 2 are shown, there are more; see --limit"]


def test_retry_puts_back_one_users_or_all(url: str, database: Database) -> None:
    queue(database, "ada", failed=2)
    queue(database, "bob", failed=1)
    assert run(url, "retry", user_id="ada") == ["2 put back in the queue"]
    assert run(url, "status")[-1] == "2 pending and 1 failed of all users"
    assert rows(database, b"SELECT DISTINCT attempts FROM embedding_jobs WHERE user_id = 'ada'") == [(0,)]
    assert run(url, "retry", every_user=True) == ["1 put back in the queue"]
    assert run(url, "status")[-1] == "3 pending and 0 failed of all users"
    assert rows(database, b"SELECT FROM memory_entries WHERE embedding_error IS NOT NULL") == []
    assert rows(database, b"SELECT method, user_id, code, memory_count FROM audit_log ORDER BY at") == [
        ("embeddings retry", "ada", None, 0),
        ("embeddings retry", "ada", "OK", 2),
        ("embeddings retry", None, None, 0),
        ("embeddings retry", None, "OK", 1),
    ]


def test_the_command_line(url: str, database: Database) -> None:
    queue(database, "ada", failed=1)
    result = subprocess.run(
        [*COMMAND, "embeddings", "retry", "--all"],
        env=environment(**BASICS, database_url=url),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, "1 put back in the queue\n")


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["retry"], ["retry", "--user", "a", "--all"], ["failed", "--limit", "0"]]
)
def test_wrong_usage_ends_with_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["embeddings", *arguments])
    assert ended.value.code == 2
    assert "usage: memory-service embeddings" in capsys.readouterr().err


def test_help_says_what_failing_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["embeddings", "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "MEMORY_EMBEDDING_QUEUE_ATTEMPTS" in said
    assert all(action in said for action in ("status", "failed", "retry"))


def test_a_database_that_will_not_do_is_an_error(empty_database_url: str) -> None:
    with pytest.raises(DatabaseUnavailable, match="cannot connect to the database"):
        run("postgresql://127.0.0.1:1/none", "status")
    with pytest.raises(SchemaMismatch, match="memory-service migrate"):
        run(empty_database_url, "status")


def test_durations_as_people_say_them() -> None:
    assert [duration(seconds) for seconds in (-1, 0.9, 59, 60, 3_599, 3_600, 86_399, 86_400 * 1_500)] == [
        *("0 s", "0 s", "59 s", "1 min", "59 min", "1 h", "23 h"),
        "1,500 d",
    ]
