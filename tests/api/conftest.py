"""Fixtures: a stub, a user of the test's own, and what the database holds behind the server's back."""

import uuid
from collections.abc import Callable

import psycopg
import pytest
from psycopg import sql

from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.fix_server import ServerProcess

# Access counters are left out: the server writes them half a second after the test that caused them.
TABLES = ("users", "conversations", "memory_entries", "request_ids", "embedding_cache", "embedding_jobs")

Contents = dict[str, tuple[int, str]]
"""Rows and a checksum over all of them, by table."""

ReadContents = Callable[[], Contents]


@pytest.fixture(scope="module")
def stub(server: ServerProcess) -> MemoryServiceStub:
    """The stub of the module's server: 8 dimensions, no embedder."""
    return server.stub


@pytest.fixture
def user_id() -> str:
    """A user that no other test knows."""
    return f"user-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def other_user_id() -> str:
    """Another one."""
    return f"other-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def contents(module_database_url: str) -> ReadContents:
    """A function telling what the module's database holds: equal results mean that nothing was written."""
    return lambda: contents_of(module_database_url)


def contents_of(database_url: str) -> Contents:
    """Returns the rows and a checksum of each table."""
    query = sql.SQL("SELECT count(*), sum(hashtextextended(t::text, 0))::text FROM {} t")
    with psycopg.connect(database_url, autocommit=True) as connection:
        found: Contents = {}
        for table in TABLES:
            row = connection.execute(query.format(sql.Identifier(table))).fetchone()
            assert row is not None
            found[table] = row
    return found
