"""Rows stored from arrays are those that an INSERT of each makes, and what PostgreSQL refuses it refuses."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from pgvector import HalfVector

from db import bulk_insert, insert
from db.connection import Connection
from db.errors import CallCancelled, DatabaseError, InvalidValue
from db.memory import NewMemory
from db.pool import Database
from db.vectors import Embedding, normalize, normalize_rows
from db.wall import ACROSS_USERS
from tests.storage.conftest import OpenDatabase
from tests.storage.sample_memories import NOW, new_memory, random_vector, rows, unit

ALL_COLUMNS = b"""
SELECT to_jsonb(m) - 'user_id', m.embedding::text, m.embedding_norm FROM memory_entries m
WHERE user_id = %s ORDER BY id
"""

LONGEST = "\N{GRINNING FACE}" * 255

VARIED: dict[str, dict[str, Any]] = {
    "plain": {},
    "unicode": {"content": "Zürich \N{SNOWMAN} 雪 \N{SLEUTH OR SPY}\n\t\\", "summary": "\N{COMBINING ACUTE ACCENT}"},
    "longest ids": {"conversation_id": LONGEST},
    "empty texts": {"content": "", "summary": ""},
    "long texts": {"content": "x" * 65_536, "summary": "\N{SNOWMAN}" * 5_461},
    "metadata": {"metadata": {"a": [1, 2.5, None, True, {"deep": ""}], "": {}, "\N{SNOWMAN}": 2**53, "e": 1e308}},
    "year 1": {"created_at": datetime(1, 1, 1, 0, 0, 0, 1, tzinfo=UTC)},
    "year 9999": {"created_at": datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)},
    "before 2000": {"created_at": datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)},
    "nil id": {"id": UUID(int=0)},
    "largest id": {"id": UUID(int=2**128 - 1)},
    "largest norm": {"embedding": normalize(np.full(8, 3.4e38, np.float32))},
    "smallest norm": {"embedding": normalize(np.full(8, 1e-45, np.float32))},
    "negative zeros": {"embedding": normalize(np.array([1, -0.0, 0, -0.0, 0, 0, 0, 0], np.float32))},
    "subnormal components": {"embedding": normalize(np.array([1e7, *[1.0] * 7], np.float32))},
    "importance": {"importance": 10},
    "model": {"embedding_model": "\N{SNOWMAN}" * 200},
}


def store_all(database: Database, user_id: str, *memories: NewMemory) -> None:
    database.write(database.call(), lambda conn: insert.insert_batch(conn, user_id, memories, now=NOW), user_id=user_id)


@pytest.mark.parametrize("dimensions", [8, 1_536])
def test_a_row_stored_among_others_is_one_stored_alone(
    new_database: Callable[..., str], open_database: OpenDatabase, dimensions: int
) -> None:
    database = open_database(new_database(dimensions=dimensions))
    memories = []
    for seed, fields in enumerate(VARIED.values()):
        if dimensions != 8 or "embedding" not in fields:
            fields = {**fields, "embedding": normalize(random_vector(seed, dimensions=dimensions))}  # noqa: PLW2901 - a copy
        memories.append(new_memory(**fields))
    together, inserted = LONGEST[:-1] + "c", LONGEST[:-1] + "i"

    store_all(database, together, *memories)
    for memory in memories:
        database.write(
            database.call(), partial(insert.insert, user_id=inserted, memory=memory, now=NOW), user_id=ACROSS_USERS
        )

    found = rows(database, ALL_COLUMNS, [together])
    assert len(found) == len(VARIED)
    assert found == rows(database, ALL_COLUMNS, [inserted])


@pytest.mark.parametrize(
    "wrong",
    [
        {"content": "a\0b"},
        {"summary": "\0"},
        {"conversation_id": "c\0"},
        {"metadata": {"key": "\0"}},
        {"metadata": {"nan": float("nan")}},
        {"importance": 0},
        {"importance": 11},
        {"embedding": Embedding(np.array([np.nan] * 8, np.float16), 1.0)},
        {"embedding": Embedding(np.array([np.inf] + [0] * 7, np.float16), 1.0)},
        {"embedding": unit(dimensions=9)},
        {"embedding": unit(dimensions=7)},
    ],
    ids=str,
)
@pytest.mark.parametrize("position", [0, 2])
def test_a_refused_row_takes_all_with_it(
    database: Database, user_id: str, wrong: dict[str, Any], position: int
) -> None:
    dimensions = len(wrong.get("embedding", unit()).unit)
    memories = [new_memory(embedding=unit(dimensions=dimensions)) for _ in range(2)]
    memories.insert(position, new_memory(**wrong))
    with pytest.raises(InvalidValue):
        store_all(database, user_id, *memories)
    assert rows(database, b"SELECT FROM users WHERE user_id = %s", [user_id]) == []
    store_all(database, user_id, new_memory())


def test_a_conversation_that_does_not_exist_is_refused(database: Database, user_id: str) -> None:
    def change(conn: Connection) -> None:
        bulk_insert.insert_rows(conn, user_id, [new_memory(conversation_id="unknown")], now=NOW)

    with pytest.raises(DatabaseError):
        database.write(database.call(), change, user_id=user_id)


def test_nothing_is_stored_for_a_call_that_was_cancelled(database: Database, user_id: str) -> None:
    call = database.call()

    def change(conn: Connection) -> None:
        call.cancel()
        insert.insert_batch(conn, user_id, [new_memory()], now=NOW)

    with pytest.raises(CallCancelled):
        database.write(call, change, user_id=user_id)
    assert rows(database, b"SELECT FROM users WHERE user_id = %s", [user_id]) == []


matrices = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 9)),
    elements=st.floats(width=32),
    fill=st.nothing(),
)


@given(matrices)
def test_rows_are_normalized_as_single_vectors_are(vectors: NDArray[np.float32]) -> None:
    for row, found in zip(vectors, normalize_rows(vectors), strict=True):
        if isinstance(found, Embedding):
            alone = normalize(row)
            assert (found.norm, found.unit.tobytes()) == (alone.norm, alone.unit.tobytes())
        else:
            with pytest.raises(type(found), match=str(found)):
                normalize(row)


def test_more_rows_than_a_block_are_normalized_alike() -> None:
    vectors = np.random.default_rng(5).normal(size=(200, 33)).astype(np.float32)
    vectors[70], vectors[130, 2] = 0.0, np.nan
    found = normalize_rows(vectors)
    assert [index for index, one in enumerate(found) if not isinstance(one, Embedding)] == [70, 130]
    for index in (0, 63, 64, 128, 199):
        one = found[index]
        assert isinstance(one, Embedding)
        assert one.unit.tobytes() == normalize(vectors[index]).unit.tobytes()


@given(matrices.filter(lambda vectors: np.isfinite(vectors).all() and bool(vectors.any(axis=1).all())))
def test_halfvecs_are_encoded_as_pgvector_encodes_them(vectors: NDArray[np.float32]) -> None:
    embeddings = [normalize(row) for row in vectors]
    expected = [HalfVector(embedding.unit).to_binary() for embedding in embeddings]
    assert list(bulk_insert.halfvecs(embeddings)) == expected
