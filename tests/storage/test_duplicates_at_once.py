"""Policies for duplicates while others write: nothing is stored twice, nobody deadlocks, nothing is half-written."""

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from functools import partial
from uuid import UUID, uuid4

import numpy as np
import psycopg
import pytest

from db import access, delete, duplicates, update
from db.access import Accesses
from db.connection import Connection
from db.duplicate_decisions import InsertOutcome
from db.duplicates import Duplicates
from db.errors import Conflict, MemoryDeleted, MemoryExists, MemoryNotFound
from db.memory import Memory, NewMemory
from db.pool import Database
from db.requests import RequestKey, once
from db.update import Changes
from db.wall import ACROSS_USERS
from tests.storage.concurrency import LIMIT_S, Activity, at_once, deadlocks, wait_for
from tests.storage.conftest import OpenDatabase
from tests.storage.sample_duplicates import POLICIES, REINFORCE, SKIP, SUPERSEDE, at, bring, live_ids, near
from tests.storage.sample_memories import LATER, NOW, PURGE_AT, new_memory, read, rows, store

COLLIDE = "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$"


def under_a_request_id(database: Database, user_id: str, policy: Duplicates, memory: NewMemory) -> None:
    key = RequestKey(user_id=user_id, request_id=uuid4(), request_hash=b"hash", expires_at=LATER + timedelta(days=1))

    def change(conn: Connection) -> bytes:
        duplicates.store(conn, user_id, [memory], policy, now=LATER, purge_at=PURGE_AT)
        return b"reply"

    database.write(database.call(), lambda conn: once(conn, key, lambda: change(conn), now=LATER), user_id=user_id)


def alone(database: Database, user_id: str, policy: Duplicates, memory: NewMemory) -> None:
    bring(database, user_id, policy, memory)


def in_a_batch(database: Database, user_id: str, policy: Duplicates, memory: NewMemory) -> None:
    others = [new_memory(content=f"other {number}", embedding=at(90 + 30 * number)) for number in range(2)]
    bring(database, user_id, policy, others[0], memory, others[1])


@pytest.mark.parametrize("policy", [*POLICIES, *map(near, POLICIES)], ids=str)
@pytest.mark.parametrize("known", [False, True])
def test_the_same_memory_brought_at_once_is_stored_once(
    database: Database, user_id: str, policy: Duplicates, *, known: bool
) -> None:
    if known:
        store(database, user_id, new_memory(content="unlike the others", embedding=at(180)))
    ways = [alone, in_a_batch, under_a_request_id]
    same_text = policy.min_similarity is None
    memories = [
        new_memory(content="same" if same_text else f"same {number}", conversation_id="c", embedding=at(number / 10))
        for number in range(8)
    ]
    for end in at_once(
        [partial(ways[number % 3], database, user_id, policy, memory) for number, memory in enumerate(memories)]
    ):
        end.result()
    [kept] = live_ids(database, user_id) & {memory.id for memory in memories}
    assert len(live_ids(database, user_id)) == 1 + 2 + known
    statement = b"SELECT count(*) FROM memory_entries WHERE user_id = %s AND superseded_by IS NOT NULL"
    [[superseded]] = rows(database, statement, [user_id])
    assert (superseded > 0) is (policy.policy is SUPERSEDE.policy)
    if policy.policy is REINFORCE.policy:
        assert read(database, user_id, kept).access_count == 7


def test_a_call_repeated_at_once_gets_the_first_reply(database: Database, user_id: str) -> None:
    key = RequestKey(user_id=user_id, request_id=uuid4(), request_hash=b"hash", expires_at=LATER + timedelta(days=1))

    def call() -> bytes:
        def change(conn: Connection) -> bytes:
            [receipt] = duplicates.store(
                conn, user_id, [new_memory(content="same")], SKIP, now=LATER, purge_at=PURGE_AT
            )
            return f"{receipt.outcome} {receipt.id}".encode()

        return database.write(
            database.call(), lambda conn: once(conn, key, lambda: change(conn), now=LATER), user_id=user_id
        )

    replies = {end.result() for end in at_once([call] * 8)}
    [kept] = live_ids(database, user_id)
    assert replies == {f"{InsertOutcome.STORED} {kept}".encode()}


def bring_shuffled(database: Database, policy: Duplicates, seed: int) -> None:
    """Brings the same contents again and again, in other orders."""
    for order in np.random.default_rng(seed).permuted(np.tile(np.arange(40), (12, 1)), axis=1):
        memories = [
            new_memory(content=f"{number}", conversation_id=f"c{number % 7}", importance=1 + number % 10)
            for number in order
        ]
        bring(database, "u", policy, *memories)


def change_at_random(database: Database, seed: int) -> None:
    """Counts accesses of all memories, and updates, deletes or erases one of them, again and again."""
    random = np.random.default_rng(seed)
    for _ in range(40):
        if live := sorted(live_ids(database, "u")):
            # The memory may be gone by now.
            with suppress(MemoryNotFound, MemoryDeleted, Conflict):
                change_one(database, live[random.integers(len(live))], kind=int(random.integers(3)))
            counted = [(("u", memory_id.int), Accesses(1, LATER)) for memory_id in live]
            with suppress(Conflict):
                database.write(database.call(), partial(access.write_accesses, batch=counted), user_id=ACROSS_USERS)


def change_one(database: Database, memory_id: UUID, *, kind: int) -> None:
    def change(conn: Connection) -> Memory:
        if kind == 0:
            return delete.soft_delete(conn, "u", memory_id, etag="", now=LATER, purge_at=PURGE_AT)
        if kind == 1:
            return delete.hard_delete(conn, "u", memory_id, etag="")
        changes = Changes(conversation_id="c1", importance=7)
        return update.update(conn, "u", memory_id, changes, etag="", now=LATER, check_metadata=lambda _: None)

    database.write(database.call(), change, user_id=ACROSS_USERS)


def test_writers_of_all_kinds_do_not_deadlock(database_url: str, open_database: OpenDatabase) -> None:
    database = open_database(database_url, max_size=8, timeout_s=LIMIT_S)
    writers = [partial(bring_shuffled, database, policy, seed) for seed, policy in enumerate([*POLICIES, SKIP])]
    writers += [partial(change_at_random, database, seed) for seed in range(2)]
    for end in at_once(writers):
        end.result()
    statement = b"SELECT content FROM memory_entries WHERE deleted_at IS NULL GROUP BY content HAVING count(*) > 1"
    assert rows(database, statement) == []
    database.close()
    assert deadlocks(database_url) == 0


def test_first_calls_of_a_user_lock_in_one_order(
    database_url: str, open_database: OpenDatabase, activity_of: Callable[[str], Activity]
) -> None:
    database, activity = open_database(database_url), activity_of(database_url)
    claimed = threading.Event()
    key = RequestKey(user_id="u", request_id=uuid4(), request_hash=b"hash", expires_at=LATER + timedelta(days=1))

    def claim_then_store(conn: Connection) -> None:
        def reply() -> bytes:
            claimed.set()
            wait_for(lambda: activity.blocked("duplicates.take_turns"))
            duplicates.store(conn, "u", [new_memory(content="same")], SKIP, now=LATER, purge_at=PURGE_AT)
            return b""

        once(conn, key, reply, now=LATER)

    with ThreadPoolExecutor(1) as threads:
        claiming = threads.submit(database.write, database.call(), claim_then_store, user_id=ACROSS_USERS)
        assert claimed.wait(LIMIT_S)
        [receipt] = bring(database, "u", SKIP, new_memory(content="same"))
        claiming.result()
    assert receipt.outcome is InsertOutcome.SKIPPED
    database.close()
    activity.close()
    assert deadlocks(database_url) == 0


CHANGES = {
    "other content": b"UPDATE memory_entries SET content = 'other', version = version + 1 WHERE user_id = %s",
    "deleted": b"UPDATE memory_entries SET deleted_at = now(), purge_at = now() WHERE user_id = %s",
    "erased": b"DELETE FROM memory_entries WHERE user_id = %s",
}


@pytest.mark.parametrize(("change", "policy"), list(itertools.product(CHANGES, POLICIES)), ids=str)
def test_a_duplicate_that_ceases_to_be_one_is_none(  # noqa: PLR0917 - fixtures and parameters
    database: Database, user_id: str, module_database_url: str, activity: Activity, change: str, policy: Duplicates
) -> None:
    old = new_memory(content="same", importance=1)
    store(database, user_id, old)
    new = new_memory(content="same")
    with ThreadPoolExecutor(1) as threads, psycopg.connect(module_database_url) as other:
        other.execute(CHANGES[change], [user_id])
        bringing = threads.submit(bring, database, user_id, policy, new)
        activity.wait_until_blocked("duplicates.hold")  # it has found the duplicate
        other.commit()
        [receipt] = bringing.result()
    assert (receipt.outcome, receipt.id) == (InsertOutcome.STORED, new.id)
    assert new.id in live_ids(database, user_id)
    assert (
        rows(database, b"SELECT FROM memory_entries WHERE user_id = %s AND superseded_by IS NOT NULL", [user_id]) == []
    )


def test_an_id_taken_meanwhile_is_named(
    database: Database, user_id: str, module_database_url: str, activity: Activity
) -> None:
    first = new_memory(content="same")
    store(database, user_id, first)
    batch = [new_memory(content="same"), new_memory(content="a"), new_memory(content="b")]
    with ThreadPoolExecutor(1) as threads, psycopg.connect(module_database_url) as other:
        other.execute("UPDATE memory_entries SET id = %s, content = '' WHERE id = %s", [batch[2].id, first.id])
        bringing = threads.submit(bring, database, user_id, REINFORCE, *batch)
        activity.wait_until_blocked("duplicates.hold")
        other.commit()
        error = bringing.exception()
    assert isinstance(error, MemoryExists)
    assert error.index == 2
    assert live_ids(database, user_id) == {batch[2].id}


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.policy.value)
@pytest.mark.parametrize("collisions", [1, 2, 3])
def test_collisions_leave_nothing_half_written(
    database: Database, user_id: str, policy: Duplicates, collisions: int
) -> None:
    old = new_memory(content="same", importance=1)
    store(database, user_id, old)
    before = read(database, user_id, old.id)
    left = iter(range(collisions))

    def change(conn: Connection) -> None:
        with conn.transaction():
            memories = [new_memory(content="same", importance=8), new_memory(content="other", conversation_id="c")]
            duplicates.store(conn, user_id, memories, policy, now=LATER, purge_at=PURGE_AT)
            if next(left, None) is not None:
                conn.execute(COLLIDE)

    if collisions == 3:
        with pytest.raises(Conflict):
            database.write(database.call(), change, user_id=user_id)
        assert live_ids(database, user_id) == {old.id}
        after = read(database, user_id, old.id)
        assert (after.etag, after.access_count, after.importance) == (before.etag, 0, 1)
        assert rows(database, b"SELECT FROM conversations WHERE user_id = %s", [user_id]) == []
        return
    database.write(database.call(), change, user_id=user_id)
    assert len(live_ids(database, user_id)) == 2
    after = read(database, user_id, old.id)
    assert after.access_count == (policy is REINFORCE)
    assert after.version == 1 + (policy is not SKIP)


def test_writers_of_other_users_do_not_wait(
    database: Database, user_id: str, module_database_url: str, activity: Activity
) -> None:
    with ThreadPoolExecutor(1) as threads, psycopg.connect(module_database_url) as other:
        other.execute(duplicates.TAKE_TURNS, {"user_id": user_id, "now": NOW})
        [receipt] = bring(database, f"{user_id}-2", SKIP, new_memory())
        assert receipt.outcome is InsertOutcome.STORED
        waiting = threads.submit(bring, database, user_id, SKIP, new_memory())
        activity.wait_until_blocked("duplicates.take_turns")
        other.commit()
        assert waiting.result()[0].outcome is InsertOutcome.STORED


def test_the_lock_is_no_other_of_the_project(database: Database) -> None:
    """Those of migrations are positive, those of index maintenance pairs of numbers."""

    def locks(conn: Connection) -> list[tuple[int, int]]:
        with conn.transaction():
            for number in range(100):
                conn.query(duplicates.TAKE_TURNS, {"user_id": f"user {number}", "now": NOW})
            return conn.execute(
                "SELECT classid::bigint, objsubid FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
            ).fetchall()

    found = database.write(database.call(), locks, user_id=ACROSS_USERS)
    assert len(found) == 100
    assert {high >> 31 for high, _ in found} == {1}
    assert {kind for _, kind in found} == {1}
