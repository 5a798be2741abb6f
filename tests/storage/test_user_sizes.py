"""Counts of users' memories: they arrive soon, are renewed, and never hold up a search or a shutdown."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from uuid import uuid4

import psycopg
import pytest
from structlog.testing import capture_logs

from db import user_sizes
from db.errors import DatabaseUnavailable
from db.pool import ATTEMPTS, Database, PoolOptions
from db.user_sizes import COUNT_UP_TO, MAX_WANTED, REMEMBERED_S, UserSizes, count_live
from tests.storage.concurrency import Activity, wait_for
from tests.storage.sample_memories import new_memory, soft_delete, store

NAME = "user_sizes.count"


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def read(self) -> float:
        """Returns the time."""
        return self.now_s


class Counts:
    """What was counted, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    def tell(self, user_id: str, rows: int) -> None:
        """Takes note of a count."""
        self.told.append((user_id, rows))

    def wait_for(self, number: int) -> list[tuple[str, int]]:
        """Returns what was told once it is so many counts: each is remembered a moment before it is told."""
        wait_for(lambda: len(self.told) >= number)
        return self.told


@pytest.fixture
def counts() -> Counts:
    return Counts()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sizes(database: Database, counts: Counts, clock: Clock) -> Iterator[UserSizes]:
    sizes = UserSizes(database, counted=counts.tell, clock=clock.read)
    sizes.start()
    yield sizes
    sizes.close()


def known(sizes: UserSizes, user_id: str) -> int:
    """Returns the count once it has arrived."""
    wait_for(lambda: sizes.rows(user_id) is not None)
    rows = sizes.rows(user_id)
    assert rows is not None
    return rows


@contextmanager
def blocked(url: str) -> Iterator[None]:
    """Lets nobody read memories meanwhile."""
    with psycopg.connect(url) as connection:
        connection.execute("LOCK TABLE memory_entries")
        yield


def terminate_counts(url: str) -> None:
    """Ends the sessions that count, as an administrator may."""
    with psycopg.connect(url) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND state = 'active' AND starts_with(query, %s)",
            [f"/* {NAME} */"],
        )


def test_a_count_arrives_soon(database: Database, sizes: UserSizes, counts: Counts, user_id: str) -> None:
    memories = [new_memory() for _ in range(7)]
    store(database, user_id, *memories)
    store(database, user_id + "x", *memories)
    soft_delete(database, user_id, memories[0].id)
    assert sizes.rows(user_id) is None
    assert known(sizes, user_id) == 6
    assert known(sizes, user_id + "x") == 7
    assert known(sizes, "nobody-" + user_id) == 0
    assert counts.wait_for(3) == [(user_id, 6), (user_id + "x", 7), ("nobody-" + user_id, 0)]


def test_a_count_is_remembered_for_a_minute_and_then_renewed_aside(
    database: Database, sizes: UserSizes, counts: Counts, clock: Clock, user_id: str
) -> None:
    store(database, user_id, new_memory())
    assert known(sizes, user_id) == 1
    store(database, user_id, new_memory())
    clock.now_s += REMEMBERED_S
    assert sizes.rows(user_id) == 1
    clock.now_s += 0.1
    assert sizes.rows(user_id) == 1  # the old one, until the new one is there
    wait_for(lambda: sizes.rows(user_id) == 2)
    assert counts.wait_for(2) == [(user_id, 1), (user_id, 2)]


def test_a_count_that_a_search_disproves_is_forgotten(database: Database, sizes: UserSizes, user_id: str) -> None:
    sizes.seen(user_id, 5)
    assert known(sizes, user_id) == 0
    store(database, user_id, *[new_memory() for _ in range(3)])
    sizes.seen(user_id, 0)
    assert sizes.rows(user_id) == 0
    sizes.seen(user_id, 1)
    assert sizes.rows(user_id) is None
    assert known(sizes, user_id) == 3


def test_a_user_searched_often_is_counted_once(
    sizes: UserSizes, counts: Counts, module_database_url: str, activity: Activity
) -> None:
    busy, other = f"busy-{uuid4()}", f"other-{uuid4()}"
    with blocked(module_database_url):
        sizes.rows(busy)
        activity.wait_until_blocked(NAME)
        for _ in range(MAX_WANTED * 2):
            assert sizes.rows(busy) is None
        # Nor does it keep others from being counted.
        assert sizes.rows(other) is None
    assert known(sizes, other) == 0
    assert counts.wait_for(2) == [(busy, 0), (other, 0)]


def test_more_users_than_can_wait_are_asked_for_again(
    sizes: UserSizes,
    counts: Counts,
    module_database_url: str,
    activity: Activity,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A thousand counts would take a busy machine longer than a test waits.
    monkeypatch.setattr(user_sizes, "MAX_WANTED", 20)
    users = [f"{uuid4()}" for _ in range(30)]
    with blocked(module_database_url):
        sizes.rows(users[0])
        activity.wait_until_blocked(NAME)
        for user_id in users:
            assert sizes.rows(user_id) is None
    assert [user_id for user_id, _ in counts.wait_for(20)] == users[:20]
    assert known(sizes, users[-1]) == 0
    assert [user_id for user_id, _ in counts.wait_for(21)] == [*users[:20], users[-1]]


def test_no_more_users_are_remembered_than_allowed(
    sizes: UserSizes, monkeypatch: pytest.MonkeyPatch, user_id: str
) -> None:
    monkeypatch.setattr(user_sizes, "MAX_USERS", 3)
    users = [f"{user_id}-{number}" for number in range(4)]
    for one in users:
        known(sizes, one)
    assert [sizes.rows(one) for one in users] == [None, None, None, 0]


def test_closing_does_not_wait_for_what_is_wanted(
    database: Database, counts: Counts, module_database_url: str, activity: Activity
) -> None:
    sizes = UserSizes(database, counted=counts.tell)
    sizes.start()
    with blocked(module_database_url):
        for _ in range(MAX_WANTED + 1):
            sizes.rows(f"{uuid4()}")
        activity.wait_until_blocked(NAME)
        started_at = time.monotonic()
        sizes.close()
        assert time.monotonic() - started_at < 5
    assert counts.told == []


def test_closing_what_never_ran_or_has_nothing_to_do(database: Database, counts: Counts) -> None:
    UserSizes(database, counted=counts.tell).close()
    idle = UserSizes(database, counted=counts.tell)
    idle.start()
    idle.close()
    idle.close()
    idle.rows("asked for too late")
    assert counts.told == []


def test_a_database_that_fails_does_no_harm(
    database: Database, counts: Counts, module_database_url: str, activity: Activity, user_id: str
) -> None:
    with ExitStack() as closing:
        sizes = UserSizes(database, counted=counts.tell)
        sizes.start()
        closing.callback(sizes.close)
        with blocked(module_database_url):
            assert sizes.rows(user_id) is None
            for _ in range(ATTEMPTS):  # the statement is tried again on another connection
                activity.wait_until_blocked(NAME)
                terminate_counts(module_database_url)
            wait_for(lambda: not activity.running(NAME))
            assert sizes.rows(user_id) is None
        assert known(sizes, user_id) == 0


def test_a_database_out_of_reach_does_no_harm(counts: Counts) -> None:
    unreachable = Database("postgresql://127.0.0.1:1/none", PoolOptions(min_size=1, max_size=1, timeout_s=0.05))
    with pytest.raises(DatabaseUnavailable):
        unreachable.open(timeout_s=0.1)
    sizes = UserSizes(unreachable, counted=counts.tell)
    with capture_logs() as events:
        sizes.start()
        for user_id in ("alice", "bob"):
            assert sizes.rows(user_id) is None
        wait_for(lambda: [event["event"] for event in events].count("user_not_counted") == 2)
        sizes.close()
    unreachable.close()
    assert all(event["log_level"] == "info" for event in events if event["event"] == "user_not_counted")


def test_a_listener_that_fails_ends_no_counting(database: Database, user_id: str) -> None:
    def fail(user: str, rows: int) -> None:
        raise RuntimeError(f"{user} has {rows}")

    sizes = UserSizes(database, counted=fail)
    with capture_logs() as events:
        sizes.start()
        assert [known(sizes, f"{user_id}-{number}") for number in range(3)] == [0, 0, 0]
        sizes.close()
    assert [event["log_level"] for event in events if event["event"] == "user_not_counted"] == ["error"] * 3


def test_threads_may_ask_at_once(database: Database, sizes: UserSizes, user_id: str) -> None:
    store(database, user_id, new_memory())
    seen: list[int | None] = []

    def ask() -> None:
        seen.extend(sizes.rows(f"{user_id}{number % 3 or ''}") for number in range(300))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(seen) <= {None, 0, 1}
    assert [known(sizes, f"{user_id}{suffix}") for suffix in ("", 1, 2)] == [1, 0, 0]


def test_beyond_a_bound_all_are_alike(database: Database, monkeypatch: pytest.MonkeyPatch, user_id: str) -> None:
    store(database, user_id, *[new_memory() for _ in range(5)])
    assert COUNT_UP_TO >= 100_000
    monkeypatch.setattr(user_sizes, "COUNT_UP_TO", 3)
    assert database.read(database.call(), lambda conn: count_live(conn, user_id), user_id=user_id) == 3
