"""Fixtures: the pool that the service uses, over databases of tests/fix_database.py.

* `database`: over a migrated database shared by the module's tests; keep them apart by `user_id`.
* `user_id`: an owner that nobody else writes for.
* `open_database`: a function opening further pools, `open_database(url, max_size=1)`, closed after the test.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from db.pool import Database, PoolOptions
from tests import property_profile
from tests.api.waiting import eventually
from tests.storage.concurrency import Activity

property_profile.load()

OpenDatabase = Callable[..., Database]
"""`open_database(url: str, **options) -> Database`; options are those of PoolOptions."""


def open_filled(database: Database, *, connections: int) -> None:
    """Opens a pool and waits for all its first connections; `open` itself waits for one.

    psycopg_pool draws their lifetimes from `random`, and Hypothesis stops a test in which that moves meanwhile.
    """
    database.open()
    eventually(lambda: database.statistics().get("pool_available", 0) >= connections)


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
