"""The pool while its PostgreSQL is killed, frozen and brought back. Each test has a server of its own."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest

from db import cancellation, pool
from db.connection import Connection
from db.embedded import EmbeddedPostgres, postmaster
from db.errors import DatabaseUnavailable
from db.pool import Database
from db.wall import ACROSS_USERS
from tests.fix_database import FAST
from tests.storage.concurrency import Activity, at_once, wait_for
from tests.storage.conftest import OpenDatabase


@pytest.fixture
def server(data_dir: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres.start(data_dir, settings=FAST) as server:
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE EXTENSION vector")
        yield server


def processes(data_dir: Path) -> list[psutil.Process]:
    """Returns the postmaster's process and those of its children."""
    found = postmaster.find(data_dir / "postgres")
    assert found is not None
    assert found.pid is not None
    parent = psutil.Process(found.pid)
    return [parent, *parent.children(recursive=True)]


def kill(data_dir: Path) -> None:
    killed = processes(data_dir)
    for process in killed:
        process.kill()
    psutil.wait_procs(killed, timeout=10)


@contextmanager
def frozen(data_dir: Path) -> Iterator[None]:
    """Stops the server's processes without ending them, as a dead network or a hung disk does."""
    stopped = processes(data_dir)
    for process in stopped:
        process.suspend()
    try:
        yield
    finally:
        for process in stopped:
            process.resume()


def one(conn: Connection) -> int:
    row = conn.query("/* test.one */ SELECT 1", {}).fetchone()
    assert row is not None
    return int(row[0])


def works(database: Database) -> bool:
    try:
        return database.write(database.call(), one, user_id=ACROSS_USERS) == 1
    except DatabaseUnavailable:
        return False


@pytest.mark.long
def test_killed_server_is_unavailable_until_it_is_back(
    server: EmbeddedPostgres, data_dir: Path, open_database: OpenDatabase
) -> None:
    database = open_database(server.url, min_size=2, timeout_s=0.2)
    kill(data_dir)
    for ask in (database.read, database.write, database.read, database.write):
        started_at = time.monotonic()
        with pytest.raises(DatabaseUnavailable) as caught:
            ask(database.call(), one, user_id=ACROSS_USERS)
        assert time.monotonic() - started_at < 5
        assert str(data_dir) not in str(caught.value)
    # More callers than may wait: they are not told that the connections are busy.
    ends = at_once([lambda: database.write(database.call(), one, user_id=ACROSS_USERS)] * 10)
    assert {type(end.exception()) for end in ends} == {DatabaseUnavailable}

    server.ensure_running()
    wait_for(lambda: works(database), limit_s=15)
    assert [database.write(database.call(), one, user_id=ACROSS_USERS) for _ in range(8)] == [1] * 8


def test_pool_recovers_from_an_outage_longer_than_it_tries_to_reconnect(
    server: EmbeddedPostgres, data_dir: Path, open_database: OpenDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "RECONNECT_TIMEOUT_S", 0.3)
    database = open_database(server.url, max_size=2, timeout_s=0.05)
    kill(data_dir)
    # More callers than may wait at a time: those who gave up must not count as waiting.
    for _ in range(10):
        assert not works(database)
    wait_for(lambda: database.statistics()["pool_size"] == 0)

    server.ensure_running()
    wait_for(lambda: works(database), limit_s=15)


def test_pool_opens_once_a_database_that_was_down_is_up(
    server: EmbeddedPostgres, data_dir: Path, open_database: OpenDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "RECONNECT_TIMEOUT_S", 0.1)
    kill(data_dir)
    with ThreadPoolExecutor(1) as threads:
        opening = threads.submit(open_database, server.url, timeout_s=0.2)
        time.sleep(0.6)  # the first attempts have long been given up
        assert not opening.done()
        server.ensure_running()
        assert works(opening.result(timeout=15))


def test_statement_of_a_killed_server_does_not_hang(
    server: EmbeddedPostgres, data_dir: Path, open_database: OpenDatabase, activity_of: Callable[[str], Activity]
) -> None:
    database = open_database(server.url, timeout_s=0.2)
    with ThreadPoolExecutor(1) as threads:
        sleeping = threads.submit(
            database.write,
            database.call(),
            lambda conn: conn.query("/* test.sleep */ SELECT pg_sleep(30)", {}),
            user_id=ACROSS_USERS,
        )
        activity_of(server.url).wait_until_running("test.sleep")
        kill(data_dir)
        assert isinstance(sleeping.exception(timeout=5), DatabaseUnavailable)


def test_cancel_reaches_a_thread_that_waits_for_a_frozen_server(
    server: EmbeddedPostgres, data_dir: Path, open_database: OpenDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancellation, "CANCEL_TIMEOUT_S", 0.3)
    database = open_database(server.url, max_size=1, timeout_s=0.2)
    call = database.call()
    with ThreadPoolExecutor(1) as threads, frozen(data_dir):
        waiting = threads.submit(database.read, call, one, user_id=ACROSS_USERS)
        wait_for(lambda: database.statistics()["pool_available"] == 0)
        call.cancel()
        assert isinstance(waiting.exception(timeout=5), DatabaseUnavailable)
    wait_for(lambda: works(database), limit_s=15)
