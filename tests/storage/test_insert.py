"""Storing memories: every field, all or none, and many callers at the same time."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import uuid4

import numpy as np
import psycopg
import pytest

from db import insert
from db.connection import Connection
from db.errors import Conflict, InvalidValue, MemoryExists
from db.memory import EmbeddingState, Memory, NewMemory, View, etag
from db.pool import Database
from db.requests import RequestKey, once
from db.vectors import normalize
from db.wall import ACROSS_USERS
from tests.storage.concurrency import LIMIT_S, Activity, at_once, deadlocks, wait_for
from tests.storage.conftest import OpenDatabase
from tests.storage.sample_memories import (
    LATER,
    NOW,
    PURGE_AT,
    embedding_of,
    new_memory,
    random_vector,
    read,
    rows,
    soft_delete,
    store,
)

Insert = Callable[[Database, str, NewMemory], None]


def one_by_one(database: Database, user_id: str, memory: NewMemory) -> None:
    database.write(database.call(), lambda conn: insert.insert(conn, user_id, memory, now=NOW), user_id=user_id)


def as_a_batch(database: Database, user_id: str, memory: NewMemory) -> None:
    store(database, user_id, memory)


def count(database: Database, user_id: str) -> int:
    return len(rows(database, b"SELECT FROM memory_entries WHERE user_id = %s", [user_id]))


@pytest.fixture(params=[one_by_one, as_a_batch])
def insert_memory(request: pytest.FixtureRequest) -> Insert:
    """Both ways to store a memory: they keep what is said here alike."""
    way: Insert = request.param
    return way


def test_every_field_comes_back(database: Database, user_id: str, insert_memory: Insert) -> None:
    embedding = normalize(random_vector(1))
    memory = new_memory(
        conversation_id="c-1",
        content="Zürich \N{SNOWMAN} 雪 \N{SLEUTH OR SPY}",
        summary="short",
        metadata={"a": [1, 2.5, None, True, {"deep": ""}], "": {}},
        embedding=embedding,
        embedding_model="some-model",
        importance=10,
        created_at=NOW - timedelta(days=400, microseconds=1),
        language="german",
    )
    insert_memory(database, user_id, memory)

    found = read(database, user_id, memory.id)
    assert found.embedding is not None
    assert found.embedding.norm == embedding.norm
    assert found.embedding.unit.tobytes() == embedding.unit.tobytes()
    assert found == Memory(
        id=memory.id,
        user_id=user_id,
        conversation_id="c-1",
        importance=10,
        version=1,
        embedding_model="some-model",
        created_at=memory.created_at,
        updated_at=NOW,
        deleted_at=None,
        purge_at=None,
        access_count=0,
        last_accessed_at=None,
        content=memory.content,
        summary="short",
        metadata=memory.metadata,
        language="german",
        superseded_by=None,
        embedding_state=EmbeddingState.READY,
        embedding=found.embedding,
    )
    assert found.etag == etag(1, NOW)


@pytest.mark.parametrize("year", [1, 1969, 9999])
def test_created_in_any_year(database: Database, user_id: str, insert_memory: Insert, year: int) -> None:
    memory = new_memory(created_at=datetime(year, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC))
    insert_memory(database, user_id, memory)
    assert read(database, user_id, memory.id).created_at == memory.created_at


@pytest.mark.parametrize("dimensions", [8, 3072])
def test_the_largest_memory_fits(
    new_database: Callable[..., str], open_database: OpenDatabase, insert_memory: Insert, dimensions: int
) -> None:
    database = open_database(new_database(dimensions=dimensions))
    random = np.random.default_rng(2)

    def noise(size: int) -> str:  # what does not compress
        return random.bytes(size // 2).hex()

    memory = new_memory(
        conversation_id="\N{SNOWMAN}" * 255,
        content=noise(64 * 1_024),
        summary=noise(16 * 1_024),
        metadata={"noise": noise(16 * 1_024 - 12)},
        embedding=normalize(random_vector(3, dimensions=dimensions)),
    )
    owner = "\N{GRINNING FACE}" * 255
    insert_memory(database, owner, memory)
    found = read(database, owner, memory.id)
    assert (found.user_id, found.conversation_id) == (owner, memory.conversation_id)
    assert (found.content, found.summary, found.metadata) == (memory.content, memory.summary, memory.metadata)
    assert found.embedding is not None
    assert found.embedding.unit.tobytes() == embedding_of(memory).unit.tobytes()


@pytest.mark.parametrize("deleted", [False, True])
def test_taken_id_is_refused(database: Database, user_id: str, insert_memory: Insert, *, deleted: bool) -> None:
    memory = new_memory(content="first")
    insert_memory(database, user_id, memory)
    if deleted:
        soft_delete(database, user_id, memory.id, purge_at=PURGE_AT)
    with pytest.raises(MemoryExists, match=str(memory.id)):
        insert_memory(database, user_id, new_memory(id=memory.id, content="second"))
    assert read(database, user_id, memory.id).content == "first"


def test_users_may_have_the_same_id(database: Database, user_id: str, insert_memory: Insert) -> None:
    memory = new_memory(content="mine")
    insert_memory(database, user_id, memory)
    insert_memory(database, user_id + "2", new_memory(id=memory.id, content="theirs"))
    assert read(database, user_id, memory.id).content == "mine"


def test_batch_with_taken_ids_stores_nothing_and_names_the_first(database: Database, user_id: str) -> None:
    taken = [new_memory(), new_memory()]
    store(database, user_id, *taken)
    batch = [new_memory(conversation_id="new"), new_memory(id=taken[1].id), new_memory(), new_memory(id=taken[0].id)]
    with pytest.raises(MemoryExists, match=str(taken[1].id)) as caught:
        store(database, user_id, *batch)
    assert caught.value.index == 1
    assert count(database, user_id) == 2
    assert rows(database, b"SELECT FROM conversations WHERE user_id = %s", [user_id]) == []


def test_batch_with_an_id_twice_stores_nothing(database: Database, user_id: str) -> None:
    memory = new_memory()
    with pytest.raises((Conflict, MemoryExists)):
        store(database, user_id, new_memory(), memory, memory)
    assert rows(database, b"SELECT FROM users WHERE user_id = %s", [user_id]) == []


def test_batch_that_loses_a_race_for_an_id_stores_nothing(database: Database, user_id: str) -> None:
    contested = new_memory()
    batches = [[new_memory(), contested, new_memory()] for _ in range(4)]
    ends = at_once([partial(store, database, user_id, *batch) for batch in batches])
    errors = [end.exception() for end in ends if end.exception() is not None]
    assert [(type(error), getattr(error, "index", None)) for error in errors] == [(MemoryExists, 1)] * 3
    assert count(database, user_id) == 3


def test_batch_that_waited_for_an_id_names_it(
    database: Database, user_id: str, module_database_url: str, activity: Activity
) -> None:
    first = new_memory()
    store(database, user_id, first)
    batch = [new_memory(), new_memory()]
    with ThreadPoolExecutor(1) as threads, psycopg.connect(module_database_url) as other:
        other.execute("UPDATE memory_entries SET id = %s WHERE id = %s", [batch[1].id, first.id])
        storing = threads.submit(store, database, user_id, *batch)
        activity.wait_until_blocked("bulk_insert.rows")  # it has looked, and found the id free
        other.commit()
        error = storing.exception()
    assert isinstance(error, MemoryExists)
    assert error.index == 1
    assert count(database, user_id) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"content": "a\0b"},
        {"summary": "\0"},
        {"conversation_id": "c\0"},
        {"metadata": {"key": "\0"}},
        {"metadata": {"\0": 1}},
        {"embedding_model": "\0"},
        {"importance": 0},
        {"importance": 11},
        {"metadata": {"nan": float("nan")}},
        {"embedding": normalize(random_vector(4, dimensions=9))},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_refused_values_leave_nothing_behind(
    database: Database, user_id: str, insert_memory: Insert, wrong: dict[str, Any]
) -> None:
    with pytest.raises(InvalidValue) as caught:
        insert_memory(database, user_id, new_memory(**wrong))
    assert str(caught.value) in {"the database refused a value", "a value is out of range"}
    assert rows(database, b"SELECT FROM users WHERE user_id = %s", [user_id]) == []
    insert_memory(database, user_id, new_memory())
    assert count(database, user_id) == 1


def test_user_id_with_nul_is_refused(database: Database, insert_memory: Insert) -> None:
    with pytest.raises(InvalidValue):
        insert_memory(database, "a\0b", new_memory())


def test_batch_with_one_refused_value_stores_nothing(database: Database, user_id: str) -> None:
    with pytest.raises(InvalidValue):
        store(database, user_id, new_memory(), new_memory(importance=11), new_memory())
    assert count(database, user_id) == 0


def under_a_request_id(database: Database, user_id: str, memory: NewMemory) -> None:
    key = RequestKey(user_id=user_id, request_id=uuid4(), request_hash=b"hash", expires_at=LATER)

    def change(conn: Connection) -> None:
        def reply() -> bytes:
            insert.insert(conn, user_id, memory, now=NOW)
            return b""

        once(conn, key, reply, now=NOW)

    database.write(database.call(), change, user_id=user_id)


@pytest.mark.parametrize(
    "ways",
    [[one_by_one], [as_a_batch], [one_by_one, as_a_batch], [one_by_one, as_a_batch, under_a_request_id]],
    ids=lambda ways: "-".join(way.__name__ for way in ways),
)
def test_many_callers_bring_the_same_new_user_and_conversation(
    database: Database, user_id: str, ways: list[Insert]
) -> None:
    memories = [new_memory(conversation_id="shared", content=str(index)) for index in range(8)]
    ends = at_once(
        [partial(ways[index % len(ways)], database, user_id, memory) for index, memory in enumerate(memories)]
    )
    for end in ends:
        end.result()
    assert count(database, user_id) == 8
    assert len(rows(database, b"SELECT FROM conversations WHERE user_id = %s", [user_id])) == 1
    contents = {read(database, user_id, memory.id, view=View.BASIC).content for memory in memories}
    assert contents == {str(index) for index in range(8)}


def test_first_calls_of_a_user_lock_in_one_order(
    database_url: str, open_database: OpenDatabase, activity_of: Callable[[str], Activity], insert_memory: Insert
) -> None:
    database = open_database(database_url)
    activity = activity_of(database_url)
    claimed = threading.Event()
    key = RequestKey(user_id="u", request_id=uuid4(), request_hash=b"hash", expires_at=LATER)

    def claim_then_insert(conn: Connection) -> None:
        def reply() -> bytes:
            claimed.set()
            wait_for(lambda: activity.blocked("insert.one") or activity.blocked("insert.owners"))
            insert.insert(conn, "u", new_memory(conversation_id="c"), now=NOW)
            return b""

        once(conn, key, reply, now=NOW)

    with ThreadPoolExecutor(1) as threads:
        claiming = threads.submit(database.write, database.call(), claim_then_insert, user_id=ACROSS_USERS)
        assert claimed.wait(LIMIT_S)
        insert_memory(database, "u", new_memory(conversation_id="c"))
        claiming.result()
    database.close()
    activity.close()
    assert deadlocks(database_url) == 0


def test_same_new_conversations_are_stored_in_one_order(database_url: str, open_database: OpenDatabase) -> None:
    database = open_database(database_url)
    store(database, "u", new_memory())

    # The statement alone: in insert_batch the order is that of a set, which differs between processes only.
    def add(conversation_ids: list[str]) -> None:
        parameters = {"user_id": "u", "conversation_ids": conversation_ids, "now": NOW}
        database.write(database.call(), lambda conn: conn.query(insert.OWNERS, parameters), user_id=ACROSS_USERS)

    for batch in range(4):
        orders = [np.random.default_rng(seed).permutation(1_000) for seed in range(4)]
        same = [[f"{batch}-{number}" for number in order] for order in orders]
        for end in at_once([partial(add, conversation_ids) for conversation_ids in same]):
            end.result()
    assert len(rows(database, b"SELECT FROM conversations")) == 4_000
    database.close()
    assert deadlocks(database_url) == 0
