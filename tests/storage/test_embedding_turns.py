"""The queue of waiting memories serves users in turn: nobody waits for all that another has stored."""

from collections import Counter
from datetime import timedelta

import pytest

from db import embedding_jobs
from db.embedding_jobs import USERS_OF_A_BATCH, EmbeddingJob
from db.embedding_turns import Turns
from db.pool import Database
from db.wall import ACROSS_USERS
from tests.fix_database import NewDatabase
from tests.storage.conftest import OpenDatabase
from tests.storage.sample_memories import LATER, NOW, new_memory, store

BATCH = 64
LEASE = timedelta(minutes=2)


@pytest.fixture
def queue(new_database: NewDatabase, open_database: OpenDatabase) -> Database:
    """A database of the test's own: the queue is one for all users."""
    return open_database(new_database(), max_size=8, timeout_s=10.0)


def wait(queue: Database, user_id: str, count: int, *, minute: int = 0) -> None:
    """Stores memories that wait from this minute on."""
    memories = [new_memory(content=f"{minute} {n}", embedding=None, embedding_model="m") for n in range(count)]
    store(queue, user_id, *memories, now=NOW + timedelta(minutes=minute))


def take(queue: Database, turns: Turns, *, limit: int = BATCH) -> list[EmbeddingJob]:
    return queue.write(
        queue.call(),
        lambda conn: embedding_jobs.take(conn, now=LATER, leased_until=LATER + LEASE, limit=limit, turns=turns),
        user_id=ACROSS_USERS,
    )


def by_user(jobs: list[EmbeddingJob]) -> Counter[str]:
    return Counter(job.user_id for job in jobs)


def test_a_few_of_one_user_do_not_wait_for_many_of_another(queue: Database) -> None:
    wait(queue, "importer", 300)
    wait(queue, "late", 40, minute=1)
    wait(queue, "later", 3, minute=2)
    turns = Turns()

    assert by_user(take(queue, turns)) == {"importer": 40, "late": 21, "later": 3}
    assert by_user(take(queue, turns)) == {"importer": 45, "late": 19}
    assert by_user(take(queue, turns)) == {"importer": BATCH}


def test_each_gets_the_oldest_of_theirs_first(queue: Database) -> None:
    for minute in (3, 1, 2):
        wait(queue, "ada", 1, minute=minute)
        wait(queue, "bob", 1, minute=minute)
    turns = Turns()
    taken = [take(queue, turns, limit=2) for _ in range(3)]
    assert [by_user(jobs) for jobs in taken] == [{"ada": 1, "bob": 1}] * 3
    for user_id in ("ada", "bob"):
        assert [job.text for jobs in taken for job in jobs if job.user_id == user_id] == ["1 0", "2 0", "3 0"]


def test_more_users_than_a_batch_has_room_for_take_turns(queue: Database) -> None:
    users = [f"user-{number:02}" for number in range(3 * USERS_OF_A_BATCH)]
    for user_id in users:
        wait(queue, user_id, 2 * BATCH // USERS_OF_A_BATCH)
    turns, served = Turns(), Counter[str]()
    for _ in range(3):
        batch = by_user(take(queue, turns))
        assert set(batch.values()) == {BATCH // USERS_OF_A_BATCH}
        served += batch
    assert set(served) == set(users)
    # And from the beginning again.
    assert set(by_user(take(queue, turns))) == set(users[:USERS_OF_A_BATCH])


def test_users_with_nothing_due_hold_nobody_up(queue: Database) -> None:
    for number in range(2 * USERS_OF_A_BATCH):
        wait(queue, f"postponed-{number:02}", 1)
    turns = Turns()
    assert len(take(queue, turns)) == 2 * USERS_OF_A_BATCH
    wait(queue, "z", 5)
    assert by_user(take(queue, turns)) == {"z": 5}
    assert take(queue, turns) == []


def test_nothing_waits(queue: Database) -> None:
    turns = Turns()
    assert take(queue, turns) == []
    assert take(queue, turns, limit=1) == []
