"""Request ids: what was done once is answered again, not done again."""

import hashlib
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID, uuid4

import pytest

from db import insert, requests
from db.connection import Connection
from db.errors import DatabaseUnavailable, MemoryExists, RequestIdReused
from db.memory import NewMemory
from db.pool import Database
from db.requests import RequestKey
from db.wall import ACROSS_USERS
from tests.storage.concurrency import LIMIT_S, at_once
from tests.storage.sample_memories import LATER, NOW, new_memory, rows, store

EXPIRY = NOW + timedelta(hours=24)


def key_of(user_id: str, request_id: UUID, *, content: str = "content", expires_at: datetime = EXPIRY) -> RequestKey:
    return RequestKey(
        user_id=user_id,
        request_id=request_id,
        request_hash=hashlib.sha256(content.encode()).digest(),
        expires_at=expires_at,
    )


def insert_once(database: Database, key: RequestKey, memory: NewMemory, *, now: datetime = NOW) -> bytes:
    """Stores a memory under a request id; the reply is the memory's id."""

    def change(conn: Connection) -> bytes:
        def reply() -> bytes:
            insert.insert(conn, key.user_id, memory, now=now)
            return memory.id.bytes

        return requests.once(conn, key, reply, now=now)

    return database.write(database.call(), change, user_id=ACROSS_USERS)


def find(database: Database, key: RequestKey, *, now: datetime = NOW) -> bytes | None:
    return database.read(database.call(), lambda conn: requests.find(conn, key, now=now), user_id=ACROSS_USERS)


def stored_ids(database: Database, user_id: str) -> set[UUID]:
    return {row[0] for row in rows(database, b"SELECT id FROM memory_entries WHERE user_id = %s", [user_id])}


def test_repeated_request_gets_the_first_reply(database: Database, user_id: str) -> None:
    key, first, second = key_of(user_id, uuid4()), new_memory(), new_memory()
    assert find(database, key) is None
    assert insert_once(database, key, first) == first.id.bytes
    assert insert_once(database, key, second) == first.id.bytes
    assert find(database, key) == first.id.bytes
    assert stored_ids(database, user_id) == {first.id}


def test_other_content_under_the_same_id_is_refused(database: Database, user_id: str) -> None:
    request_id, first = uuid4(), new_memory()
    insert_once(database, key_of(user_id, request_id), first)
    other = key_of(user_id, request_id, content="other")
    with pytest.raises(RequestIdReused, match=str(request_id)):
        insert_once(database, other, new_memory())
    with pytest.raises(RequestIdReused):
        find(database, other)
    assert stored_ids(database, user_id) == {first.id}


def test_users_do_not_share_request_ids(database: Database, user_id: str) -> None:
    request_id, memory = uuid4(), new_memory()
    insert_once(database, key_of(user_id, request_id), memory)
    assert find(database, key_of(user_id + "2", request_id, content="other")) is None
    insert_once(database, key_of(user_id + "2", request_id, content="other"), memory)
    assert stored_ids(database, user_id + "2") == {memory.id}


def test_failed_change_is_not_remembered(database: Database, user_id: str) -> None:
    key, taken = key_of(user_id, uuid4()), new_memory()
    store(database, user_id + "2", taken)
    with pytest.raises(DatabaseUnavailable):
        database.write(database.call(), lambda conn: requests.once(conn, key, fail, now=NOW), user_id=user_id)
    assert rows(database, b"SELECT FROM users WHERE user_id = %s", [user_id]) == []
    assert find(database, key) is None

    store(database, user_id, taken)
    with pytest.raises(MemoryExists):
        insert_once(database, key, taken)
    assert find(database, key) is None
    memory = new_memory()
    assert insert_once(database, key, memory) == memory.id.bytes


def fail() -> bytes:
    raise DatabaseUnavailable("in the middle")


def test_concurrent_repetitions_store_one(database: Database, user_id: str) -> None:
    key = key_of(user_id, uuid4())
    memories = [new_memory() for _ in range(8)]
    ends = at_once([partial(insert_once, database, key, memory) for memory in memories])
    [reply] = {end.result() for end in ends}
    assert stored_ids(database, user_id) == {UUID(bytes=reply)}


def test_repetition_waits_for_the_first_to_fail(database: Database, user_id: str) -> None:
    key, memory = key_of(user_id, uuid4()), new_memory()
    claimed = threading.Event()

    def fail_slowly(conn: Connection) -> bytes:
        def change() -> bytes:
            claimed.set()
            conn.execute("SELECT pg_sleep(0.1)")
            return fail()

        return requests.once(conn, key, change, now=NOW)

    def repeat() -> bytes:
        assert claimed.wait(LIMIT_S)
        return insert_once(database, key, memory)

    attempts: list[Callable[[], bytes]] = [
        lambda: database.write(database.call(), fail_slowly, user_id=user_id),
        repeat,
    ]
    failed, repeated = at_once(attempts)
    assert isinstance(failed.exception(), DatabaseUnavailable)
    assert repeated.result() == memory.id.bytes


def test_expired_id_can_be_used_again(database: Database, user_id: str) -> None:
    request_id, first, second = uuid4(), new_memory(), new_memory()
    insert_once(database, key_of(user_id, request_id), first)
    again = key_of(user_id, request_id, content="other", expires_at=EXPIRY + timedelta(days=1))
    almost = EXPIRY - timedelta(microseconds=1)
    with pytest.raises(RequestIdReused):
        insert_once(database, again, second, now=almost)
    assert find(database, again, now=EXPIRY) is None
    assert insert_once(database, again, second, now=EXPIRY) == second.id.bytes
    assert find(database, again, now=EXPIRY) == second.id.bytes
    with pytest.raises(RequestIdReused):
        find(database, key_of(user_id, request_id), now=EXPIRY)


def test_purge_forgets_what_has_expired(database: Database, user_id: str) -> None:
    purge(database, now=EXPIRY)  # what other tests have left
    keys = [key_of(user_id, uuid4(), expires_at=NOW + timedelta(hours=hours)) for hours in (1, 1, 1, 2)]
    for key in keys:
        insert_once(database, key, new_memory())
    assert purge(database, now=NOW + timedelta(minutes=59)) == 0
    assert purge(database, now=LATER, limit=2) == 2
    assert purge(database, now=LATER, limit=2) == 1
    assert purge(database, now=LATER) == 0
    left = rows(database, b"SELECT request_id FROM request_ids WHERE user_id = %s", [user_id])
    assert left == [(keys[3].request_id,)]
    assert len(stored_ids(database, user_id)) == 4


def test_two_purgers_share_the_work(database: Database, user_id: str) -> None:
    purge(database, now=EXPIRY)
    for _ in range(60):
        insert_once(database, key_of(user_id, uuid4()), new_memory())

    def purge_all() -> int:
        total = 0
        while purged := purge(database, now=EXPIRY, limit=5):
            total += purged
        return total

    assert sum(end.result() for end in at_once([purge_all] * 2)) == 60


def purge(database: Database, *, now: datetime, limit: int = 500) -> int:
    return database.write(
        database.call(), lambda conn: requests.purge(conn, now=now, limit=limit), user_id=ACROSS_USERS
    )
