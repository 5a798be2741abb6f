"""A call, a connection or a transaction that outlives a move to another model does nothing that mixes both."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from db.connection import Connection
from db.errors import Conflict, DatabaseUnavailable, EmbeddingSpaceChanged
from db.wall import ACROSS_USERS
from tests.fix_database import NewDatabase
from tests.storage.concurrency import LIMIT_S
from tests.storage.conftest import OpenDatabase
from tests.storage.reembedding_calls import NEW, OLD, begin, build, memory_of, move, reconnect, run_round, switch
from tests.storage.sample_memories import store

OWNER = "owner"


@pytest.fixture
def url(new_database: NewDatabase) -> str:
    return new_database()


def test_a_call_keeps_the_space_it_began_with(url: str, open_database: OpenDatabase) -> None:
    database = open_database(url, timeout_s=10.0)
    database.space = OLD
    store(database, OWNER, memory_of("one", OLD))
    call = database.call()
    move(open_database(url), url)

    # The server has followed the database, after the call had its text embedded.
    database.space = NEW
    with pytest.raises(EmbeddingSpaceChanged, match=r"new-model.* not of model 'test-model'"):
        database.read(call, contents, user_id=OWNER)
    assert database.read(database.call(), contents, user_id=OWNER) == ["one"]


def contents(conn: Connection) -> list[str]:
    statement = "/* test.contents */ SELECT content FROM memory_entries WHERE user_id = %(user_id)s"
    return sorted(content for (content,) in conn.query(statement, {"user_id": OWNER}).fetchall())


def test_a_connection_lent_before_the_switch_runs_nothing_after_it(url: str, open_database: OpenDatabase) -> None:
    database, own = open_database(url), open_database(url)
    store(database, OWNER, memory_of("one", OLD))
    begin(own)
    run_round(own)
    build(url)
    lent, may_go_on = threading.Event(), threading.Event()
    seen: list[object] = []

    def work(conn: Connection) -> None:
        seen.append(conn.execute("SELECT 1").fetchone())
        lent.set()
        assert may_go_on.wait(LIMIT_S)
        seen.append(conn.execute("SELECT embedding FROM memory_entries").fetchone())

    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(database.write, database.call(), work, user_id=OWNER)
        assert lent.wait(LIMIT_S)
        assert switch(url).terminated >= 1
        may_go_on.set()
        with pytest.raises(DatabaseUnavailable):
            writing.result()
    assert len(seen) == 1


@pytest.mark.parametrize("prepared_statements", [True, False])
def test_a_server_of_the_old_model_is_refused(
    url: str, open_database: OpenDatabase, *, prepared_statements: bool
) -> None:
    database = open_database(url, prepared_statements=prepared_statements)
    old, new = database.in_space(OLD), database.in_space(NEW)
    store(old, OWNER, memory_of("one", OLD))
    with pytest.raises(EmbeddingSpaceChanged):
        store(new, OWNER, memory_of("two", NEW))
    move(open_database(url), url)
    reconnect(database)
    with pytest.raises(EmbeddingSpaceChanged):
        store(old, OWNER, memory_of("two", OLD))
    with pytest.raises(EmbeddingSpaceChanged):
        old.read(old.call(), contents, user_id=OWNER)
    store(new, OWNER, memory_of("two", NEW))
    assert new.read(new.call(), contents, user_id=OWNER) == ["one", "two"]
    assert database.statistics()["requests_waiting"] == 0


def test_behind_a_pooler_a_connection_that_outlives_a_move_is_of_no_use(url: str, open_database: OpenDatabase) -> None:
    """A pooler gives it another session. Here the session stays, since the move does not take it for the service's."""
    database = open_database(url, max_size=1, prepared_statements=False)
    old = database.in_space(OLD)
    store(old, OWNER, memory_of("one", OLD))
    database.read(
        database.call(), lambda conn: conn.execute("SET application_name = 'a pooler'").rowcount, user_id=OWNER
    )
    session = database.read(database.call(), backend, user_id=OWNER)
    move(open_database(url), url)
    attempts: list[Callable[[Connection], object]] = [
        contents,
        lambda conn: conn.rows("/* test.one */ SELECT 1", {}),
        in_transaction,
    ]
    for attempt in attempts:
        with pytest.raises(EmbeddingSpaceChanged, match="not of model 'test-model' with 8 dimensions any more"):
            old.read(old.call(), attempt, user_id=OWNER)
    new = database.in_space(NEW)
    assert new.read(new.call(), contents, user_id=OWNER) == ["one"]
    assert database.read(database.call(), backend, user_id=OWNER) == session


def backend(conn: Connection) -> int:
    return conn.info.backend_pid


def in_transaction(conn: Connection) -> list[str]:
    with conn.transaction():
        return contents(conn)


def test_a_transaction_behind_a_pooler_holds_up_the_switch(url: str, open_database: OpenDatabase) -> None:
    database = open_database(url, max_size=1, prepared_statements=False).in_space(OLD)
    own = open_database(url)
    begin(own)
    build(url)
    entered, may_go_on = threading.Event(), threading.Event()

    def work(conn: Connection) -> list[str]:
        with conn.transaction():
            entered.set()
            assert may_go_on.wait(LIMIT_S)
            return contents(conn)

    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(database.read, database.call(), work, user_id=OWNER)
        assert entered.wait(LIMIT_S)
        with pytest.raises(Conflict, match="in the way"):
            switch(url, lock_timeout_s=0.1)
        may_go_on.set()
        assert reading.result() == []


def test_a_database_without_a_schema_has_no_space(empty_database_url: str, open_database: OpenDatabase) -> None:
    with psycopg.connect(empty_database_url) as connection:
        connection.execute("CREATE EXTENSION vector")
    database = open_database(empty_database_url)
    assert database.read(database.call(), lambda conn: conn.space, user_id=ACROSS_USERS) is None
    with pytest.raises(EmbeddingSpaceChanged):
        database.in_space(OLD).read(database.in_space(OLD).call(), lambda conn: conn.space, user_id=ACROSS_USERS)
