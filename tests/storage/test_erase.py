"""Erasing a user: everything goes, is counted and verified, whatever else happens at the time; others keep theirs."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID, uuid4

import pytest
from psycopg import sql

from db import ann_registry, audit, erase, fetch, insert, user_quotas
from db.access import Accesses, write_accesses
from db.audit import AuditEntry
from db.cancellation import Call
from db.connection import Connection
from db.erase import UserContents
from db.errors import CallCancelled, Conflict
from db.memory import NewMemory, View
from db.pool import Database
from db.requests import RequestKey, once
from db.user_quotas import UserQuota
from db.wall import ACROSS_USERS
from tests.storage.concurrency import LIMIT_S, Activity, wait_for
from tests.storage.sample_memories import NOW, new_memory, rows, soft_delete, store, stored

# The audit log outlives users; it holds nothing that they stored.
KEPT = {"audit_log"}


def tables_of_users(database: Database) -> set[str]:
    """Returns every table that has a column user_id, partitions aside."""
    found = rows(
        database,
        b"""SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
            WHERE a.attname = 'user_id' AND c.relkind IN ('r', 'p') AND NOT c.relispartition
                AND c.relnamespace = current_schema()::regnamespace""",
    )
    return {name for (name,) in found}


def rows_of(database: Database, user_id: str) -> dict[str, list[str]]:
    """Returns the user's rows, as texts, table by table."""
    return {
        table: sorted(
            text
            for (text,) in rows(
                database,
                sql.SQL("SELECT t::text FROM {} t WHERE user_id = %s").format(sql.Identifier(table)).as_bytes(None),
                [user_id],
            )
        )
        for table in tables_of_users(database)
    }


def erase_user(database: Database, user_id: str, call: Call | None = None) -> UserContents:
    return erase.erase(database, call or database.call(), user_id, now=NOW)


def remember_request(database: Database, user_id: str) -> None:
    key = RequestKey(user_id=user_id, request_id=uuid4(), request_hash=b"hash", expires_at=NOW + timedelta(hours=24))
    database.write(
        database.call(), lambda conn: once(conn, key, lambda: b"a reply with content", now=NOW), user_id=user_id
    )


def write_everywhere(database: Database, user_id: str) -> None:
    """Leaves rows of the user in every table."""
    memories = [new_memory(conversation_id=f"c{number % 3}") for number in range(5)]
    store(database, user_id, *memories, new_memory(embedding=None))
    soft_delete(database, user_id, memories[0].id)
    accesses = [((user_id, memory.id.int), Accesses(1, NOW)) for memory in memories[:2]]
    database.write(database.call(), lambda conn: write_accesses(conn, accesses), user_id=ACROSS_USERS)
    for _ in range(4):
        remember_request(database, user_id)
    index_name = f"memory_ann_{uuid4().hex[:16]}"
    entry = AuditEntry(at=NOW, id=uuid4(), subject="key:1", method="InsertVector", user_id=user_id, code="OK")

    quota = UserQuota(memories=1_000)

    def want(conn: Connection) -> None:
        user_quotas.write(conn, user_id, quota, now=NOW)
        ann_registry.want(conn, user_id, index_name, now=NOW)
        audit.write(conn, [entry])

    database.write(database.call(), want, user_id=ACROSS_USERS)


def insert_one(database: Database, user_id: str, memory: NewMemory) -> None:
    database.write(database.call(), lambda conn: insert.insert(conn, user_id, memory, now=NOW), user_id=user_id)


EVERYWHERE = UserContents(memories=6, conversations=3, access_counters=2, request_ids=4, embedding_jobs=1)


def test_nothing_is_left_in_any_table_and_another_user_keeps_all(database: Database, user_id: str) -> None:
    other = f"{user_id}-other"
    for each in (user_id, other):
        write_everywhere(database, each)
    before = rows_of(database, other)
    empty = [table for table, found in rows_of(database, user_id).items() if not found]
    assert not empty, "a table of users that this test does not write to"
    counted = database.read(database.call(), lambda conn: erase.count(conn, user_id), user_id=user_id)

    erased = erase_user(database, user_id)

    assert erased == counted == EVERYWHERE
    assert {table for table, found in rows_of(database, user_id).items() if found} == KEPT
    assert rows_of(database, other) == before


def test_the_tables_that_are_verified_are_all_there_are(database: Database) -> None:
    assert set(erase.TABLES) == tables_of_users(database) - KEPT


def test_a_user_that_is_not_there_is_erased_with_nothing_to_do(database: Database, user_id: str) -> None:
    assert erase_user(database, user_id) == UserContents()
    store(database, user_id, new_memory())
    assert erase_user(database, user_id).memories == 1
    assert erase_user(database, user_id) == UserContents()
    assert not any(rows_of(database, user_id).values())


def test_many_rows_go_in_batches(database: Database, user_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erase, "BATCH", 2)
    statements: list[int] = []
    take = erase._memories  # noqa: SLF001 - watched, not replaced

    def watched(conn: Connection, of: str, start: erase.Key) -> erase._Batch:
        statements.append(1)
        return take(conn, of, start)

    monkeypatch.setattr(erase, "_memories", watched)
    write_everywhere(database, user_id)

    assert erase_user(database, user_id) == EVERYWHERE
    assert len(statements) > EVERYWHERE.memories / 2
    assert {table for table, found in rows_of(database, user_id).items() if found} == KEPT


@pytest.mark.parametrize("batch", [3, 1_000])
def test_writers_at_the_same_time_leave_nothing_from_before_its_end(
    database: Database, user_id: str, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(erase, "BATCH", batch)
    acknowledged: list[UUID] = []
    ending = threading.Event()

    def keep_inserting() -> None:
        while not ending.is_set():
            memory = new_memory(conversation_id="c")
            try:
                insert_one(database, user_id, memory)
            except Conflict:  # it had seen the user's row before it was deleted
                continue
            acknowledged.append(memory.id)

    writers = [threading.Thread(target=keep_inserting) for _ in range(3)]
    for writer in writers:
        writer.start()
    wait_for(lambda: len(acknowledged) >= 30)
    before = set(acknowledged)
    erased = erase_user(database, user_id)
    after = len(acknowledged)
    wait_for(lambda: len(acknowledged) >= after + 3)  # the user begins anew
    ending.set()
    for writer in writers:
        writer.join()

    left = {row[0] for row in rows(database, b"SELECT id FROM memory_entries WHERE user_id = %s", [user_id])}
    assert erased.memories >= len(before)
    assert not left & before
    # Each one acknowledged was either erased or is there: none went uncounted.
    assert len(acknowledged) == erased.memories + len(left)
    assert erase_user(database, user_id).memories == len(left)


def test_a_write_that_has_begun_is_waited_for_and_erased(database: Database, activity: Activity, user_id: str) -> None:
    stored(database, user_id)
    written, may_commit = threading.Event(), threading.Event()

    def write_slowly(conn: Connection) -> None:
        with conn.transaction():
            memory = new_memory()
            insert.insert(conn, user_id, memory, now=NOW)
            fetch.fetch(conn, user_id, memory.id, view=View.HEAD)  # the statements before have run, then
            written.set()
            may_commit.wait(LIMIT_S)

    with ThreadPoolExecutor(2) as threads:
        writing = threads.submit(database.write, database.call(), write_slowly, user_id=user_id)
        assert written.wait(LIMIT_S)
        erasing = threads.submit(erase_user, database, user_id)
        activity.wait_until_blocked("erase.lock")
        may_commit.set()
        writing.result()
        assert erasing.result().memories == 2

    assert not any(rows_of(database, user_id).values())


def set_quota(database: Database, user_id: str) -> None:
    database.write(
        database.call(),
        lambda conn: user_quotas.write(conn, user_id, UserQuota(memories=9), now=NOW),
        user_id=ACROSS_USERS,
    )


@pytest.mark.parametrize(
    ("write", "statement", "table"),
    [
        (partial(insert_one, memory=new_memory()), "insert.one", "memory_entries"),
        (set_quota, "user_quotas.write", "user_quotas"),
    ],
    ids=["insert", "quota"],
)
def test_a_write_that_comes_at_the_end_waits_and_begins_the_user_anew(
    database: Database,
    activity: Activity,
    user_id: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    write: Callable[[Database, str], None],
    statement: str,
    table: str,
) -> None:
    stored(database, user_id)
    take = erase._request_ids  # noqa: SLF001 - watched, not replaced
    finish = erase.finish
    writers: list[Future[None]] = []

    with ThreadPoolExecutor(1) as threads:

        def with_a_writer(conn: Connection, of: str, start: erase.Key) -> erase._Batch:
            writers.append(threads.submit(write, database, user_id))
            activity.wait_until_blocked(statement)
            return take(conn, of, start)

        def finish_with_a_writer(conn: Connection, of: str, now: datetime) -> UserContents:
            monkeypatch.setattr(erase, "_request_ids", with_a_writer)
            return finish(conn, of, now)

        monkeypatch.setattr(erase, "finish", finish_with_a_writer)
        erased = erase_user(database, user_id)
        [writer] = writers
        refused = writer.exception()

    assert erased.memories == 1
    left = rows_of(database, user_id)[table]
    # It may have seen the user's row before it was deleted; then it stores nothing, and says so.
    assert len(left) == (0 if isinstance(refused, Conflict) else 1)
    assert refused is None or isinstance(refused, Conflict)


def test_cancelled_it_stops_and_goes_on_when_called_again(
    database: Database, user_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erase, "BATCH", 2)
    write_everywhere(database, user_id)
    call = database.call()
    take = erase._memories  # noqa: SLF001 - watched, not replaced

    def once_and_cancelled(conn: Connection, of: str, start: erase.Key) -> erase._Batch:
        batch = take(conn, of, start)
        call.cancel()
        return batch

    monkeypatch.setattr(erase, "_memories", once_and_cancelled)
    with pytest.raises(CallCancelled):
        erase_user(database, user_id, call)
    monkeypatch.setattr(erase, "_memories", take)
    left = rows(database, b"SELECT FROM memory_entries WHERE user_id = %s", [user_id])
    assert 0 < len(left) < EVERYWHERE.memories

    assert erase_user(database, user_id).memories == len(left)
    assert {table for table, found in rows_of(database, user_id).items() if found} == KEPT


ERASE_SLOWLY = """
import sys, time
from db import erase
from db.pool import Database, PoolOptions
from datetime import UTC, datetime

database = Database(sys.argv[1], PoolOptions(min_size=1, max_size=1))
database.open()
erase.BATCH = 2
take = erase._memories

def slowly(*arguments):
    batch = take(*arguments)
    print("erased", batch.erased.memories, flush=True)
    time.sleep(0.05)
    return batch

erase._memories = slowly
erase.erase(database, database.call(), sys.argv[2], now=datetime.now(UTC))
"""


def test_killed_it_leaves_what_it_had_not_come_to_and_goes_on(
    database: Database, module_database_url: str, user_id: str
) -> None:
    write_everywhere(database, user_id)
    arguments = [sys.executable, "-c", ERASE_SLOWLY, module_database_url, user_id]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "erased 2\n"
        os.kill(process.pid, signal.SIGKILL)

    def settled() -> int:
        return len(rows(database, b"SELECT FROM memory_entries WHERE user_id = %s", [user_id]))

    assert 0 < settled() < EVERYWHERE.memories
    assert erase_user(database, user_id).memories > 0
    assert {table for table, found in rows_of(database, user_id).items() if found} == KEPT


def test_a_batch_reads_ranges_of_ids_however_small_the_planner_takes_the_user_to_be(
    database: Database, user_id: str
) -> None:
    store(database, user_id, *[new_memory() for _ in range(3)])
    parameters = {"user_id": user_id, "start": UUID(int=0), "limit": 1_000}

    def explain(conn: Connection) -> str:
        plan = conn.execute(b"EXPLAIN " + erase.MEMORIES.encode(), parameters)
        return "\n".join(line for (line,) in plan.fetchall())

    text = database.read(database.call(), explain, user_id=user_id)
    for table in ("memory_entries", "memory_access", "embedding_jobs"):
        assert f"using {table}_pkey" in text
    assert text.count("id <= (") == 3
    assert "Join" not in text
    assert "Nested Loop" not in text
