"""Asking for an approximate index: by a count that earns one, once, and without harm where it cannot be done."""

import psycopg
import pytest

from db import ann_indexes
from db.ann_catalog import name_of, wanted_users
from db.ann_demand import AnnDemand
from db.ann_indexes import IndexOptions
from db.ann_policy import AnnPolicy
from db.ann_registry import AnnIndex, AnnRegistry
from db.ann_session import AnnSession
from db.pool import Database
from tests.fix_database import NewDatabase
from tests.storage import clustered
from tests.storage.clustered import DIMENSIONS, NOW, blueprint
from tests.storage.conftest import OpenDatabase

POLICY = AnnPolicy(options=IndexOptions(), min_rows=200, drop_rows=100)


@pytest.fixture
def url(new_database: NewDatabase) -> str:
    return new_database(dimensions=DIMENSIONS)


@pytest.fixture
def pool(url: str, open_database: OpenDatabase) -> Database:
    return open_database(url)


def demand_of(pool: Database, policy: AnnPolicy = POLICY) -> tuple[AnnDemand, AnnRegistry]:
    registry = AnnRegistry(pool)
    registry.refresh()
    return AnnDemand(pool, registry, policy=policy, clock=lambda: NOW), registry


def wanted(url: str) -> list[str]:
    with AnnSession(url) as session:
        return session.query(wanted_users)


def test_enough_memories_earn_an_index(url: str, pool: Database) -> None:
    demand, _ = demand_of(pool)
    demand.counted("large", 200)
    demand.counted("large", 250)
    demand.counted("small", 199)
    assert wanted(url) == ["large"]


def test_nobody_earns_one_where_there_are_none(url: str, pool: Database) -> None:
    demand, _ = demand_of(pool, AnnPolicy(options=IndexOptions(), enabled=False, min_rows=1, drop_rows=1))
    demand.counted("large", 500_000)
    assert wanted(url) == []


def test_the_registry_knows_an_index_once_it_is_ready(url: str, pool: Database) -> None:
    clustered.store(url, "owner", clustered.clustered(300))
    demand, registry = demand_of(pool)
    demand.counted("owner", 300)
    registry.refresh()
    assert registry.of("owner") is None
    with AnnSession(url) as session:
        ann_indexes.create(session, blueprint("owner"))
    registry.refresh()
    assert registry.of("owner") == AnnIndex(name_of("owner"), "hnsw", 0)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DELETE FROM ann_indexes")
    demand.counted("owner", 300)
    assert wanted(url) == [], "one who has an index asks for none"


def test_a_database_that_is_away_harms_nobody(pool: Database) -> None:
    demand, _ = demand_of(pool)
    pool.close()
    demand.counted("large", 300)
