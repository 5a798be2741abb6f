"""Deleting, restoring and purging."""

from datetime import datetime, timedelta
from functools import partial
from uuid import UUID, uuid4

import psycopg
import pytest

from db import delete
from db.access import Accesses, write_accesses
from db.errors import EtagMismatch, MemoryNotDeleted, MemoryNotFound
from db.memory import Memory
from db.pool import Database
from db.wall import ACROSS_USERS
from tests.storage.concurrency import at_once
from tests.storage.sample_memories import (
    LATER,
    NOW,
    PURGE_AT,
    hard_delete,
    new_memory,
    read,
    rows,
    soft_delete,
    store,
    stored,
)


def restore(database: Database, user_id: str, memory_id: UUID, *, etag: str = "") -> Memory:
    return database.write(
        database.call(), lambda conn: delete.restore(conn, user_id, memory_id, etag=etag, now=LATER), user_id=user_id
    )


def purge(database: Database, now: datetime, *, limit: int = 500) -> int:
    return database.write(database.call(), lambda conn: delete.purge(conn, now=now, limit=limit), user_id=ACROSS_USERS)


def test_soft_deletion_is_reported_as_stored(database: Database, user_id: str) -> None:
    memory_id = stored(database, user_id, content="kept")
    reported = soft_delete(database, user_id, memory_id)
    found = read(database, user_id, memory_id)
    for state in (reported, found):
        assert (state.deleted_at, state.purge_at, state.updated_at, state.version) == (LATER, PURGE_AT, LATER, 2)
    assert (reported.content, found.content) == (None, "kept")
    assert reported.etag == found.etag


def test_deleted_memory_is_not_deleted_again(database: Database, user_id: str) -> None:
    memory_id = stored(database, user_id)
    soft_delete(database, user_id, memory_id)
    with pytest.raises(MemoryNotFound, match="deleted already"):
        soft_delete(database, user_id, memory_id, purge_at=PURGE_AT + timedelta(days=1))
    assert read(database, user_id, memory_id).purge_at == PURGE_AT


def test_restored_memory_is_as_before(database: Database, user_id: str) -> None:
    memory_id = stored(database, user_id, content="kept", conversation_id="c")
    before = read(database, user_id, memory_id)
    soft_delete(database, user_id, memory_id)
    reported = restore(database, user_id, memory_id)
    found = read(database, user_id, memory_id)
    assert (found.deleted_at, found.purge_at, found.version) == (None, None, before.version + 2)
    assert (found.content, found.conversation_id, found.created_at) == ("kept", "c", before.created_at)
    assert (reported.content, reported.etag, reported.deleted_at) == ("kept", found.etag, None)


def test_what_cannot_be_restored(database: Database, user_id: str) -> None:
    memory_id = stored(database, user_id)
    with pytest.raises(MemoryNotDeleted):
        restore(database, user_id, memory_id)
    with pytest.raises(MemoryNotFound):
        restore(database, user_id, uuid4())
    hard_delete(database, user_id, memory_id)
    with pytest.raises(MemoryNotFound):
        restore(database, user_id, memory_id)


@pytest.mark.parametrize("softly_first", [False, True])
def test_hard_deletion_erases_everything(database: Database, user_id: str, *, softly_first: bool) -> None:
    memory_id, other_id = stored(database, user_id), stored(database, user_id)
    accesses = [((user_id, memory_id.int), Accesses(1, NOW))]
    database.write(database.call(), lambda conn: write_accesses(conn, accesses), user_id=ACROSS_USERS)
    if softly_first:
        soft_delete(database, user_id, memory_id)
    last = read(database, user_id, memory_id)
    assert hard_delete(database, user_id, memory_id).etag == last.etag
    assert rows(database, b"SELECT id FROM memory_entries WHERE user_id = %s", [user_id]) == [(other_id,)]
    assert rows(database, b"SELECT FROM memory_access WHERE user_id = %s", [user_id]) == []
    with pytest.raises(MemoryNotFound):
        hard_delete(database, user_id, memory_id)


def test_memory_of_another_user_is_out_of_reach(database: Database, user_id: str) -> None:
    memory_id = stored(database, user_id)
    soft_delete(database, user_id, memory_id)
    stranger = user_id + "2"
    stored(database, stranger)
    for attempt in (soft_delete, hard_delete, restore):
        with pytest.raises(MemoryNotFound):
            attempt(database, stranger, memory_id)
    assert read(database, user_id, memory_id).version == 2


def test_etags_are_checked(database: Database, user_id: str) -> None:
    memory_id = stored(database, user_id)
    first = read(database, user_id, memory_id).etag

    def attempts(etag: str) -> list[partial[Memory]]:
        soft = partial(delete.soft_delete, now=LATER, purge_at=PURGE_AT)
        return [
            partial(attempt, user_id=user_id, memory_id=memory_id, etag=etag)
            for attempt in (soft, delete.hard_delete, partial(delete.restore, now=LATER))
        ]

    for attempt in attempts("0-0"):
        with pytest.raises(EtagMismatch):
            database.write(database.call(), attempt, user_id=user_id)
    soft, _, _ = attempts(first)
    second = database.write(database.call(), soft, user_id=user_id).etag
    _, hard, back = attempts(first)
    for attempt in (hard, back):
        with pytest.raises(EtagMismatch):
            database.write(database.call(), attempt, user_id=user_id)
    third = restore(database, user_id, memory_id, etag=second).etag
    _, hard, _ = attempts(third)
    assert database.write(database.call(), hard, user_id=user_id).etag == third


def test_one_of_concurrent_deletions_wins(database: Database, user_id: str) -> None:
    memory_id = stored(database, user_id)
    ends = at_once([partial(soft_delete, database, user_id, memory_id)] * 4)
    assert sorted(type(end.exception()).__name__ for end in ends) == ["MemoryNotFound"] * 3 + ["NoneType"]
    ends = at_once([partial(hard_delete, database, user_id, memory_id)] * 4)
    assert sorted(type(end.exception()).__name__ for end in ends) == ["MemoryNotFound"] * 3 + ["NoneType"]


def test_purge_takes_what_is_due_and_nothing_else(database: Database, user_id: str) -> None:
    due, just_due, not_yet, live, other_user_s = (new_memory() for _ in range(5))
    store(database, user_id, due, just_due, not_yet, live)
    store(database, user_id + "2", other_user_s)
    purge(database, PURGE_AT)  # what other tests have left
    soft_delete(database, user_id, due.id, purge_at=PURGE_AT - timedelta(days=1))
    soft_delete(database, user_id, just_due.id, purge_at=PURGE_AT)
    soft_delete(database, user_id, not_yet.id, purge_at=PURGE_AT + timedelta(microseconds=1))
    soft_delete(database, user_id + "2", other_user_s.id, purge_at=PURGE_AT)

    assert purge(database, PURGE_AT) == 3
    assert purge(database, PURGE_AT) == 0
    left = rows(database, b"SELECT id FROM memory_entries WHERE starts_with(user_id, %s)", [user_id])
    assert {row[0] for row in left} == {not_yet.id, live.id}
    assert read(database, user_id, live.id).version == 1


def doomed(database: Database, user_id: str, count: int) -> None:
    memories = [new_memory() for _ in range(count)]
    store(database, user_id, *memories)
    for memory in memories:
        soft_delete(database, user_id, memory.id)


@pytest.mark.parametrize("count", [3, 400])
def test_purge_keeps_to_its_limit(database: Database, user_id: str, count: int) -> None:
    purge(database, PURGE_AT)
    doomed(database, user_id, count)
    assert purge(database, PURGE_AT, limit=2) == 2
    assert len(rows(database, b"SELECT FROM memory_entries WHERE user_id = %s", [user_id])) == count - 2


def test_two_purgers_share_the_work(database: Database, user_id: str) -> None:
    purge(database, PURGE_AT)
    doomed(database, user_id, 300)

    def purge_all() -> int:
        total = 0
        while purged := purge(database, PURGE_AT, limit=20):
            total += purged
        return total

    ends = at_once([purge_all] * 2)
    assert sum(end.result() for end in ends) == 300
    assert rows(database, b"SELECT FROM memory_entries WHERE user_id = %s", [user_id]) == []


def test_purge_leaves_out_what_is_being_restored(database: Database, user_id: str, module_database_url: str) -> None:
    purge(database, PURGE_AT)
    doomed(database, user_id, 2)
    with psycopg.connect(module_database_url) as restoring:
        restoring.execute(
            "UPDATE memory_entries SET deleted_at = NULL, purge_at = NULL WHERE user_id = %s AND id = "
            "(SELECT id FROM memory_entries WHERE user_id = %s LIMIT 1)",
            [user_id, user_id],
        )
        assert purge(database, PURGE_AT) == 1
    [left] = rows(database, b"SELECT deleted_at FROM memory_entries WHERE user_id = %s", [user_id])
    assert left == (None,)
