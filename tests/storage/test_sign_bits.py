"""The signs of embeddings: every way of storing an embedding stores them, and the table takes none without them."""

from collections.abc import Callable, Iterator
from functools import partial

import psycopg
import pytest

from db import embedding_jobs, insert
from db.connection import Connection
from db.memory import NewMemory
from db.pool import Database, PoolOptions
from db.search_plan import MAX_INDEXED_DIMENSIONS, SIGNS_FROM_DIMENSIONS
from db.sign_bits import kept_for
from db.update import Changes, update
from db.vectors import Embedding, normalize
from db.wall import ACROSS_USERS
from tests.fix_database import Databases
from tests.storage.sample_memories import LATER, NOW, new_memory, random_vector, rows, store

DIMENSIONS = SIGNS_FROM_DIMENSIONS


@pytest.fixture(scope="module")
def wide_url(databases: Databases) -> Iterator[str]:
    url = databases.create(DIMENSIONS)
    yield url
    databases.drop(url)


@pytest.fixture
def wide(wide_url: str) -> Iterator[Database]:
    """A database whose rows have bits."""
    database = Database(wide_url, PoolOptions(min_size=1, max_size=2))
    database.open()
    yield database
    database.close()


def embedding(seed: int) -> Embedding:
    return normalize(random_vector(seed, dimensions=DIMENSIONS))


def inserted(database: Database, user_id: str, memory: NewMemory) -> None:
    database.write(database.call(), partial(insert.insert, user_id=user_id, memory=memory, now=NOW), user_id=user_id)


def inserted_in_a_batch(database: Database, user_id: str, memory: NewMemory) -> None:
    waiting = new_memory(embedding=None)
    store(database, user_id, waiting, memory)


def updated(database: Database, user_id: str, memory: NewMemory) -> None:
    store(database, user_id, new_memory(id=memory.id, embedding=embedding(1)))
    changes = Changes(embedding=memory.embedding or embedding(2), embedding_model="m")

    def change(conn: Connection) -> None:
        update(conn, user_id, memory.id, changes, etag="", now=NOW, check_metadata=lambda _: None)

    database.write(database.call(), change, user_id=user_id)


def embedded_later(database: Database, user_id: str, memory: NewMemory) -> None:
    store(database, user_id, new_memory(id=memory.id, embedding=None))

    def change(conn: Connection) -> int:
        taken = embedding_jobs.take(conn, now=NOW, leased_until=LATER, limit=10)
        jobs = [job for job in taken if job.user_id == user_id]
        return embedding_jobs.complete(conn, jobs, [memory.embedding or embedding(2)] * len(jobs), model="m")

    assert database.write(database.call(), change, user_id=ACROSS_USERS) == 1


@pytest.mark.parametrize("way", [inserted, inserted_in_a_batch, updated, embedded_later])
def test_an_embedding_comes_with_its_signs(
    wide: Database, user_id: str, way: Callable[[Database, str, NewMemory], None]
) -> None:
    memory = new_memory(embedding=embedding(3))
    way(wide, user_id, memory)
    [(bits,)] = rows(wide, b"SELECT bits::text FROM memory_entries WHERE id = %s", [memory.id])
    assert bits == "".join("1" if component > 0 else "0" for component in embedding(3).unit)


def test_none_is_taken_without_them(wide_url: str, wide: Database, user_id: str) -> None:
    memory = new_memory(embedding=embedding(3))
    store(wide, user_id, memory)
    for column in (b"bits", b"embedding", b"embedding_norm", b"embedding_model"):
        with psycopg.connect(wide_url) as connection, pytest.raises(psycopg.errors.CheckViolation):
            connection.execute(b"UPDATE memory_entries SET " + column + b" = NULL WHERE id = %s", [memory.id])


@pytest.mark.parametrize(
    ("dimensions", "kept"),
    [
        (SIGNS_FROM_DIMENSIONS - 1, False),
        (SIGNS_FROM_DIMENSIONS, True),
        (MAX_INDEXED_DIMENSIONS, True),
        (MAX_INDEXED_DIMENSIONS + 1, False),
    ],
)
def test_they_are_kept_where_searches_pick_by_them(dimensions: int, *, kept: bool) -> None:
    assert kept_for(dimensions) is kept
