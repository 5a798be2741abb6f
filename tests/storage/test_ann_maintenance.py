"""Maintenance of approximate indexes: what one round builds and drops, and who leads."""

import threading
import time

import psycopg
import pytest
from structlog.testing import capture_logs

from db import ann_indexes
from db.ann_catalog import GLOBAL_NAME, IndexState, name_of, wanted_users
from db.ann_indexes import IndexOptions
from db.ann_session import AnnLock, AnnSession
from tests.fix_database import NewDatabase
from tests.storage import clustered
from tests.storage.ann_maintenance_calls import NewMaintenance, store_users, users_with_index, work
from tests.storage.clustered import DIMENSIONS, Searcher, blueprint, erase, indexes_of, numbered
from tests.storage.concurrency import wait_for
from tests.storage.conftest import OpenDatabase

QUERIES = clustered.clustered(30, seed=99)


@pytest.fixture
def url(new_database: NewDatabase) -> str:
    return new_database(dimensions=DIMENSIONS)


def test_it_builds_what_was_earned_and_forgets_the_rest(url: str, maintenance: NewMaintenance) -> None:
    store_users(url, large=300, larger=400, small=199)
    work(maintenance(url))
    assert users_with_index(url) == {"large", "larger"}
    with AnnSession(url) as session:
        assert session.query(wanted_users) == ["large", "larger"]


def test_it_drops_what_is_no_longer_earned(url: str, maintenance: NewMaintenance) -> None:
    store_users(url, owner=300)
    ours = maintenance(url)
    work(ours)
    erase(url, "owner", range(150))
    settle(url)
    work(ours)
    assert users_with_index(url) == {"owner"}, "150 memories earn no index, but keep one"
    erase(url, "owner", range(201))
    settle(url)
    work(ours)
    assert indexes_of(url) == {}
    with AnnSession(url) as session:
        assert session.query(wanted_users) == []


def settle(url: str) -> None:
    """Waits until the statistics tell of all that was done; backends report once a second, or when they end."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_stat_force_next_flush()")
    time.sleep(0.05)


def test_the_cap_and_taking_anothers_place(url: str, maintenance: NewMaintenance) -> None:
    store_users(url, a=220, b=240, c=260)
    work(maintenance(url, max_indexes=2))
    assert users_with_index(url) == {"b", "c"}
    store_users(url, d=350)
    work(maintenance(url, max_indexes=2))
    assert users_with_index(url) == {"b", "c"}, "350 is not half as many again as 240"
    store_users(url, e=361)
    work(maintenance(url, max_indexes=2))
    assert users_with_index(url) == {"c", "e"}
    work(maintenance(url, enabled=False))
    assert users_with_index(url) == set()


def test_orphans_and_leftovers_go(url: str, maintenance: NewMaintenance) -> None:
    store_users(url, owner=300)
    with AnnSession(url) as session:
        ann_indexes.create(session, blueprint("stranger"))
        ann_indexes.create(session, blueprint("owner"))
        ann_indexes.create(session, blueprint("owner", name=name_of("owner") + "_ccnew"))
        ann_indexes.create(session, blueprint("owner", name=name_of("owner") + "_new"))
    work(maintenance(url))
    assert set(indexes_of(url)) == {name_of("owner")}


def test_another_method_is_built(url: str, maintenance: NewMaintenance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ann_indexes, "SETTLE_S", 0)
    store_users(url, owner=300)
    work(maintenance(url))
    work(maintenance(url, options=IndexOptions(method="ivfflat")))
    assert [index.method for index in indexes_of(url).values()] == ["ivfflat"]


def test_the_index_across_users_follows_its_setting(url: str, maintenance: NewMaintenance) -> None:
    store_users(url, one=30, other=20)
    work(maintenance(url, global_index=True))
    assert {name: index.entries for name, index in indexes_of(url).items()} == {GLOBAL_NAME: 50}
    work(maintenance(url))
    assert indexes_of(url) == {}


def test_deleting_most_keeps_recall(url: str, maintenance: NewMaintenance, open_database: OpenDatabase) -> None:
    vectors = clustered.clustered(3_000)
    clustered.store(url, "owner", vectors)
    clustered.analyze(url)
    clustered.wish(url, "owner")
    ours = maintenance(url)
    work(ours)
    before = indexes_of(url)[name_of("owner")]
    left = {number: vector for number, vector in numbered(vectors).items() if number % 10 == 0}
    erase(url, "owner", [number for number in range(3_000) if number % 10])
    searcher = Searcher(open_database(url), "owner", left)
    # The graph is full of the dead; what is lacking is made up for by other plans.
    at_once = searcher.recall(QUERIES)
    settle(url)
    work(ours)
    after = indexes_of(url)[name_of("owner")]
    assert (after.entries, after.state) == (300, IndexState.READY)
    assert after.bytes < before.bytes / 5
    assert searcher.recall(QUERIES) >= 0.98
    assert at_once >= 0.9


def test_one_leads_and_another_takes_over(url: str, maintenance: NewMaintenance) -> None:
    store_users(url, owner=300)
    first, second = maintenance(url), maintenance(url)
    assert first.round()
    store_users(url, another=300)
    assert not second.round()
    assert users_with_index(url) == {"owner"}, "the second does not lead"
    first.resign()
    work(second)
    assert users_with_index(url) == {"owner", "another"}


def test_two_leaders_build_each_index_once(url: str, maintenance: NewMaintenance) -> None:
    store_users(url, **{f"user{number}": 220 for number in range(6)})
    with capture_logs() as logs:
        threads = [threading.Thread(target=work, args=(maintenance(url),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [entry["event"] for entry in logs if entry["event"] != "ann_maintenance_leads"] == ["ann_step_done"] * 6
    assert len(users_with_index(url)) == 6


def test_a_command_at_work_is_not_disturbed(url: str, maintenance: NewMaintenance) -> None:
    store_users(url, owner=300)
    ours = maintenance(url)
    with AnnSession(url) as command:
        assert command.try_lock(AnnLock.WORK)
        assert not ours.round()
        assert indexes_of(url) == {}
    wait_for(ours.round)
    assert users_with_index(url) == {"owner"}
