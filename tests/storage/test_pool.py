"""The pool: retries, refusals, lost connections, and what a call leaves behind on its connection."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from uuid import UUID

import psycopg
import pytest

from db import pool
from db.connection import Connection
from db.errors import (
    Conflict,
    DatabaseError,
    DatabaseUnavailable,
    InvalidValue,
    MemoryNotFound,
    PoolExhausted,
    StatementTimeout,
)
from db.pool import Database
from db.wall import ACROSS_USERS
from tests.storage.concurrency import LIMIT_S, Activity, at_once, wait_for
from tests.storage.conftest import OpenDatabase
from tests.storage.sample_memories import new_memory, read, soft_delete, store, stored

ActivityOf = Callable[[str], Activity]


def one(conn: Connection) -> int:
    row = conn.query("/* test.one */ SELECT 1", {}).fetchone()
    assert row is not None
    return int(row[0])


@contextmanager
def all_lent(database: Database, count: int) -> Iterator[None]:
    """Keeps `count` connections busy."""
    release, lent = threading.Event(), threading.Semaphore(0)

    def hold(_: Connection) -> None:
        lent.release()
        release.wait(LIMIT_S)

    with ThreadPoolExecutor(count) as threads:
        holding = [threads.submit(database.read, database.call(), hold, user_id=ACROSS_USERS) for _ in range(count)]
        for _ in holding:
            assert lent.acquire(timeout=LIMIT_S)
        try:
            yield
        finally:
            release.set()
    for future in holding:
        future.result()


def test_terminated_sessions_are_replaced_while_reading(
    database_url: str, open_database: OpenDatabase, activity_of: ActivityOf
) -> None:
    database = open_database(database_url, min_size=4)
    assert activity_of(database_url).terminate_others() == 4

    assert [database.read(database.call(), one, user_id=ACROSS_USERS) for _ in range(8)] == [1] * 8


def test_terminated_sessions_fail_one_write_at_most(
    database_url: str, open_database: OpenDatabase, activity_of: ActivityOf
) -> None:
    database = open_database(database_url, min_size=4)
    assert activity_of(database_url).terminate_others() == 4

    with pytest.raises(DatabaseUnavailable):
        store(database, "u", new_memory())
    for _ in range(8):
        store(database, "u", new_memory())


def test_sessions_that_died_idle_fail_nothing(
    database_url: str, open_database: OpenDatabase, activity_of: ActivityOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = open_database(database_url, min_size=4)
    monkeypatch.setattr(pool, "IDLE_BEFORE_CHECK_S", 0.0)
    assert activity_of(database_url).terminate_others() == 4

    for _ in range(8):
        store(database, "u", new_memory())


def test_busy_pool_is_exhausted_not_unavailable(module_database_url: str, open_database: OpenDatabase) -> None:
    database = open_database(module_database_url, max_size=2, timeout_s=0.1)
    with all_lent(database, 2), pytest.raises(PoolExhausted, match="all 2 database connections stayed busy"):
        database.read(database.call(), one, user_id=ACROSS_USERS)
    assert database.read(database.call(), one, user_id=ACROSS_USERS) == 1


def test_full_queue_is_refused_at_once(module_database_url: str, open_database: OpenDatabase) -> None:
    database = open_database(module_database_url, max_size=1, timeout_s=20.0)
    with ThreadPoolExecutor(1) as threads, all_lent(database, 1):
        queued = threads.submit(database.read, database.call(), one, user_id=ACROSS_USERS)
        wait_for(lambda: database.statistics()["requests_waiting"])
        started_at = time.monotonic()
        with pytest.raises(PoolExhausted, match="queue"):
            database.read(database.call(), one, user_id=ACROSS_USERS)
        assert time.monotonic() - started_at < 10
    assert queued.result() == 1


def test_waiting_for_a_connection_ends_with_the_deadline(module_database_url: str, open_database: OpenDatabase) -> None:
    database = open_database(module_database_url, max_size=1, timeout_s=10.0)
    with all_lent(database, 1):
        started_at = time.monotonic()
        with pytest.raises(StatementTimeout, match="deadline"):
            database.read(database.call(timeout_s=0.1), one, user_id=ACROSS_USERS)
        assert 0.1 <= time.monotonic() - started_at < 5


def test_closed_pool_is_unavailable(module_database_url: str, open_database: OpenDatabase) -> None:
    database = open_database(module_database_url)
    database.close()
    with pytest.raises(DatabaseUnavailable, match="shutting down"):
        database.read(database.call(), one, user_id=ACROSS_USERS)


def test_open_gives_up_on_a_database_that_cannot_be_reached() -> None:
    database = Database("postgresql://nobody:hush@127.0.0.1:1/nowhere", pool.PoolOptions(min_size=1, max_size=1))
    try:
        with pytest.raises(DatabaseUnavailable) as caught:
            database.open(timeout_s=0.2)
        assert str(caught.value) == "the database cannot be reached"
    finally:
        database.close()


def raising(sqlstate: str, *, times: int) -> tuple[Callable[[Connection], int], list[int]]:
    """Returns a change that the database refuses so many times, and the list of its attempts."""
    attempts: list[int] = []

    def change(conn: Connection) -> int:
        attempts.append(len(attempts))
        if len(attempts) <= times:
            conn.execute(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{sqlstate}'; END $$".encode())
        return one(conn)

    return change, attempts


def test_collided_transaction_runs_again(database: Database) -> None:
    change, attempts = raising("40001", times=2)
    assert database.write(database.call(), change, user_id=ACROSS_USERS) == 1
    assert len(attempts) == 3


def test_collisions_are_not_retried_for_ever(database: Database) -> None:
    change, attempts = raising("40P01", times=100)
    with pytest.raises(Conflict):
        database.write(database.call(), change, user_id=ACROSS_USERS)
    assert len(attempts) == pool.ATTEMPTS


@pytest.mark.parametrize(("sqlstate", "error"), [("23503", Conflict), ("22003", InvalidValue)])
def test_other_refusals_are_not_retried(database: Database, sqlstate: str, error: type[DatabaseError]) -> None:
    change, attempts = raising(sqlstate, times=100)
    with pytest.raises(error):
        database.write(database.call(), change, user_id=ACROSS_USERS)
    assert len(attempts) == 1


def test_deadlock_is_resolved_by_running_again(database: Database, user_id: str) -> None:
    first, second = (stored(database, user_id) for _ in range(2))
    met = threading.Barrier(2)

    def bump(conn: Connection, memory_id: UUID) -> None:
        conn.execute(
            "UPDATE memory_entries SET version = version + 1 WHERE user_id = %s AND id = %s", [user_id, memory_id]
        )

    def run(order: list[UUID]) -> None:
        attempts: list[int] = []

        def change(conn: Connection) -> None:
            attempts.append(len(attempts))
            conn.execute("SET deadlock_timeout = '20ms'")
            with conn.transaction():
                bump(conn, order[0])
                if len(attempts) == 1:
                    met.wait(LIMIT_S)
                bump(conn, order[1])

        database.write(database.call(), change, user_id=user_id)

    for future in at_once([lambda: run([first, second]), lambda: run([second, first])]):
        future.result()
    assert [read(database, user_id, memory_id).version for memory_id in (first, second)] == [3, 3]


def test_defects_are_not_disguised(database: Database) -> None:
    with pytest.raises(psycopg.errors.SyntaxError):
        database.read(
            database.call(), lambda conn: conn.query("/* test.wrong */ SELECT FROM WHERE", {}), user_id=ACROSS_USERS
        )
    assert database.read(database.call(), one, user_id=ACROSS_USERS) == 1


def test_statement_has_a_time_limit(module_database_url: str, open_database: OpenDatabase) -> None:
    database = open_database(module_database_url, max_size=1, statement_timeout_s=0.2)
    with pytest.raises(StatementTimeout, match="took too long"):
        database.read(
            database.call(), lambda conn: conn.query("/* test.sleep */ SELECT pg_sleep(5)", {}), user_id=ACROSS_USERS
        )
    assert database.read(database.call(), one, user_id=ACROSS_USERS) == 1
    assert database.statistics().get("returns_bad", 0) == 0


def test_lock_is_not_waited_for_longer_than_a_statement_may_run(
    database: Database, module_database_url: str, open_database: OpenDatabase, user_id: str
) -> None:
    memory_id = stored(database, user_id)
    impatient = open_database(module_database_url, statement_timeout_s=0.2)
    with psycopg.connect(module_database_url) as other:
        other.execute("SELECT FROM memory_entries WHERE user_id = %s AND id = %s FOR UPDATE", [user_id, memory_id])
        with pytest.raises((Conflict, StatementTimeout)):
            soft_delete(impatient, user_id, memory_id)


def test_failed_change_leaves_nothing_behind(database: Database, user_id: str) -> None:
    memory = new_memory()

    def change(conn: Connection) -> None:
        with conn.transaction():
            conn.execute("INSERT INTO users (user_id, created_at) VALUES (%s, %s)", [user_id, memory.created_at])
            raise MemoryNotFound("after all")

    with pytest.raises(MemoryNotFound, match="after all"):
        database.write(database.call(), change, user_id=user_id)
    found = database.read(
        database.call(),
        lambda conn: conn.execute("SELECT FROM users WHERE user_id = %s", [user_id]).rowcount,
        user_id=user_id,
    )
    assert found == 0
