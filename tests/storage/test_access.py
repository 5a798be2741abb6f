"""Counting accesses: nothing is counted twice, and little is lost."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import numpy as np
import psycopg
import pytest
import structlog

from db import access, migrate
from db.access import AccessBuffer
from db.embedded import EmbeddedPostgres
from db.errors import DatabaseError
from db.pool import Database
from db.schema import EmbeddingSpace
from tests.fix_database import FAST
from tests.storage.concurrency import Activity, at_once, deadlocks, wait_for
from tests.storage.conftest import OpenDatabase
from tests.storage.sample_memories import DIMENSIONS, LATER, NOW, hard_delete, new_memory, read, rows, store, stored


@pytest.fixture
def buffer(database: Database) -> AccessBuffer:
    """A buffer whose thread is not started: it writes when the test says so."""
    return AccessBuffer(database, flush_interval_s=3_600)


def counted(database: Database, user_id: str, memory_id: UUID) -> int:
    return read(database, user_id, memory_id).access_count


def test_accesses_add_up_over_flushes(database: Database, user_id: str, buffer: AccessBuffer) -> None:
    one, other = stored(database, user_id), stored(database, user_id)
    buffer.record(user_id, [one, other], at=NOW)
    buffer.record(user_id, [one], at=LATER)
    assert counted(database, user_id, one) == 0
    buffer.flush()
    buffer.flush()
    buffer.record(user_id, [one], at=NOW)
    buffer.flush()
    found = read(database, user_id, one)
    assert (found.access_count, found.last_accessed_at) == (3, LATER)
    found = read(database, user_id, other)
    assert (found.access_count, found.last_accessed_at) == (1, NOW)
    assert (found.version, found.updated_at) == (1, NOW)


def test_users_are_counted_apart(database: Database, user_id: str, buffer: AccessBuffer) -> None:
    memory = new_memory()
    for owner in (user_id, user_id + "2"):
        store(database, owner, memory)
    buffer.record(user_id, [memory.id], at=NOW)
    buffer.flush()
    assert counted(database, user_id, memory.id) == 1
    assert counted(database, user_id + "2", memory.id) == 0


def test_erased_and_unknown_memories_are_skipped(database: Database, user_id: str, buffer: AccessBuffer) -> None:
    kept, erased = stored(database, user_id), stored(database, user_id)
    buffer.record(user_id, [erased, kept, uuid4()], at=NOW)
    buffer.record("nobody", [kept], at=NOW)
    hard_delete(database, user_id, erased)
    buffer.flush()
    assert rows(database, b"SELECT id, access_count FROM memory_access WHERE user_id = %s", [user_id]) == [(kept, 1)]


def test_memory_erased_during_a_flush_does_not_cost_the_others(
    database: Database, user_id: str, buffer: AccessBuffer, module_database_url: str, activity: Activity
) -> None:
    kept, erased = stored(database, user_id), stored(database, user_id)
    buffer.record(user_id, [kept, erased], at=NOW)
    with ThreadPoolExecutor(1) as threads, psycopg.connect(module_database_url) as erasing:
        erasing.execute("DELETE FROM memory_entries WHERE user_id = %s AND id = %s", [user_id, erased])
        flushing = threads.submit(buffer.flush)
        activity.wait_until_blocked("access.flush")  # it has seen the memory, and checks its foreign key
        erasing.commit()
        flushing.result()
    assert counted(database, user_id, kept) == 1


def test_more_than_one_batch(
    database: Database, user_id: str, buffer: AccessBuffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "FLUSH_ROWS", 3)
    memories = [new_memory() for _ in range(10)]
    store(database, user_id, *memories)
    buffer.record(user_id, [memory.id for memory in memories], at=NOW)
    buffer.flush()
    assert {counted(database, user_id, memory.id) for memory in memories} == {1}


def test_what_cannot_be_written_is_kept(
    database_url: str, open_database: OpenDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "FLUSH_ROWS", 2)
    database = open_database(database_url)
    memories = [new_memory() for _ in range(5)]
    store(database, "u", *memories)
    buffer = AccessBuffer(database, flush_interval_s=3_600)
    buffer.record("u", [memory.id for memory in memories], at=NOW)
    with psycopg.connect(database_url, autocommit=True) as operator:
        operator.execute("ALTER TABLE memory_access RENAME TO elsewhere")
        for _ in range(2):
            with pytest.raises(DatabaseError):
                buffer.flush()
        buffer.record("u", [memories[0].id], at=LATER)
        operator.execute("ALTER TABLE elsewhere RENAME TO memory_access")
    buffer.flush()
    assert [counted(database, "u", memory.id) for memory in memories] == [2, 1, 1, 1, 1]
    assert read(database, "u", memories[0].id).last_accessed_at == LATER


def test_thread_writes_by_itself_and_when_closed(database: Database, user_id: str) -> None:
    memory_id = stored(database, user_id)
    buffer = AccessBuffer(database, flush_interval_s=0.02)
    buffer.start()
    buffer.record(user_id, [memory_id], at=NOW)
    wait_for(lambda: counted(database, user_id, memory_id) == 1)
    buffer.close()

    patient = AccessBuffer(database, flush_interval_s=3_600)
    patient.start()
    patient.record(user_id, [memory_id], at=NOW)
    patient.close()
    assert counted(database, user_id, memory_id) == 2


def test_nothing_noted_nothing_written(database: Database, buffer: AccessBuffer) -> None:
    before = database.statistics().get("requests_num", 0)
    buffer.record("u", [], at=NOW)
    buffer.flush()
    assert database.statistics().get("requests_num", 0) == before


def test_buffer_does_not_grow_without_end(
    database: Database, user_id: str, buffer: AccessBuffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "MAX_NOTED", 2)
    ids = [stored(database, user_id) for _ in range(4)]
    buffer.record(user_id, [*ids, *ids], at=NOW)
    with structlog.testing.capture_logs() as events:
        buffer.flush()
        buffer.flush()
    assert [(event["event"], event["count"]) for event in events] == [("accesses_not_counted", 4)]
    assert sorted(counted(database, user_id, memory_id) for memory_id in ids) == [0, 0, 2, 2]


def test_processes_flush_the_same_memories_without_deadlock(database_url: str, open_database: OpenDatabase) -> None:
    database = open_database(database_url)
    memories = [new_memory() for _ in range(1_000)]
    store(database, "u", *memories)
    ids = [memory.id for memory in memories]

    def work(shift: int) -> None:
        buffer = AccessBuffer(database, flush_interval_s=3_600)
        for _ in range(10):
            buffer.record("u", ids[shift:] + ids[:shift], at=NOW + timedelta(seconds=shift))
            buffer.flush()

    for end in at_once([partial(work, 250 * number) for number in range(4)]):
        end.result()
    found = rows(database, b"SELECT DISTINCT access_count, last_accessed_at FROM memory_access")
    assert found == [(40, NOW + timedelta(seconds=750))]
    database.close()
    assert deadlocks(database_url) == 0


def test_recording_while_flushing_loses_nothing(database: Database, user_id: str, buffer: AccessBuffer) -> None:
    memory_id = stored(database, user_id)
    ended = threading.Event()

    def record() -> None:
        for _ in range(2_000):
            buffer.record(user_id, [memory_id], at=NOW)
        ended.set()

    def flush() -> None:
        while not ended.is_set():
            buffer.flush()

    for end in at_once([record, flush]):
        end.result()
    buffer.flush()
    assert counted(database, user_id, memory_id) == 2_000


def test_counters_are_updated_in_place(data_dir: Path, open_database: OpenDatabase) -> None:
    # On a server of its own: a transaction in any database of a server delays the reuse of space in all of them.
    server = EmbeddedPostgres.start(data_dir, settings=FAST)
    migrate.upgrade(server.url, EmbeddingSpace("test-model", DIMENSIONS))
    database = open_database(server.url, max_size=1)
    memories = [new_memory() for _ in range(500)]
    store(database, "u", *memories)
    buffer = AccessBuffer(database, flush_interval_s=3_600)
    buffer.record("u", [memory.id for memory in memories], at=NOW)
    buffer.flush()
    # What a second of searches returns is few of the memories that share a page.
    some = np.random.default_rng(7)
    for _ in range(40):
        buffer.record("u", [memories[index].id for index in some.choice(500, 25, replace=False)], at=LATER)
        buffer.flush()
    rows(database, b"SELECT pg_stat_force_next_flush()")
    statement = b"SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'memory_access'"
    [(updated, in_place)] = rows(database, statement)
    assert updated == 1_000
    assert in_place >= 990  # all of them, unless autovacuum looks on
    database.close()
    server.close()
