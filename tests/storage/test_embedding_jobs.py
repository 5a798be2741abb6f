"""The queue of waiting memories in the database: who gets a job, what ends it, and what a late answer may change."""

from dataclasses import replace
from datetime import timedelta
from itertools import chain
from uuid import UUID

import pytest

from db import embedding_jobs, insert
from db import embedding_queue_state as state
from db.connection import Connection
from db.errors import DatabaseError, MemoryExists
from db.pool import Database
from db.vectors import Embedding
from db.wall import ACROSS_USERS
from tests.fix_database import NewDatabase
from tests.storage.concurrency import at_once
from tests.storage.conftest import OpenDatabase
from tests.storage.embedding_job_calls import (
    LEASE,
    MODEL,
    complete,
    counts,
    embedded,
    give_up,
    postpone,
    retry,
    take,
    waiting,
)
from tests.storage.sample_memories import LATER, NOW, new_memory, rows, store, unit


@pytest.fixture
def queue(new_database: NewDatabase, open_database: OpenDatabase) -> Database:
    """A database of the test's own: the queue is one for all users."""
    return open_database(new_database(), max_size=8, timeout_s=10.0)


@pytest.mark.parametrize("in_batch", [False, True])
def test_a_memory_without_embedding_is_stored_with_a_job(queue: Database, *, in_batch: bool) -> None:
    plain, paraphrased, ready = waiting("plain"), waiting("shown", embed_text="meant"), new_memory(embedding=unit(3))
    if in_batch:
        store(queue, "ada", plain, ready, paraphrased)
    else:
        for memory in (plain, ready, paraphrased):
            queue.write(
                queue.call(),
                lambda conn, memory=memory: insert.insert(conn, "ada", memory, now=NOW),  # type: ignore[misc]
                user_id="ada",
            )

    assert embedded(queue, plain.id) == (None, MODEL, None)
    assert embedded(queue, ready.id) == (1, "test-model", None)
    assert rows(queue, b"SELECT embedding FROM memory_entries WHERE id = %s", [ready.id])[0][0].to_list()[3] == 1
    jobs = {job.id: job for job in take(queue)}
    assert {memory_id: job.text for memory_id, job in jobs.items()} == {plain.id: "plain", paraphrased.id: "meant"}
    assert {(job.user_id, job.attempts, job.leased_until) for job in jobs.values()} == {("ada", 1, NOW + LEASE)}


def test_a_memory_that_is_not_stored_leaves_no_job(queue: Database) -> None:
    memory = waiting()
    store(queue, "ada", memory)
    with pytest.raises(MemoryExists):
        store(queue, "ada", waiting(), memory)
    with pytest.raises(MemoryExists):
        queue.write(queue.call(), lambda conn: insert.insert(conn, "ada", memory, now=NOW), user_id="ada")
    assert counts(queue) == state.QueueCounts(pending=1, failed=0, oldest_queued_at=NOW)


def test_completing_fills_in_the_embedding_and_nothing_else(queue: Database) -> None:
    first, second = waiting("first"), waiting("second")
    store(queue, "ada", first)
    store(queue, "bob", second)
    [job, other] = sorted(take(queue), key=lambda job: job.user_id)
    before = rows(queue, b"SELECT version, updated_at FROM memory_entries ORDER BY user_id")

    vectors = [Embedding(unit(axis).unit, norm) for axis, norm in ((2, 3.5), (4, 0.25))]
    count = queue.write(
        queue.call(),
        lambda conn: embedding_jobs.complete(conn, [job, other], vectors, model="newer-model"),
        user_id=ACROSS_USERS,
    )

    assert count == 2
    found = rows(queue, b"SELECT embedding, embedding_norm, embedding_model FROM memory_entries ORDER BY user_id")
    assert [list(row[0].to_list()) for row in found] == [list(vector.unit) for vector in vectors]
    assert [row[1:] for row in found] == [(3.5, "newer-model"), (0.25, "newer-model")]
    assert rows(queue, b"SELECT version, updated_at FROM memory_entries ORDER BY user_id") == before
    assert rows(queue, b"SELECT FROM embedding_jobs") == []


def test_jobs_are_taken_in_order_and_once_until_the_lease_ends(queue: Database) -> None:
    memories = [waiting(str(number)) for number in range(5)]
    for number, memory in enumerate(memories):
        store(queue, "ada", memory, now=NOW + timedelta(seconds=number))
    now = NOW + timedelta(seconds=3)  # the last one is not due yet

    assert [job.text for job in take(queue, now=now, limit=3)] == ["0", "1", "2"]
    assert [job.text for job in take(queue, now=now)] == ["3"]
    assert take(queue, now=now + LEASE - timedelta(microseconds=1), limit=1)[0].text == "4"
    again = take(queue, now=now + LEASE)
    assert [(job.text, job.attempts) for job in again] == [("0", 2), ("1", 2), ("2", 2), ("3", 2)]


def test_concurrent_workers_share_the_jobs(queue: Database) -> None:
    store(queue, "ada", *[waiting(str(number)) for number in range(60)])

    def drain() -> list[UUID]:
        return [job.id for _ in range(4) for job in take(queue, limit=5)]

    taken = list(chain.from_iterable(future.result() for future in at_once([drain] * 4)))

    assert len(taken) == len(set(taken)) == 60


def test_jobs_that_others_are_taking_are_left_to_them(queue: Database) -> None:
    store(queue, "ada", *[waiting(str(number)) for number in range(4)])

    def take_slowly(conn: Connection) -> list[str]:
        with conn.transaction():  # its rows stay locked while the others look
            own = embedding_jobs.take(conn, now=NOW, leased_until=NOW + LEASE, limit=2)
            return [job.text for job in (*own, *take(queue))]

    assert sorted(queue.write(queue.call(), take_slowly, user_id=ACROSS_USERS)) == ["0", "1", "2", "3"]


def test_a_postponed_job_comes_back_when_it_is_told_to(queue: Database) -> None:
    store(queue, "ada", waiting())
    [job] = take(queue)
    postpone(queue, job, until=LATER)
    assert take(queue, now=LATER - timedelta(microseconds=1)) == []
    [again] = take(queue, now=LATER)
    assert again == replace(job, attempts=2, leased_until=LATER + LEASE)
    assert rows(queue, b"SELECT last_error FROM embedding_jobs") == [("it is down",)]


def test_a_released_job_has_lost_no_attempt(queue: Database) -> None:
    store(queue, "ada", waiting())
    [job] = take(queue)
    queue.write(queue.call(), lambda conn: embedding_jobs.release(conn, [job], until=NOW), user_id=ACROSS_USERS)
    assert take(queue) == [job]


def test_a_dead_letter_stays_with_its_reason_until_it_is_retried(queue: Database) -> None:
    memory = waiting()
    store(queue, "ada", memory, waiting("other"))
    [job, other] = sorted(take(queue), key=lambda job: job.id != memory.id)
    give_up(queue, job)

    assert embedded(queue, memory.id) == (None, MODEL, "it is too long")
    assert take(queue, now=LATER + timedelta(days=365)) == [
        replace(other, attempts=2, leased_until=LATER + timedelta(days=365) + LEASE)
    ]
    assert counts(queue) == state.QueueCounts(pending=1, failed=1, oldest_queued_at=NOW)
    [failed] = queue.read(
        queue.call(), lambda conn: state.list_failed(conn, user_id=None, limit=10), user_id=ACROSS_USERS
    )
    assert failed == state.FailedJob("ada", memory.id, 1, LATER, "it is too long")

    assert retry(queue) == 1
    assert embedded(queue, memory.id) == (None, MODEL, None)
    [again] = take(queue, now=LATER, limit=1)
    assert (again.id, again.attempts) == (memory.id, 1)
    assert complete(queue, again) == 1


def test_a_retry_is_of_one_user_or_of_all_in_batches(queue: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "RETRY_ROWS", 2)
    store(queue, "ada", *[waiting(str(number)) for number in range(3)])
    store(queue, "bob", waiting())
    for job in take(queue):
        give_up(queue, job)
    listed = queue.read(queue.call(), lambda conn: state.read_users(conn, user_id="ada", limit=10), user_id="ada")
    assert [(user.user_id, user.counts.failed) for user in listed] == [("ada", 3)]

    assert [retry(queue, "ada") for _ in range(3)] == [2, 1, 0]
    assert counts(queue) == state.QueueCounts(pending=3, failed=1, oldest_queued_at=NOW)
    assert [retry(queue) for _ in range(2)] == [1, 0]


def test_a_batch_is_completed_or_not_as_a_whole(queue: Database) -> None:
    store(queue, "ada", waiting("a"), waiting("b"))
    jobs = take(queue)
    wrong = [unit(0), unit(0, dimensions=9)]
    with pytest.raises(DatabaseError):
        queue.write(
            queue.call(), lambda conn: embedding_jobs.complete(conn, jobs, wrong, model=MODEL), user_id=ACROSS_USERS
        )
    assert counts(queue).pending == 2
    assert {embedded(queue, job.id)[0] for job in jobs} == {None}


def test_users_are_counted_apart_the_longest_queue_first(queue: Database) -> None:
    store(queue, "ada", waiting("a"))
    store(queue, "bob", waiting("a"), waiting("b"), now=LATER)
    postpone(queue, *take(queue), until=LATER)
    found = queue.read(queue.call(), lambda conn: state.read_users(conn, user_id=None, limit=2), user_id=ACROSS_USERS)
    assert [(one.user_id, one.counts.pending, one.last_error) for one in found] == [
        ("bob", 2, None),
        ("ada", 1, "it is down"),
    ]
