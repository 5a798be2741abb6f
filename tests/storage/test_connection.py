"""A connection: its settings, its reports of slow statements, and what it makes of results."""

import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
import structlog
from psycopg import pq
from psycopg.types.json import Jsonb

from db.connection import MAX_PREPARED_BYTES, Connection, name_of
from db.errors import CallCancelled, Conflict, DatabaseUnavailable, StatementTimeout
from db.pool import Database
from db.wall import ACROSS_USERS
from tests.storage.concurrency import Activity
from tests.storage.conftest import OpenDatabase

SETTINGS = (
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "TimeZone",
    "jit",
    "application_name",
)


def settings(database: Database) -> dict[str, str]:
    def show(conn: Connection) -> dict[str, str]:
        rows = {name: conn.execute(f"SHOW {name}".encode()).fetchone() for name in SETTINGS}
        return {name: row[0] for name, row in rows.items() if row is not None}

    return database.read(database.call(), show, user_id=ACROSS_USERS)


def test_session_has_the_service_s_settings(module_database_url: str, open_database: OpenDatabase) -> None:
    assert settings(open_database(module_database_url, statement_timeout_s=2.5)) == {
        "statement_timeout": "2500ms",
        "lock_timeout": "2500ms",
        "idle_in_transaction_session_timeout": "5s",
        "TimeZone": "UTC",
        "jit": "off",
        "application_name": "memory-service",
    }


def test_nothing_is_left_on_a_pooler_s_session(module_database_url: str, open_database: OpenDatabase) -> None:
    database = open_database(module_database_url, max_size=1, prepared_statements=False)
    assert settings(database)["statement_timeout"] == "0"

    def prepared(conn: Connection) -> int:
        for _ in range(10):
            conn.query("/* test.one */ SELECT 1", {})
        return conn.execute("SELECT FROM pg_prepared_statements").rowcount

    assert database.read(database.call(), prepared, user_id=ACROSS_USERS) == 0


def test_time_limits_hold_behind_a_pooler_too(module_database_url: str, open_database: OpenDatabase) -> None:
    database = open_database(module_database_url, max_size=1, prepared_statements=False, statement_timeout_s=0.2)

    def sleep(conn: Connection) -> None:
        conn.query("/* test.sleep */ SELECT pg_sleep(10)", {})

    def wait_for_a_lock(conn: Connection) -> None:
        with conn.transaction():
            conn.query("/* test.lock */ SELECT FROM users FOR UPDATE", {})

    def idle(conn: Connection) -> None:
        with conn.transaction():
            conn.query("/* test.one */ SELECT 1", {})
            time.sleep(0.6)
            conn.query("/* test.one */ SELECT 1", {})

    with pytest.raises(StatementTimeout):
        database.read(database.call(), sleep, user_id="u")
    with psycopg.connect(module_database_url) as holder:
        holder.execute("INSERT INTO users (user_id, created_at) VALUES ('u', now()) ON CONFLICT DO NOTHING")
        holder.commit()
        holder.execute("LOCK TABLE users")
        with pytest.raises((StatementTimeout, Conflict)):
            database.write(database.call(), wait_for_a_lock, user_id="u")
    with pytest.raises(DatabaseUnavailable, match="left alone for too long"):
        database.write(database.call(), idle, user_id="u")


def test_repeated_statement_is_prepared(module_database_url: str, open_database: OpenDatabase) -> None:
    database = open_database(module_database_url, max_size=1)

    def prepared(conn: Connection) -> int:
        for _ in range(10):
            conn.query("/* test.one */ SELECT %(n)s::int", {"n": 1})
        found = "SELECT FROM pg_prepared_statements WHERE starts_with(statement, '/* test.one */')"
        return conn.execute(found).rowcount

    assert database.read(database.call(), prepared, user_id=ACROSS_USERS) == 1


def test_a_statement_cancelled_while_it_is_prepared_runs_the_next_time(
    module_database_url: str, open_database: OpenDatabase, activity: Activity
) -> None:
    database = open_database(module_database_url, max_size=1)

    def count(conn: Connection) -> int:
        return len(conn.rows("/* test.count */ SELECT FROM conversations", {}))

    for _ in range(5):
        assert database.read(database.call(), count, user_id="u") == 0
    with psycopg.connect(module_database_url) as holder, ThreadPoolExecutor(1) as threads:
        holder.execute("LOCK TABLE conversations")
        call = database.call()
        counting = threads.submit(database.read, call, count, user_id="u")
        activity.wait_until_blocked("test.count")  # to be parsed
        call.cancel()
        assert isinstance(counting.exception(), CallCancelled)
    for _ in range(10):
        assert database.read(database.call(), count, user_id="u") == 0


def test_a_long_statement_is_not_prepared(module_database_url: str, open_database: OpenDatabase) -> None:
    database = open_database(module_database_url, max_size=1)

    def prepared(conn: Connection, comment: str) -> int:
        statement = f"/* test.long */ SELECT 1 /* {comment} */".encode()
        for _ in range(10):
            conn.query(statement, {})
        return conn.execute(
            "SELECT FROM pg_prepared_statements WHERE starts_with(statement, '/* test.long */')"
        ).rowcount

    long = "x" * MAX_PREPARED_BYTES
    assert database.read(database.call(), lambda conn: prepared(conn, long), user_id=ACROSS_USERS) == 0
    assert database.read(database.call(), lambda conn: prepared(conn, long[:-100]), user_id=ACROSS_USERS) == 1


def test_slow_statement_is_reported_by_name_alone(module_database_url: str, open_database: OpenDatabase) -> None:
    database = open_database(module_database_url, slow_query_ms=200.0)
    with structlog.testing.capture_logs() as events:
        database.read(database.call(), lambda conn: conn.query("/* test.quick */ SELECT 1", {}), user_id=ACROSS_USERS)
        database.read(
            database.call(),
            lambda conn: conn.query("/* test.slow */ SELECT pg_sleep(0.25), %(t)s", {"t": "hush"}),
            user_id=ACROSS_USERS,
        )
    [event] = [event for event in events if event["event"] == "slow_query"]
    assert event["statement"] == "test.slow"
    assert 250 <= event["duration_ms"] < 10_000
    assert event["log_level"] == "warning"
    assert "hush" not in str(event)


def test_slow_failures_are_reported_too(module_database_url: str, open_database: OpenDatabase) -> None:
    database = open_database(module_database_url, slow_query_ms=10.0, statement_timeout_s=0.02)

    def fail(conn: Connection) -> None:
        with pytest.raises(Exception, match="statement timeout"):
            conn.query("/* test.late */ SELECT pg_sleep(1)", {})
        assert conn.database_s > 0.02

    with structlog.testing.capture_logs() as events:
        database.read(database.call(), fail, user_id=ACROSS_USERS)
    assert [event["statement"] for event in events if event["event"] == "slow_query"] == ["test.late"]


def test_what_takes_long_by_its_size_is_timed_but_never_slow(
    module_database_url: str, open_database: OpenDatabase
) -> None:
    database = open_database(module_database_url, slow_query_ms=10.0)

    def insert(conn: Connection) -> None:
        conn.bulk("/* test.bulk */ SELECT pg_sleep(0.02)", {})
        assert conn.database_s > 0.02

    with structlog.testing.capture_logs() as events:
        database.write(database.call(), insert, user_id=ACROSS_USERS)
    assert [event for event in events if event["event"] == "slow_query"] == []


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("/* search.exact */ SELECT 1", "search.exact"),
        (b"\n  /*insert.one*/\nINSERT", "insert.one"),
        ("SELECT 1 /* not.this */", "unnamed"),
        ("", "unnamed"),
    ],
)
def test_names(statement: str | bytes, name: str) -> None:
    assert name_of(statement if isinstance(statement, bytes) else statement.encode()) == name


def test_results_come_in_binary(database: Database) -> None:
    def formats(conn: Connection) -> set[pq.Format]:
        cursor = conn.query("/* test.types */ SELECT 1, 'a', now(), '[1,2]'::halfvec, '{}'::jsonb", {})
        assert cursor.description is not None
        assert cursor.pgresult is not None
        return {pq.Format(cursor.pgresult.fformat(column)) for column in range(len(cursor.description))}

    assert database.read(database.call(), formats, user_id=ACROSS_USERS) == {pq.Format.BINARY}


@pytest.mark.parametrize(
    "number",
    [0, 1, -7, 2**53, -(2**53), 0.1, 1e22, -1e22, 1e308, 1.7976931348623157e308, 5e-324, 2.0**53 + 2],
)
def test_json_numbers_come_back_as_they_were(database: Database, number: float) -> None:
    row = database.read(
        database.call(),
        lambda conn: conn.query("/* test.json */ SELECT %(value)s", {"value": Jsonb({"n": [number]})}).fetchone(),
        user_id=ACROSS_USERS,
    )
    assert row is not None
    [again] = row[0]["n"]
    assert again == number
    assert type(again) is type(number)
