"""An embedding that comes late: which changes of the memory it gives way to, and which leave it welcome."""

import threading
from collections.abc import Callable
from dataclasses import replace

import psycopg
import pytest

from db import embedding_jobs
from db import embedding_queue_state as state
from db.pool import Database
from db.wall import ACROSS_USERS
from tests.fix_database import NewDatabase
from tests.storage.concurrency import Activity, at_once
from tests.storage.conftest import OpenDatabase
from tests.storage.embedding_job_calls import (
    LEASE,
    MODEL,
    change,
    complete,
    counts,
    embedded,
    give_up,
    postpone,
    retry,
    take,
    waiting,
)
from tests.storage.sample_memories import LATER, NOW, hard_delete, rows, soft_delete, store, unit


@pytest.fixture
def queue(new_database: NewDatabase, open_database: OpenDatabase) -> Database:
    """A database of the test's own: the queue is one for all users."""
    return open_database(new_database(), max_size=8, timeout_s=10.0)


def test_an_embedding_of_an_older_content_is_dropped(queue: Database) -> None:
    memory = waiting("old")
    store(queue, "ada", memory)
    [job] = take(queue)
    change(queue, "ada", memory.id, content="new", embedding=unit(3), embedding_model=MODEL)

    assert complete(queue, job) == 0
    assert rows(queue, b"SELECT embedding FROM memory_entries")[0][0].to_list()[3] == 1
    assert counts(queue).pending == 0


def test_a_change_of_other_fields_keeps_waiting_and_takes_the_embedding(queue: Database) -> None:
    memory = waiting()
    store(queue, "ada", memory)
    [job] = take(queue)
    change(queue, "ada", memory.id, importance=9, summary="short")

    assert embedded(queue, memory.id) == (None, MODEL, None)
    assert complete(queue, job) == 1
    assert embedded(queue, memory.id) == (1, "newer-model", None)


def test_a_late_answer_leaves_the_job_of_a_new_memory_with_the_same_id_alone(queue: Database) -> None:
    memory = waiting("first")
    store(queue, "ada", memory)
    [job] = take(queue)
    hard_delete(queue, "ada", memory.id)
    assert counts(queue).pending == 0
    store(queue, "ada", replace(memory, content="second"))

    assert complete(queue, job) == 0
    give_up(queue, job)
    postpone(queue, job, until=LATER)
    assert embedded(queue, memory.id) == (None, MODEL, None)
    assert [job.text for job in take(queue)] == ["second"]


def test_an_erased_memory_is_no_error(queue: Database) -> None:
    memory = waiting()
    store(queue, "ada", memory)
    [job] = take(queue)
    hard_delete(queue, "ada", memory.id)
    assert complete(queue, job) == 0
    give_up(queue, job)
    assert counts(queue) == state.QueueCounts(pending=0, failed=0, oldest_queued_at=None)


def test_a_soft_deleted_memory_gets_its_embedding(queue: Database) -> None:
    memory = waiting()
    store(queue, "ada", memory)
    soft_delete(queue, "ada", memory.id)
    assert complete(queue, *take(queue)) == 1
    assert embedded(queue, memory.id)[0] == 1


def test_the_first_of_two_answers_stays(queue: Database) -> None:
    memory = waiting()
    store(queue, "ada", memory)
    [slow] = take(queue)
    [fast] = take(queue, now=NOW + LEASE)

    assert complete(queue, slow, embedding=unit(1)) == 1
    assert counts(queue).pending == 0, "a memory with an embedding has no job, whoever holds it"
    assert complete(queue, fast, embedding=unit(2)) == 0
    assert rows(queue, b"SELECT embedding FROM memory_entries")[0][0].to_list()[1] == 1


def test_whoever_lost_the_lease_can_neither_postpone_nor_give_up(queue: Database) -> None:
    store(queue, "ada", waiting())
    [slow] = take(queue)
    take(queue, now=NOW + LEASE)
    postpone(queue, slow, until=NOW)
    give_up(queue, slow)
    queue.write(queue.call(), lambda conn: embedding_jobs.release(conn, [slow], until=NOW), user_id=ACROSS_USERS)
    assert take(queue, now=NOW + LEASE) == []
    assert counts(queue).failed == 0
    assert rows(queue, b"SELECT attempts, last_error FROM embedding_jobs") == [(2, None)]


@pytest.mark.parametrize("brought", [{"content": "new"}, {}])
def test_an_embedding_that_a_caller_brings_ends_the_job(queue: Database, brought: dict[str, str]) -> None:
    failed, pending = waiting("a"), waiting("b")
    store(queue, "ada", failed, pending)
    [job, _] = sorted(take(queue), key=lambda job: job.text)
    give_up(queue, job)
    for memory in (failed, pending):
        change(queue, "ada", memory.id, embedding=unit(1), embedding_model="caller", **brought)
        assert embedded(queue, memory.id) == (1, "caller", None)
    assert counts(queue) == state.QueueCounts(pending=0, failed=0, oldest_queued_at=None)
    assert retry(queue) == 0


def test_update_and_completion_of_one_memory_do_not_deadlock(queue: Database) -> None:
    for round_ in range(10):
        memory = waiting(f"old {round_}")
        store(queue, "ada", memory)
        [job] = take(queue)
        at_once(
            [
                lambda job=job: complete(queue, job),  # type: ignore[misc]
                lambda memory=memory: change(  # type: ignore[misc]
                    queue, "ada", memory.id, content="new", embedding=unit(3), embedding_model="caller"
                ),
            ]
        )
        assert embedded(queue, memory.id) == (1, "caller", None)
    assert counts(queue).pending == 0


def test_completing_waits_for_an_update_under_way_and_respects_it(
    new_database: NewDatabase, open_database: OpenDatabase, activity_of: Callable[[str], Activity]
) -> None:
    url = new_database()
    queue, activity = open_database(url, max_size=4), activity_of(url)
    memory = waiting("old")
    store(queue, "ada", memory)
    [job] = take(queue)
    results: list[int] = []
    with psycopg.connect(url) as editing:
        editing.execute("UPDATE memory_entries SET content = 'new' WHERE id = %s", [memory.id])
        completing = threading.Thread(target=lambda: results.append(complete(queue, job)))
        completing.start()
        activity.wait_until_blocked("embedding_jobs.embed")
    completing.join()
    assert results == [0]
    assert counts(queue).pending == 1, "it waits for an embedding of its new content"
    assert [job.text for job in take(queue, now=NOW + LEASE)] == ["new"]
