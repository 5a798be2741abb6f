"""The embedding cache: what was stored is found, and nothing else."""

from datetime import timedelta
from functools import partial

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from db import embedding_cache
from db.embedding_cache import Key, cache_key
from db.pool import Database
from tests.storage.concurrency import at_once, deadlocks
from tests.storage.conftest import OpenDatabase
from tests.storage.sample_memories import NOW, random_vector, rows


def look_up(database: Database, *keys: Key) -> dict[Key, NDArray[np.float32]]:
    return database.read(database.call(), lambda conn: embedding_cache.look_up(conn, keys))


def remember(database: Database, embeddings: dict[Key, NDArray[np.float32]]) -> None:
    database.write(database.call(), lambda conn: embedding_cache.store(conn, embeddings, now=NOW))


def test_embeddings_come_back_bit_by_bit(database: Database) -> None:
    vectors = {cache_key("m", 8, f"text {seed}"): random_vector(seed) for seed in range(5)}
    remember(database, vectors)
    unknown = cache_key("m", 8, "another text")
    found = look_up(database, *vectors, unknown)
    assert found.keys() == vectors.keys()
    for key, vector in vectors.items():
        assert found[key].dtype == np.float32
        assert found[key].tobytes() == vector.tobytes()
    assert look_up(database) == {}


def test_first_embedding_stays(database: Database) -> None:
    key = cache_key("m", 8, "once")
    remember(database, {key: random_vector(1)})
    remember(database, {key: random_vector(2), cache_key("m", 8, "other"): random_vector(3)})
    assert look_up(database, key)[key].tobytes() == random_vector(1).tobytes()


def test_same_texts_are_stored_at_once_without_deadlock(database_url: str, open_database: OpenDatabase) -> None:
    database = open_database(database_url)
    vector = random_vector(1)
    for batch in range(4):
        keys = [cache_key("m", 8, f"{batch}-{number}") for number in range(2_000)]
        orders = [np.random.default_rng(seed).permutation(len(keys)) for seed in range(4)]
        same = [{keys[index]: vector for index in order} for order in orders]
        for end in at_once([partial(remember, database, embeddings) for embeddings in same]):
            end.result()
    assert rows(database, b"SELECT count(*) FROM embedding_cache") == [(8_000,)]
    database.close()
    assert deadlocks(database_url) == 0


def test_no_text_is_kept(database: Database) -> None:
    text = "a secret of mine"
    remember(database, {cache_key("m", 8, text): random_vector(1)})
    kept = rows(database, b"SELECT embedding_cache::text FROM embedding_cache")
    assert not any(text in row[0] or text.encode().hex() in row[0] for row in kept)


@given(st.text(max_size=5), st.integers(1, 20), st.text(max_size=5), st.integers(1, 20), st.text(max_size=5))
def test_keys_differ_where_anything_differs(
    model: str, dimensions: int, text: str, other_dimensions: int, other_text: str
) -> None:
    key = cache_key(model, dimensions, text)
    assert len(key) == 32
    assert (key == cache_key(model, other_dimensions, text)) == (dimensions == other_dimensions)
    assert (key == cache_key(model, dimensions, other_text)) == (text == other_text)
    assert key != cache_key(model + "2", dimensions, text)


def test_moment_of_storing_is_kept(database: Database) -> None:
    key = cache_key("m", 8, "moment")
    remember(database, {key: random_vector(1)})
    [(created_at,)] = rows(database, b"SELECT created_at FROM embedding_cache WHERE key = %s", [key])
    assert created_at - NOW == timedelta()
