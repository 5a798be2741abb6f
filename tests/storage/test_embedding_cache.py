"""The embedding cache: what was stored is found, and nothing else."""

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from db import embedding_cache
from db.embedding_cache import Key, cache_key
from db.pool import Database
from db.wall import ACROSS_USERS
from tests.storage.concurrency import at_once, deadlocks
from tests.storage.conftest import OpenDatabase
from tests.storage.sample_memories import NOW, random_vector, rows

DAY = timedelta(days=1)
LONG_AGO = NOW - 30 * DAY


def look_up(database: Database, *keys: Key, expired: datetime = LONG_AGO) -> dict[Key, NDArray[np.float32]]:
    found = database.read(
        database.call(), lambda conn: embedding_cache.look_up(conn, keys, expired=expired), user_id=ACROSS_USERS
    )
    return {key: entry.vector for key, entry in found.items()}


def remember(
    database: Database,
    embeddings: dict[Key, NDArray[np.float32]],
    *,
    now: datetime = NOW,
    expired: datetime = LONG_AGO,
) -> None:
    database.write(
        database.call(),
        lambda conn: embedding_cache.store(conn, embeddings, now=now, expired=expired),
        user_id=ACROSS_USERS,
    )


def used(database: Database, *names: str, at: datetime) -> None:
    """Leaves an entry for each name, last used at that time."""
    remember(database, {cache_key("m", 8, name): random_vector(1) for name in names}, now=at)


def left(database: Database, *names: str) -> list[str]:
    """Returns the names whose entries are there."""
    keys = {cache_key("m", 8, name): name for name in names}
    found = rows(database, b"SELECT key FROM embedding_cache WHERE key = ANY(%s)", [list(keys)])
    return sorted(keys[row[0]] for row in found)


def evict(database: Database, *, used_until: datetime, limit: int = 100) -> int:
    return database.write(
        database.call(),
        lambda conn: embedding_cache.evict(conn, used_until=used_until, limit=limit),
        user_id=ACROSS_USERS,
    )


def excess(database: Database, *, max_rows: int) -> datetime | None:
    return database.read(
        database.call(), lambda conn: embedding_cache.excess(conn, max_rows=max_rows), user_id=ACROSS_USERS
    )


@pytest.fixture(autouse=True)
def empty_cache(database: Database) -> None:
    database.write(database.call(), lambda conn: conn.execute("DELETE FROM embedding_cache"), user_id=ACROSS_USERS)


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


def test_an_entry_not_used_for_long_is_not_found(database: Database) -> None:
    used(database, "a", at=NOW)
    key = cache_key("m", 8, "a")
    assert look_up(database, key, expired=NOW - timedelta(microseconds=1))
    assert look_up(database, key, expired=NOW) == {}


def test_an_expired_entry_is_replaced_and_no_other(database: Database) -> None:
    keys = [cache_key("m", 8, name) for name in ("expired", "fresh")]
    remember(database, {keys[0]: random_vector(1)}, now=NOW)
    remember(database, {keys[1]: random_vector(2)}, now=NOW + DAY)
    remember(database, {key: random_vector(3) for key in keys}, now=NOW + 2 * DAY, expired=NOW)
    found = look_up(database, *keys)
    assert found[keys[0]].tobytes() == random_vector(3).tobytes()
    assert found[keys[1]].tobytes() == random_vector(2).tobytes()
    assert look_up(database, *keys, expired=NOW + DAY).keys() == {keys[0]}


def test_use_is_noted_and_never_taken_back(database: Database) -> None:
    used(database, "a", at=NOW)
    used(database, "b", at=NOW + 2 * DAY)
    keys = [cache_key("m", 8, name) for name in ("a", "b", "unknown")]
    database.write(database.call(), lambda conn: embedding_cache.renew(conn, keys, now=NOW + DAY), user_id=ACROSS_USERS)
    found = database.read(
        database.call(), lambda conn: embedding_cache.look_up(conn, keys, expired=LONG_AGO), user_id=ACROSS_USERS
    )
    assert [found[key].used_at for key in keys[:2]] == [NOW + DAY, NOW + 2 * DAY]
    assert keys[2] not in found


def test_the_least_recently_used_go_first(database: Database) -> None:
    names = [f"{age}" for age in range(9)]
    for age, name in enumerate(names):
        used(database, name, at=NOW - age * DAY)
    assert evict(database, used_until=NOW - 4 * DAY, limit=3) == 3
    assert left(database, *names) == ["0", "1", "2", "3", "4", "5"]
    assert evict(database, used_until=NOW - 4 * DAY, limit=3) == 2
    assert evict(database, used_until=NOW - 4 * DAY, limit=3) == 0
    assert left(database, *names) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("max_rows", [0, 1, 4, 5, 6])
def test_excess_leaves_as_many_as_allowed(database: Database, max_rows: int) -> None:
    names = [f"{age}" for age in range(5)]
    for age, name in enumerate(names):
        used(database, name, at=NOW - age * DAY)
    limit = excess(database, max_rows=max_rows)
    assert (limit is None) == (max_rows >= 5)
    if limit is not None:
        evict(database, used_until=limit)
    assert left(database, *names) == names[:max_rows]


def test_evicting_at_once_deletes_nothing_twice_nor_too_much(database_url: str, open_database: OpenDatabase) -> None:
    database = open_database(database_url)
    names = [f"{age}" for age in range(300)]
    for age, name in enumerate(names):
        used(database, name, at=NOW - age * DAY)

    def evict_excess() -> int:
        limit, total = excess(database, max_rows=100), 0
        while limit is not None and (evicted := evict(database, used_until=limit, limit=7)):
            total += evicted
        return total

    ends = at_once([evict_excess] * 4)
    assert sum(end.result() for end in ends) == 200
    assert left(database, *names) == sorted(names[:100])


def test_evicting_renewing_and_storing_at_once_do_not_deadlock(database_url: str, open_database: OpenDatabase) -> None:
    database = open_database(database_url)
    keys = [cache_key("m", 8, f"{number}") for number in range(500)]
    vectors = dict.fromkeys(keys, random_vector(1))

    def again(change: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(20):
                change()

        return run

    def renew() -> None:
        database.write(
            database.call(), lambda conn: embedding_cache.renew(conn, keys[::-1], now=NOW + DAY), user_id=ACROSS_USERS
        )

    changes: list[Callable[[], object]] = [
        lambda: remember(database, vectors, expired=NOW),
        renew,
        lambda: evict(database, used_until=NOW + DAY, limit=200),
        lambda: remember(database, dict(reversed(vectors.items()))),
    ]
    for end in at_once([again(change) for change in changes]):
        end.result()
    database.close()
    assert deadlocks(database_url) == 0
