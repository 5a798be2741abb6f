"""Metrics read when asked for: what they say of a real pool, buffer and index, and of a database that is gone."""

import math
from uuid import uuid4

import psycopg
import pytest

from db import access, embedding_jobs
from db.access import AccessBuffer
from db.ann_catalog import name_of
from db.pool import Database
from db.search_plan import Plan, SearchTuning
from db.search_tuning import ENOUGH, TuningState
from db.wall import ACROSS_USERS
from memory_service.metrics.state import StateMetrics
from tests.api.waiting import eventually
from tests.fix_database import NewDatabase
from tests.storage.conftest import OpenDatabase
from tests.storage.sample_memories import LATER, NOW, new_memory, store


@pytest.fixture
def url(new_database: NewDatabase) -> str:
    """A database of the test's own."""
    return new_database()


@pytest.fixture
def state(url: str, open_database: OpenDatabase) -> StateMetrics:
    """The state of a pool of four connections, an idle buffer and an untouched tuning."""
    return state_of(open_database(url, timeout_s=0.2))


def state_of(database: Database) -> StateMetrics:
    return StateMetrics(
        database=database,
        accesses=AccessBuffer(database, flush_interval_s=3_600),
        tuning=TuningState(SearchTuning(), target=0.98),
        clock=lambda: LATER,
    )


def value(metrics: StateMetrics, name: str, **labels: str) -> float:
    [found] = [
        sample.value
        for family in metrics.collect()
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    return found


def test_the_pool_in_use(state: StateMetrics) -> None:
    assert (value(state, "memory_pool_min_size"), value(state, "memory_pool_max_size")) == (1, 4)

    def busy(_conn: object = None) -> float:
        pool = {sample.name: sample.value for family in state.collect() for sample in family.samples}
        return pool["memory_pool_size"] - pool["memory_pool_available"]

    # One, and perhaps another that is just being made.
    assert 1 <= state.database.read(state.database.call(), busy, user_id=ACROSS_USERS) <= 2
    eventually(lambda: busy() == 0)
    assert value(state, "memory_pool_requests_total") >= 1
    assert value(state, "memory_pool_connections_total") >= 1
    assert 0 < value(state, "memory_pool_connections_seconds_total") < 60


def test_what_never_happened_is_zero(state: StateMetrics) -> None:
    for name in ("requests_errors_total", "returns_bad_total", "connections_errors_total", "connections_lost_total"):
        assert value(state, f"memory_pool_{name}") == 0


def test_the_buffer_fills_and_overflows(state: StateMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "MAX_NOTED", 3)
    state.accesses.record("u", [uuid4() for _ in range(5)], at=NOW)
    assert value(state, "memory_access_buffer_size") == 3
    assert value(state, "memory_access_buffer_dropped_total") == 2
    state.accesses.flush()
    assert value(state, "memory_access_buffer_size") == 0
    assert value(state, "memory_access_buffer_dropped_total") == 2


def test_widening(state: StateMetrics) -> None:
    assert value(state, "memory_search_widening") == 1
    for _ in range(ENOUGH):
        state.tuning.measured(Plan.ANN, 0.5)
    assert value(state, "memory_search_widening") == 2


def test_indexes_by_state(state: StateMetrics, url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for user in ("a", "b"):
            connection.execute(
                f"CREATE INDEX {name_of(user)} ON memory_entries USING hnsw (embedding halfvec_cosine_ops) "
                f"WHERE user_id = '{user}' AND deleted_at IS NULL"
            )
        connection.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = to_regclass(%s)", [name_of("b")])
    states = {name: value(state, "memory_ann_indexes", state=name) for name in ("ready", "building", "invalid")}
    assert states == {"ready": 1, "building": 0, "invalid": 1}


def test_what_waits_for_its_embedding(state: StateMetrics) -> None:
    def size(name: str) -> float:
        return value(state, "memory_embedding_queue_size", state=name)

    assert (size("pending"), size("failed")) == (0, 0)
    assert value(state, "memory_embedding_queue_oldest_seconds") == 0
    store(state.database, "u", *[new_memory(embedding=None) for _ in range(3)])
    [job] = state.database.write(
        state.database.call(),
        lambda conn: embedding_jobs.take(conn, now=NOW, leased_until=LATER, limit=1),
        user_id=ACROSS_USERS,
    )
    state.database.write(
        state.database.call(),
        lambda conn: embedding_jobs.give_up(conn, job, error="refused", now=LATER),
        user_id=ACROSS_USERS,
    )
    assert (size("pending"), size("failed")) == (2, 1)
    assert value(state, "memory_embedding_queue_oldest_seconds") == 3_600


def test_a_database_that_is_gone_leaves_only_its_own_part_unknown(url: str, open_database: OpenDatabase) -> None:
    state = state_of(open_database(url))
    state.database.close()
    assert math.isnan(value(state, "memory_ann_indexes", state="ready"))
    assert math.isnan(value(state, "memory_embedding_queue_size", state="pending"))
    assert math.isnan(value(state, "memory_embedding_queue_oldest_seconds"))
    assert value(state, "memory_pool_max_size") == 4
