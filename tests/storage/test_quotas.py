"""Quotas: what a user may store, refused as a whole, exact for concurrent writers, and not counted for nothing."""

from functools import partial
from uuid import UUID, uuid4

import pytest

from db import usage, user_quotas
from db.cancellation import Call
from db.connection import Connection
from db.pool import Database
from db.usage import Account, Usage
from db.user_quotas import UserQuota
from db.wall import ACROSS_USERS
from memory_service import config
from memory_service.access.errors import QuotaExceeded
from memory_service.access.own_quotas import OwnQuotas
from memory_service.access.quotas import NEAR_MEMORIES, NO_QUOTAS, REMEMBERED_S, UserQuotas, quota_of_all
from memory_service.limits import limits_of
from memory_service.v1 import memory_pb2 as pb
from memory_service.writing import Writing
from tests.clock import SecondsClock
from tests.storage.concurrency import at_once
from tests.storage.sample_memories import DIMENSIONS, NOW, hard_delete, soft_delete

VECTOR = pb.Vector(floats=pb.FloatArray(values=[1.0] * DIMENSIONS))
BYTES_OF_ONE = len("text") + len("{}") + 2 * DIMENSIONS


def writing_under(
    database: Database, *, memories: int = 0, bytes_: int = 0, clock: SecondsClock | None = None
) -> Writing:
    allowed = Usage(memories=memories, bytes=bytes_)
    return Writing(
        database=database,
        embeddings=None,
        dimensions=DIMENSIONS,
        limits=limits_of(config.load(embedder="none", embedding_dimensions=DIMENSIONS)),
        clock=lambda: NOW,
        quotas=UserQuotas(database, allowed, dimensions=DIMENSIONS, clock=clock or SecondsClock()),
    )


def memory(content: str = "text") -> pb.NewMemory:
    return pb.NewMemory(content=content, embedding=VECTOR)


def insert(writing: Writing, user_id: str, content: str = "text", **fields: object) -> pb.InsertVectorResponse:
    request = pb.InsertVectorRequest(user_id=user_id, memory=memory(content), **fields)  # type: ignore[arg-type]
    return writing.insert(request, writing.database.call())


def insert_batch(writing: Writing, user_id: str, count: int) -> None:
    request = pb.BatchInsertVectorsRequest(user_id=user_id, memories=[memory()] * count)
    writing.insert_batch(request, writing.database.call())


def used(database: Database, user_id: str) -> Usage:
    return account(database, user_id, of_all=Usage(memories=1)).used


def account(database: Database, user_id: str, *, of_all: Usage) -> Account:
    return database.read(
        database.call(),
        lambda conn: usage.count(conn, user_id, of_all=of_all, dimensions=DIMENSIONS),
        user_id=user_id,
    )


def set_quota(database: Database, user_id: str, **quota: int | None) -> None:
    """Gives a user a quota of its own."""
    database.write(
        database.call(),
        lambda conn: user_quotas.write(conn, user_id, UserQuota(**quota), now=NOW),
        user_id=ACROSS_USERS,
    )


def test_where_nobody_is_limited_nothing_is_counted(database: Database, user_id: str) -> None:
    assert quota_of_all(config.load()) == Usage()
    quotas = CountedDatabase(database, Usage(), dimensions=DIMENSIONS, own_exist=lambda: False)
    assert quotas.expect(user_id, lambda: Usage(memories=1), Call(), certain=True) is NO_QUOTAS
    assert quotas.counts == 0


def test_whether_anybody_has_a_quota_is_looked_up(database: Database, user_id: str) -> None:
    own = OwnQuotas(database)
    assert own.exist, "it has not looked yet"
    set_quota(database, user_id, memories=1)
    own.look()
    assert own.exist
    database.write(database.call(), lambda conn: conn.execute(b"DELETE FROM user_quotas"), user_id=ACROSS_USERS)
    own.look()
    assert not own.exist


def test_a_quota_of_its_own_stands_for_that_of_all(database: Database, user_id: str) -> None:
    of_all = Usage(memories=5, bytes=100)
    for own, allowed in (
        ({}, of_all),
        ({"memories": 7}, Usage(memories=7, bytes=100)),
        ({"memories": 0, "bytes": 3}, Usage(memories=0, bytes=3)),
        ({"bytes": 0}, Usage(memories=5, bytes=0)),
        ({"memories": None, "bytes": None}, of_all),
    ):
        set_quota(database, user_id, **own)
        assert account(database, user_id, of_all=of_all).allowed == allowed
        assert account(database, f"{user_id}-other", of_all=of_all).allowed == of_all


def test_who_has_a_quota_of_its_own_is_held_to_it_and_others_to_that_of_all(database: Database, user_id: str) -> None:
    more, less, none = (f"{user_id}-{name}" for name in ("more", "less", "none"))
    set_quota(database, more, memories=3)
    set_quota(database, less, memories=1)
    set_quota(database, none, memories=0)
    writing = writing_under(database, memories=2)
    for user, count in ((more, 3), (less, 1), (user_id, 2)):
        for _ in range(count):
            insert(writing, user)
        with pytest.raises(QuotaExceeded, match=f"has {count} memories, at most {count}"):
            insert(writing, user)
    for _ in range(4):
        insert(writing, none)


def test_a_quota_counts_also_where_there_is_none_for_all(database: Database, user_id: str) -> None:
    set_quota(database, user_id, bytes=BYTES_OF_ONE)
    writing = writing_under(database)
    insert(writing, user_id)
    with pytest.raises(QuotaExceeded) as caught:
        insert(writing, user_id)
    assert caught.value.quota == "MEMORY_QUOTA_BYTES"
    insert_batch(writing, f"{user_id}-other", 3)


def test_a_change_of_a_quota_is_noticed_within_ten_seconds(database: Database, user_id: str) -> None:
    clock = SecondsClock()
    writing = writing_under(database, memories=NEAR_MEMORIES * 2, clock=clock)
    insert(writing, user_id)
    set_quota(database, user_id, memories=1)
    insert(writing, user_id)  # far from what was known
    clock.now += REMEMBERED_S + 1
    with pytest.raises(QuotaExceeded, match="has 2 memories, at most 1"):
        insert(writing, user_id)
    set_quota(database, user_id, memories=None)
    insert(writing, user_id)  # near what was known, and so looked up


def test_users_without_a_limit_are_not_counted(database: Database, user_id: str) -> None:
    insert(writing_under(database), user_id)
    assert account(database, user_id, of_all=Usage()) == Account(used=Usage(), allowed=Usage())

    def plan(conn: Connection, of_all: Usage) -> str:
        parameters = {"user_id": user_id, "memories": of_all.memories, "bytes": of_all.bytes}
        explained = conn.execute(b"EXPLAIN (ANALYZE, TIMING OFF) " + usage.COUNT.encode(), parameters)
        return "\n".join(line for (line,) in explained.fetchall())

    text = database.read(database.call(), lambda conn: plan(conn, Usage()), user_id=user_id)
    assert "never executed" in text
    text = database.read(database.call(), lambda conn: plan(conn, Usage(memories=1)), user_id=user_id)
    assert "never executed" not in text


def test_a_user_may_store_so_many_and_no_more(database: Database, user_id: str) -> None:
    writing = writing_under(database, memories=3)
    first = UUID(insert(writing, user_id).memory.id)
    insert_batch(writing, user_id, 2)
    with pytest.raises(QuotaExceeded, match="has 3 memories, at most 3") as caught:
        insert(writing, user_id)
    assert caught.value.quota == "MEMORY_QUOTA_MEMORIES"
    insert(writing, f"{user_id}-other")
    soft_delete(database, user_id, first)
    with pytest.raises(QuotaExceeded):
        insert(writing, user_id)
    hard_delete(database, user_id, first)
    insert(writing, user_id)


def test_a_batch_is_refused_as_a_whole(database: Database, user_id: str) -> None:
    writing = writing_under(database, memories=5)
    insert_batch(writing, user_id, 3)
    with pytest.raises(QuotaExceeded):
        insert_batch(writing, user_id, 3)
    assert used(database, user_id).memories == 3
    insert_batch(writing, user_id, 2)


def test_bytes_are_those_of_texts_and_embeddings(database: Database, user_id: str) -> None:
    writing = writing_under(database, bytes_=3 * BYTES_OF_ONE)
    for _ in range(3):
        stored = insert(writing, user_id).memory.id
    assert used(database, user_id).bytes == 3 * BYTES_OF_ONE
    with pytest.raises(QuotaExceeded) as caught:
        insert(writing, user_id)
    assert caught.value.quota == "MEMORY_QUOTA_BYTES"

    def update(content: str) -> None:
        request = pb.UpdateVectorRequest(
            user_id=user_id, id=stored, memory=pb.Memory(content=content, embedding=VECTOR)
        )
        writing.update(request, database.call())

    with pytest.raises(QuotaExceeded):
        update("a longer text")
    update("a")
    update("text")


def test_who_has_too_much_since_the_quota_was_lowered_may_still_make_less(database: Database, user_id: str) -> None:
    stored = insert(writing_under(database, bytes_=10_000), user_id, "a long text").memory.id
    writing = writing_under(database, bytes_=5)
    request = pb.UpdateVectorRequest(user_id=user_id, id=stored, memory=pb.Memory(content="short", embedding=VECTOR))
    writing.update(request, database.call())
    assert used(database, user_id).bytes > 5


def test_a_duplicate_that_is_skipped_needs_no_room(database: Database, user_id: str) -> None:
    writing = writing_under(database, memories=1)
    skip = pb.Duplicates(policy=pb.DUPLICATE_POLICY_SKIP)
    insert(writing, user_id, "one", duplicates=skip)
    assert insert(writing, user_id, "one", duplicates=skip).outcome == pb.INSERT_OUTCOME_SKIPPED
    with pytest.raises(QuotaExceeded):
        insert(writing, user_id, "two", duplicates=skip)
    assert used(database, user_id).memories == 1


def test_a_repeated_call_gets_its_reply_although_there_is_no_room_left(database: Database, user_id: str) -> None:
    writing, request_id = writing_under(database, memories=1), str(uuid4())
    first = insert(writing, user_id, request_id=request_id)
    assert insert(writing, user_id, request_id=request_id) == first
    with pytest.raises(QuotaExceeded):
        insert(writing, user_id, request_id=str(uuid4()))


def test_concurrent_writers_of_several_processes_store_exactly_the_quota(database: Database, user_id: str) -> None:
    processes = [writing_under(database, memories=20) for _ in range(2)]

    def store(writing: Writing) -> int:
        stored = 0
        for number in range(8):
            try:
                # With and without a request id, which locks the user's row first.
                insert(writing, user_id, request_id=str(uuid4()) if number % 2 else "")
                stored += 1
            except QuotaExceeded:
                pass
        return stored

    ended = at_once([partial(store, processes[number % 2]) for number in range(6)])
    assert sum(future.result() for future in ended) == 20
    assert used(database, user_id).memories == 20


class CountedDatabase(UserQuotas):
    """Quotas that tell how often they count."""

    counts = 0

    def _count(self, conn: Connection, user_id: str) -> Account:
        self.counts += 1
        return super()._count(conn, user_id)


def test_far_from_the_quota_a_user_is_counted_once_in_ten_seconds(database: Database, user_id: str) -> None:
    clock = SecondsClock()
    allowed = Usage(memories=NEAR_MEMORIES + 10)
    quotas = CountedDatabase(database, allowed, dimensions=DIMENSIONS, clock=clock)

    def write(adding: int) -> None:
        """Claims to store so many, and stores none."""
        room = quotas.expect(user_id, lambda: Usage(memories=adding), Call(), certain=True)

        def store(conn: Connection) -> None:
            with room.enforced(conn, now=NOW):
                pass

        database.write(database.call(), store, user_id=user_id)

    for _ in range(5):
        write(2)
    assert quotas.counts == 1
    # What has been let in counts: now the quota seems near.
    write(1)
    assert quotas.counts == 2
    clock.now += REMEMBERED_S + 1
    write(2)
    assert quotas.counts == 3
    # More than ten at once is near in any case: first seen, then counted before and after.
    write(11)
    assert quotas.counts == 6
