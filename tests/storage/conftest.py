"""Fixtures: the pool that the service uses, over databases of tests/fix_database.py.

* `database`: over a migrated database shared by the module's tests; keep them apart by `user_id`.
* `user_id`: an owner that nobody else writes for.
* `open_database`: a function opening further pools, `open_database(url, max_size=1)`, closed after the test.
* `embedder`, `clock`: what embeds texts in its own way, and the time; a test sets what it does and tells.
* `maintenance`: a function making maintenance of approximate indexes, `maintenance(url, min_rows=300)`.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from db import ann_counts
from db.ann_indexes import IndexOptions
from db.ann_maintenance import AnnMaintenance
from db.ann_policy import AnnPolicy
from db.pool import Database, PoolOptions
from db.wall import ACROSS_USERS
from tests import property_profile
from tests.api.waiting import eventually
from tests.clock import Clock
from tests.storage.ann_maintenance_calls import POLICY, NewMaintenance
from tests.storage.concurrency import Activity
from tests.storage.sample_embedder import SampleEmbedder
from tests.storage.sample_memories import NOW

property_profile.load()

OpenDatabase = Callable[..., Database]
"""`open_database(url: str, **options) -> Database`; options are those of PoolOptions."""


# A busy machine takes its time.
FILLED_WITHIN_S = 30.0
ASK_AFTER_S = 5.0


def open_filled(database: Database, *, connections: int) -> None:
    """Opens a pool and waits for all its first connections; `open` itself waits for one.

    psycopg_pool draws their lifetimes from `random`, and Hypothesis stops a test in which that moves meanwhile.
    """
    database.open()
    asks_at = time.monotonic() + ASK_AFTER_S

    def is_filled() -> bool:
        if time.monotonic() > asks_at:  # an attempt that has failed is not repeated until somebody asks
            _borrow_at_once(database, connections)
        return database.statistics().get("pool_available", 0) >= connections

    eventually(is_filled, timeout_s=FILLED_WITHIN_S)


def _borrow_at_once(database: Database, connections: int) -> None:
    if connections:
        database.read(database.call(), lambda _: _borrow_at_once(database, connections - 1), user_id=ACROSS_USERS)


@pytest.fixture(scope="module")
def database(module_database_url: str) -> Iterator[Database]:
    """A pool over the module's database, with room for the threads of a test."""
    database = Database(module_database_url, PoolOptions(min_size=2, max_size=8, timeout_s=10.0))
    open_filled(database, connections=2)
    yield database
    database.close()


@pytest.fixture
def user_id() -> str:
    """An owner of this test alone."""
    return f"user-{uuid4().hex}"


@pytest.fixture
def open_database() -> Iterator[OpenDatabase]:
    """A function opening pools that are closed after the test."""
    with ExitStack() as closing:

        def open_pool(url: str, **options: Any) -> Database:
            pool_options = PoolOptions(**{"min_size": 1, "max_size": 4, **options})
            database = Database(url, pool_options)
            closing.callback(database.close)
            open_filled(database, connections=pool_options.min_size)
            return database

        yield open_pool


@pytest.fixture
def activity_of() -> Iterator[Callable[[str], Activity]]:
    """A function returning the Activity of the database at a URL."""
    with ExitStack() as closing:
        yield lambda url: Activity(closing.enter_context(psycopg.connect(url, autocommit=True)))


@pytest.fixture
def activity(activity_of: Callable[[str], Activity], module_database_url: str) -> Activity:
    """What the sessions of the module's database are doing."""
    return activity_of(module_database_url)


@pytest.fixture
def maintenance(monkeypatch: pytest.MonkeyPatch) -> Iterator[NewMaintenance]:
    """A function making maintenance that is not started: `maintenance(url, min_rows=300)`; closed after the test."""
    monkeypatch.setattr(ann_counts, "LEAST_INTERVAL_S", 0.0)
    with ExitStack() as closing:

        def make(url: str, *, options: IndexOptions | None = None, **policy: Any) -> AnnMaintenance:
            rules = AnnPolicy(options=options or IndexOptions(hnsw_ef_construction=64), **(POLICY | policy))
            made = AnnMaintenance(url, rules, interval_s=3_600)
            closing.callback(made.resign)
            closing.callback(made.close)
            return made

        yield make


@pytest.fixture
def embedder() -> SampleEmbedder:
    """A provider whose answers are not kept in the cache."""
    return SampleEmbedder(cacheable=False)


@pytest.fixture
def clock() -> Clock:
    """The time that the test's calls go by."""
    return Clock(NOW)
