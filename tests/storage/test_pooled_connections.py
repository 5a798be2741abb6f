"""Connections through a pooler: nothing is left to a session, and what needs one is refused."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
import structlog

from db import cancellation, migrate
from db.ann_session import AnnSession
from db.connecting import is_pooled
from db.connection import Connection
from db.errors import (
    CallCancelled,
    DatabaseUnavailable,
    EmbeddingSpaceChanged,
    StatementTimeout,
    UnsupportedDatabase,
)
from db.pool import Database
from db.schema import EmbeddingSpace
from db.wall import ACROSS_USERS
from tests.fix_database import DIMENSIONS, MODEL
from tests.storage.concurrency import Activity
from tests.storage.conftest import OpenDatabase
from tests.storage.pooler_like import pooler_like
from tests.storage.sample_memories import new_memory, read, store

SPACE = EmbeddingSpace(MODEL, DIMENSIONS)

LIMITS = {
    "statement_timeout": "2500ms",
    "lock_timeout": "2500ms",
    "idle_in_transaction_session_timeout": "5s",
    "jit": "off",
    "enable_seqscan": "off",
}


@pytest.fixture(scope="module")
def pooled_url(module_database_url: str) -> Iterator[str]:
    """The module's database through a pooler."""
    with pooler_like(module_database_url) as url:
        yield url


def limits(conn: Connection) -> dict[str, str]:
    settings = ", ".join(f"current_setting('{name}')" for name in LIMITS)
    [row] = conn.query(f"/* test.limits */ SELECT {settings}".encode(), {}).fetchall()
    return dict(zip(LIMITS, row, strict=True))


def limits_left(database: Database) -> dict[str, str]:
    """Returns what a transaction of somebody else's would find."""
    with database._pool.connection() as conn:  # noqa: SLF001 - nobody else may see it
        assert conn.wall is None
        return limits(conn)


def prepared(database: Database) -> int:
    """Returns how many statements PostgreSQL keeps for a pool of one connection that was used ten times."""
    for _ in range(10):
        database.read(database.call(), limits, user_id="u")
    with database._pool.connection() as conn:  # noqa: SLF001 - likewise
        return conn.execute("SELECT FROM pg_prepared_statements").rowcount


def test_a_pooler_is_told_from_postgresql(module_database_url: str, pooled_url: str) -> None:
    for url, pooled in ((module_database_url, False), (pooled_url, True)):
        with psycopg.connect(url) as connection:
            assert is_pooled(connection) is pooled


def test_each_transaction_takes_along_what_a_session_would_have(pooled_url: str, open_database: OpenDatabase) -> None:
    database = open_database(pooled_url, max_size=1, statement_timeout_s=2.5)
    before = limits_left(database)
    assert before != LIMITS

    def in_transaction(conn: Connection) -> dict[str, str]:
        with conn.transaction():
            return limits(conn)

    for user_id in ("u", ACROSS_USERS):
        assert database.read(database.call(), limits, user_id=user_id) == LIMITS
        assert database.read(database.call(), in_transaction, user_id=user_id) == LIMITS
    assert limits_left(database) == before


def test_without_row_level_security_too(pooled_url: str, open_database: OpenDatabase) -> None:
    database = open_database(pooled_url, max_size=1, statement_timeout_s=2.5, row_level_security=False)
    assert database.read(database.call(), limits, user_id="u") == LIMITS
    store(database, "anybody", new_memory())

    def users(conn: Connection) -> set[str]:
        return {user_id for (user_id,) in conn.query("/* test.users */ SELECT user_id FROM users", {})}

    assert "anybody" in database.read(database.call(), users, user_id="u")
    with database._pool.connection() as conn:  # noqa: SLF001 - likewise
        assert conn.execute("SELECT current_role = session_user").fetchone() == (True,)


def test_statements_stay_prepared_where_the_pooler_is_said_to_know_them(
    pooled_url: str, module_database_url: str, open_database: OpenDatabase
) -> None:
    assert prepared(open_database(pooled_url, max_size=1)) == 0
    assert prepared(open_database(pooled_url, max_size=1, prepared_statements=True)) > 0
    assert prepared(open_database(module_database_url, max_size=1)) > 0
    assert prepared(open_database(module_database_url, max_size=1, prepared_statements=False)) == 0


@pytest.mark.parametrize("prepared_statements", [None, True], ids=["plain", "prepared"])
def test_each_transaction_asks_for_its_embedding_space(
    pooled_url: str, open_database: OpenDatabase, *, prepared_statements: bool | None
) -> None:
    database = open_database(pooled_url, max_size=1, prepared_statements=prepared_statements)
    here, elsewhere = database.in_space(SPACE), database.in_space(EmbeddingSpace("another", DIMENSIONS))
    memory = new_memory()
    store(here, "mover", memory)
    for _ in range(7):  # from the sixth time on statements are prepared
        assert read(here, "mover", memory.id).user_id == "mover"
        with pytest.raises(EmbeddingSpaceChanged):
            read(elsewhere, "mover", memory.id)


def test_a_statement_s_settings_end_with_it(
    pooled_url: str, module_database_url: str, open_database: OpenDatabase
) -> None:
    def deep(conn: Connection) -> list[str]:
        show = "/* test.depth */ SELECT current_setting('hnsw.ef_search', true), current_setting('statement_timeout')"
        [during] = conn.rows(show, {}, settings={"hnsw.ef_search": "123"})
        with conn.transaction():
            [within] = conn.rows(show, {}, settings={"hnsw.ef_search": "124", "statement_timeout": "7s"})
        [after] = conn.rows(show, {})
        return [*during, *within, after[0]]

    for url in (pooled_url, module_database_url):
        for confined in (True, False):
            database = open_database(url, max_size=1, statement_timeout_s=2.5, row_level_security=confined)
            found = database.read(database.call(), deep, user_id="u")
            assert found[:4] == ["123", "2500ms", "124", "7s"]
            assert found[4] not in {"123", "124"}


def test_time_limits_hold(pooled_url: str, open_database: OpenDatabase) -> None:
    database = open_database(pooled_url, max_size=1, statement_timeout_s=0.1)
    with pytest.raises(StatementTimeout):
        database.read(database.call(), lambda conn: conn.query("/* test.sleep */ SELECT pg_sleep(10)", {}), user_id="u")


def test_a_call_ends_although_its_cancel_request_is_forgotten(
    pooled_url: str,
    open_database: OpenDatabase,
    activity: Activity,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cancellation, "CANCEL_TIMEOUT_S", 0.3)
    database = open_database(pooled_url, min_size=2, max_size=2)
    call = database.call()
    with ThreadPoolExecutor(1) as threads, structlog.testing.capture_logs() as events:
        # Made up process ids reach nobody, and PostgreSQL does not say so.
        sleeping = threads.submit(
            database.read, call, lambda conn: conn.query("/* test.long */ SELECT pg_sleep(5)", {}), user_id="u"
        )
        activity.wait_until_running("test.long")
        cancelled_at = time.monotonic()
        call.cancel()
        assert isinstance(sleeping.exception(), CallCancelled)
    assert 0.3 <= time.monotonic() - cancelled_at < 2
    said = {event["event"] for event in events}
    assert "cancel_failed_connection_cut" in said
    assert "database_connection_lost" not in said, "the connections of others are kept"
    assert database.read(database.call(), limits, user_id="u")["jit"] == "off"


def test_what_needs_a_session_is_refused(pooled_url: str) -> None:
    with pytest.raises(UnsupportedDatabase, match="MEMORY_DIRECT_DATABASE_URL"):
        migrate.upgrade(pooled_url, SPACE)
    with pytest.raises(UnsupportedDatabase, match="MEMORY_DIRECT_DATABASE_URL"):
        AnnSession(pooled_url)


def test_an_unreachable_database_is_not_taken_for_a_pooler() -> None:
    with pytest.raises(DatabaseUnavailable):
        AnnSession("postgresql://127.0.0.1:1/none")
