"""Embedding texts through the cache: the provider is asked as seldom as can be, and its errors name the right text."""

import threading
import time
from collections.abc import Sequence
from datetime import datetime, timedelta

import numpy as np
import psycopg
import pytest
import structlog
from numpy.typing import NDArray

from db.errors import CallCancelled, StatementTimeout
from db.pool import Database
from db.vectors import Embedding
from db.wall import ACROSS_USERS
from memory_service.embedding.errors import EmbedderUnavailable, TextNotEmbeddable
from memory_service.text_embeddings import DEFAULT_TIMEOUT_S, TextEmbeddings
from memory_service.vector_cache import CacheOptions
from tests.clock import Clock
from tests.storage.concurrency import LIMIT_S, at_once
from tests.storage.conftest import OpenDatabase
from tests.storage.sample_embedder import SampleEmbedder, vector_of
from tests.storage.sample_memories import NOW, rows

DAY = timedelta(days=1)


@pytest.fixture
def embedder() -> SampleEmbedder:
    return SampleEmbedder(cacheable=True)


@pytest.fixture
def embeddings(embedder: SampleEmbedder, database: Database) -> TextEmbeddings:
    return TextEmbeddings(embedder, database, lambda: NOW)


@pytest.fixture(autouse=True)
def empty_cache(database: Database) -> None:
    database.write(database.call(), lambda conn: conn.execute("DELETE FROM embedding_cache"), user_id=ACROSS_USERS)


def directions(found: Sequence[Embedding]) -> list[list[float]]:
    return [embedding.unit.tolist() for embedding in found]


def expected(texts: Sequence[str]) -> list[list[float]]:
    vectors = [vector_of(text).astype(np.float64) for text in texts]
    return [(vector / np.linalg.norm(vector)).astype(np.float16).tolist() for vector in vectors]


def test_cached_texts_are_not_asked_again(
    embeddings: TextEmbeddings, embedder: SampleEmbedder, database: Database
) -> None:
    first = embeddings.embed(["a", "b"], database.call())
    assert directions(embeddings.embed(["b", "c", "a"], database.call())) == expected(["b", "c", "a"])
    assert embedder.asked == [["a", "b"], ["c"]]
    again = embeddings.embed(["a", "b"], database.call())
    assert [embedding.norm for embedding in again] == [embedding.norm for embedding in first]
    assert len(embedder.asked) == 2


def test_repeated_texts_are_asked_once(
    embeddings: TextEmbeddings, embedder: SampleEmbedder, database: Database
) -> None:
    texts = ["a", "b", "a", "c", "b", "a"]
    assert directions(embeddings.embed(texts, database.call())) == expected(texts)
    assert embedder.asked == [["a", "b", "c"]]


def test_nothing_to_embed(embeddings: TextEmbeddings, embedder: SampleEmbedder, database: Database) -> None:
    assert embeddings.embed([], database.call()) == []
    assert embedder.asked == []


@pytest.mark.parametrize(
    "other", [SampleEmbedder(cacheable=True, model="other"), SampleEmbedder(cacheable=True, dimensions=4)]
)
def test_models_do_not_share_embeddings(embeddings: TextEmbeddings, database: Database, other: SampleEmbedder) -> None:
    embeddings.embed(["a"], database.call())
    TextEmbeddings(other, database, lambda: NOW).embed(["a"], database.call())
    assert other.asked == [["a"]]


def test_cheap_embeddings_are_not_cached(database: Database) -> None:
    embedder = SampleEmbedder(cacheable=False)
    embeddings = TextEmbeddings(embedder, database, lambda: NOW)
    before = database.statistics().get("requests_num", 0)
    assert directions(embeddings.embed(["a", "a"], database.call())) == expected(["a", "a"])
    embeddings.embed(["a"], database.call())
    assert embedder.asked == [["a"], ["a"]]
    assert database.statistics().get("requests_num", 0) == before


def test_refused_text_is_named_by_its_first_position(
    embeddings: TextEmbeddings, embedder: SampleEmbedder, database: Database
) -> None:
    embeddings.embed(["known"], database.call())
    embedder.refused = {"bad"}
    with pytest.raises(TextNotEmbeddable) as caught:
        embeddings.embed(["known", "a", "a", "bad", "b", "bad"], database.call())
    assert (caught.value.index, caught.value.reason) == (3, "is refused")
    # Nothing of a failed request is remembered.
    embedder.refused = set()
    embeddings.embed(["a"], database.call())
    assert embedder.asked[-1] == ["a"]


@pytest.mark.parametrize(
    ("vector", "reason"),
    [
        (np.zeros(8, dtype=np.float32), "its embedding is the zero vector, which has no direction"),
        (np.full(8, np.nan, dtype=np.float32), "its embedding is NaN at position 0"),
    ],
)
def test_embedding_without_direction_is_refused(
    embeddings: TextEmbeddings,
    embedder: SampleEmbedder,
    database: Database,
    vector: NDArray[np.float32],
    reason: str,
) -> None:
    embedder.special = {"odd": vector}
    with pytest.raises(TextNotEmbeddable) as caught:
        embeddings.embed(["a", "odd"], database.call())
    assert (caught.value.index, caught.value.reason) == (1, reason)
    embedder.special = {}
    assert directions(embeddings.embed(["odd"], database.call())) == expected(["odd"])


def test_cache_that_cannot_be_written_does_not_fail_the_call(
    database_url: str, open_database: OpenDatabase, embedder: SampleEmbedder
) -> None:
    database = open_database(database_url)
    with psycopg.connect(database_url) as operator:
        operator.execute(
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS "
            "$$BEGIN RAISE SQLSTATE '53100' USING MESSAGE = 'hush'; END$$"
        )
        operator.execute("CREATE TRIGGER full_disk BEFORE INSERT ON embedding_cache EXECUTE FUNCTION full_disk()")
    embeddings = TextEmbeddings(embedder, database, lambda: NOW)
    with structlog.testing.capture_logs() as events:
        assert directions(embeddings.embed(["hush"], database.call())) == expected(["hush"])
    [event] = events
    assert event["event"] == "embedding_cache_not_written"
    assert "hush" not in str(event)


def count_writes(database_url: str) -> None:
    """Lets the database count how often each entry is written, the times in vain included."""
    with psycopg.connect(database_url) as operator:
        operator.execute("CREATE TABLE writes (key bytea)")
        operator.execute("GRANT ALL ON writes TO PUBLIC")
        operator.execute(
            "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS "
            "$$BEGIN INSERT INTO writes VALUES (NEW.key); RETURN NEW; END$$"
        )
        operator.execute("CREATE TRIGGER note BEFORE INSERT ON embedding_cache FOR EACH ROW EXECUTE FUNCTION note()")


def test_of_callers_at_the_same_time_one_writes_the_cache(
    database_url: str, open_database: OpenDatabase, embedder: SampleEmbedder
) -> None:
    count_writes(database_url)
    database = open_database(database_url, max_size=10)
    embeddings = TextEmbeddings(embedder, database, lambda: NOW)
    all_ask = threading.Barrier(10)
    embedder.meanwhile = lambda: all_ask.wait(LIMIT_S)

    for found in at_once([lambda: embeddings.embed(["a", "b"], database.call())] * 10):
        assert directions(found.result()) == expected(["a", "b"])

    assert rows(database, b"SELECT count(*), count(DISTINCT key) FROM writes") == [(2, 2)]
    # Nothing is held against a text that was evicted since.
    database.write(database.call(), lambda conn: conn.execute("DELETE FROM embedding_cache"), user_id=ACROSS_USERS)
    embedder.meanwhile = lambda: None
    embeddings.embed(["a"], database.call())
    assert rows(database, b"SELECT count(*) FROM embedding_cache") == [(1,)]


def test_who_could_not_write_the_cache_leaves_it_to_the_others(
    database_url: str, open_database: OpenDatabase, embedder: SampleEmbedder
) -> None:
    database = open_database(database_url)
    embeddings = TextEmbeddings(embedder, database, lambda: NOW)
    with psycopg.connect(database_url) as operator:
        operator.execute("CREATE TABLE full_disk AS SELECT true AS is_full")
        operator.execute("GRANT ALL ON full_disk TO PUBLIC")
        operator.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN "
            "IF EXISTS (SELECT FROM full_disk) THEN RAISE SQLSTATE '53100'; END IF; RETURN NEW; END$$"
        )
        operator.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON embedding_cache FOR EACH ROW EXECUTE FUNCTION refuse()"
        )

    def first_caller_fails() -> None:
        embedder.meanwhile = lambda: None
        embeddings.embed(["a"], database.call())
        with psycopg.connect(database_url) as operator:
            operator.execute("DELETE FROM full_disk")

    embedder.meanwhile = first_caller_fails
    embeddings.embed(["a"], database.call())
    assert len(rows(database, b"SELECT FROM embedding_cache")) == 1


def test_provider_s_outage_is_the_caller_s(
    embeddings: TextEmbeddings, embedder: SampleEmbedder, database: Database
) -> None:
    embedder.error = EmbedderUnavailable("it is down", retry_after_s=7.0)
    with pytest.raises(EmbedderUnavailable) as caught:
        embeddings.embed(["a"], database.call())
    assert caught.value.retry_after_s == 7.0
    assert rows(database, b"SELECT FROM embedding_cache") == []


def test_call_that_ended_meanwhile_is_no_outage(
    embeddings: TextEmbeddings, embedder: SampleEmbedder, database: Database
) -> None:
    embedder.error = EmbedderUnavailable("nobody waits any more", retry_after_s=1.0)
    cancelled = database.call()
    embedder.meanwhile = cancelled.cancel
    with pytest.raises(CallCancelled):
        embeddings.embed(["a"], cancelled)
    embedder.meanwhile = lambda: time.sleep(0.2)
    with pytest.raises(StatementTimeout):
        embeddings.embed(["a"], database.call(timeout_s=0.2))


def test_provider_has_as_long_as_the_call(
    embeddings: TextEmbeddings, embedder: SampleEmbedder, database: Database
) -> None:
    embeddings.embed(["a"], database.call())
    embeddings.embed(["b"], database.call(timeout_s=5.0))
    without, within = embedder.timeouts_s
    assert without == DEFAULT_TIMEOUT_S
    assert 0 < within <= 5


def test_model_is_the_embedder_s(embeddings: TextEmbeddings, embedder: SampleEmbedder) -> None:
    assert embeddings.model == embedder.model


@pytest.fixture
def looked_up() -> list[tuple[int, int]]:
    """Hits and misses of each look-up."""
    return []


@pytest.fixture
def timed(
    embedder: SampleEmbedder, database: Database, clock: Clock, looked_up: list[tuple[int, int]]
) -> TextEmbeddings:
    """Keeps embeddings for 30 days."""
    options = CacheOptions(ttl=30 * DAY, on_look_up=lambda *, hits, misses: looked_up.append((hits, misses)))
    return TextEmbeddings(embedder, database, clock, cache=options)


def test_what_nobody_used_for_long_is_asked_again(
    timed: TextEmbeddings, embedder: SampleEmbedder, database: Database, clock: Clock
) -> None:
    timed.embed(["a"], database.call())
    clock.now = NOW + 30 * DAY
    timed.embed(["a"], database.call())
    assert embedder.asked == [["a"], ["a"]]
    clock.now = NOW + 59 * DAY
    timed.embed(["a"], database.call())
    assert len(embedder.asked) == 2


def test_use_keeps_an_embedding(
    timed: TextEmbeddings, embedder: SampleEmbedder, database: Database, clock: Clock
) -> None:
    for _ in range(5):
        timed.embed(["a"], database.call())
        clock.now += 29 * DAY
    assert embedder.asked == [["a"]]


def test_use_is_noted_once_a_day(timed: TextEmbeddings, database: Database, clock: Clock) -> None:
    def noted() -> datetime:
        [(used_at,)] = rows(database, b"SELECT created_at FROM embedding_cache")
        assert isinstance(used_at, datetime)
        return used_at

    timed.embed(["a"], database.call())
    clock.now = NOW + DAY
    timed.embed(["a"], database.call())
    assert noted() == NOW
    clock.now = NOW + DAY + timedelta(seconds=1)
    timed.embed(["a"], database.call())
    assert noted() == clock.now


def test_hits_and_misses_are_counted(
    timed: TextEmbeddings, database: Database, looked_up: list[tuple[int, int]]
) -> None:
    timed.embed(["a", "b", "a"], database.call())
    timed.embed(["b", "c", "a"], database.call())
    assert looked_up == [(0, 2), (2, 1)]


def test_cache_can_be_off(embedder: SampleEmbedder, database: Database) -> None:
    embeddings = TextEmbeddings(embedder, database, lambda: NOW, cache=CacheOptions(enabled=False))
    for _ in range(2):
        assert directions(embeddings.embed(["a"], database.call())) == expected(["a"])
    assert embedder.asked == [["a"], ["a"]]
    assert rows(database, b"SELECT FROM embedding_cache") == []
