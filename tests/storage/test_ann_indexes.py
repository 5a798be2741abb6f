"""Approximate indexes at work: built while others write, used by searches, right with filters and after deletions."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from uuid import UUID

import psycopg
import pytest
from pgvector import HalfVector
from pgvector.psycopg import register_vector

from db import ann_indexes, ann_registry, search_statements
from db.ann_catalog import IndexState, name_of, progress
from db.ann_indexes import Method
from db.ann_registry import AnnRegistry
from db.ann_session import AnnSession
from db.filters import Filter
from db.memory import View
from db.pool import Database, PoolOptions
from db.search_plan import FILTERED_WALK, Plan
from db.search_statements import Metric, shape_of
from db.wall import Entrance, enter, read_roles, settings_of
from tests.fix_database import Databases, NewDatabase
from tests.storage import clustered
from tests.storage.clustered import DIMENSIONS, LIMIT, Searcher, blueprint, indexes_of, numbered
from tests.storage.concurrency import wait_for
from tests.storage.conftest import OpenDatabase

ROWS = 4_000
OWNER = "owner"
BUILD: dict[str, Any] = {"hnsw_ef_construction": 128}
QUERIES = clustered.clustered(50, seed=99)

# What may stand in a user_id and be taken for something else on its way into the index's predicate or the search.
AWKWARD = [
    "it's",
    'say "x"',
    "back\\slash",
    "\\'",
    "100%",
    "%s %(user_id)s {}",
    "$1 :x",
    "жанна \U0001f600",
    "a\nb",
    "--",
    " ",
]


@pytest.fixture(scope="module")
def url(databases: Databases) -> Iterator[str]:
    """A database of this module with one user large enough for an index, and an index."""
    url = databases.create(DIMENSIONS)
    clustered.store(url, OWNER, clustered.clustered(ROWS))
    clustered.store(url, "another", clustered.clustered(500, seed=2))
    clustered.analyze(url)
    with AnnSession(url) as session:
        ann_indexes.create(session, blueprint(OWNER, **BUILD))
    yield url
    databases.drop(url)


@pytest.fixture(scope="module")
def pool(url: str) -> Iterator[Database]:
    database = Database(url, PoolOptions(min_size=1, max_size=2))
    database.open()
    yield database
    database.close()


@pytest.fixture
def searcher(pool: Database) -> Searcher:
    return Searcher(pool, OWNER, numbered(clustered.clustered(ROWS)))


def indexes_used(url: str, user_id: str, *, sorting: str = "on") -> set[str]:
    """Returns the indexes in the plan of an approximate search, as the service would run it."""
    compiled = Filter().compiled()
    shape = shape_of(Metric.COSINE, View.BASIC, compiled, exclude=False)
    parameters: dict[str, Any] = compiled.parameters | {
        "unit": HalfVector(QUERIES[0]),
        "norm": 1.0,
        "exclude": None,
        "limit": 10,
        "walk": 10,
        "min_score": None,
        "max_text_bytes": 2**40,
    }
    with psycopg.connect(url) as connection:
        register_vector(connection)
        connection.execute("SELECT set_config('enable_sort', %s, true)", [sorting])
        roles = read_roles(connection)
        assert roles is not None
        connection.execute(*enter(Entrance(settings_of(user_id, roles))))
        statement = b"EXPLAIN (FORMAT JSON) " + search_statements.ann(shape, user_id)
        row = connection.execute(statement, parameters).fetchone()
    assert row is not None
    return set(index_names(row[0][0]["Plan"]))


def index_names(node: dict[str, Any]) -> Iterator[str]:
    if "Index Name" in node:
        yield node["Index Name"]
    for child in node.get("Plans", []):
        yield from index_names(child)


def test_a_search_uses_the_users_index(url: str) -> None:
    assert name_of(OWNER) in indexes_used(url, OWNER)
    assert name_of(OWNER) not in indexes_used(url, "another")


@pytest.mark.parametrize("user_id", AWKWARD)
def test_whatever_characters_the_user_id_has(url: str, user_id: str) -> None:
    clustered.store(url, user_id, clustered.clustered(100, seed=5))
    with AnnSession(url) as session:
        ann_indexes.create(session, blueprint(user_id, **BUILD))
        try:
            index = indexes_of(url)[name_of(user_id)]
            assert (index.state, index.entries) == (IndexState.READY, 100)
            # So small a user is better sorted; it is enough that the predicate is recognized.
            assert name_of(user_id) in indexes_used(url, user_id, sorting="off")
        finally:
            ann_indexes.drop(session, name_of(user_id))


def test_it_finds_what_an_exact_search_finds(searcher: Searcher) -> None:
    assert searcher.answer(QUERIES[0]).plan is Plan.ANN
    assert searcher.recall(QUERIES) >= 0.98


@pytest.mark.parametrize(
    ("filter_", "kept"),
    [
        pytest.param(Filter(min_importance=10), lambda number: number % 10 == 9, id="10 %"),
        pytest.param(Filter(metadata_contains={"hundredth": 7}), lambda number: number % 100 == 7, id="1 %"),
        # 4 memories of 4,000: fewer than are asked for.
        pytest.param(Filter(metadata_contains={"thousandth": 7}), lambda number: number % 1_000 == 7, id="0.1 %"),
    ],
)
def test_filters_hide_nothing(searcher: Searcher, filter_: Filter, kept: Any) -> None:
    assert searcher.recall(QUERIES, filter_, kept) >= 0.98


def test_a_filter_that_lets_enough_through_is_judged_on_the_way(searcher: Searcher) -> None:
    answer = searcher.answer(QUERIES[0], Filter(min_importance=10))
    assert answer.plan is Plan.ANN
    # More than the results were compared: what an index hands over past a filter is only nearly in order.
    assert answer.considered == FILTERED_WALK * LIMIT


def test_memories_stored_during_a_build_are_found(new_database: NewDatabase, open_database: OpenDatabase) -> None:
    url = new_database(dimensions=DIMENSIONS)
    before, meanwhile = clustered.clustered(1_500), clustered.clustered(100, seed=3)
    clustered.store(url, OWNER, before)
    with ThreadPoolExecutor(1) as threads, AnnSession(url) as session, AnnSession(url) as onlooker:
        slow = blueprint(OWNER, hnsw_ef_construction=1_000)
        build = threads.submit(ann_indexes.create, session, slow)
        wait_for(lambda: building(onlooker))
        stored = 0
        while stored < len(meanwhile) and not build.done():
            clustered.store(url, OWNER, meanwhile[stored : stored + 10], first=5_000 + stored)
            stored += 10
        assert stored > 0
        assert not build.done(), "the build was over too soon to prove anything"
        erased = list(range(100))
        clustered.erase(url, OWNER, erased)
        build.result()
    live = numbered(before) | numbered(meanwhile[:stored], first=5_000)
    for number in erased:
        del live[number]
    searcher = Searcher(open_database(url), OWNER, live)
    assert searcher.answer(QUERIES[0]).plan is Plan.ANN
    assert searcher.recall(QUERIES) >= 0.98
    for number in range(5_000, 5_000 + stored):
        [hit, *_] = searcher.answer(live[number]).hits
        assert hit.memory.id == UUID(int=number)


def building(onlooker: AnnSession) -> bool:
    seen = onlooker.query(progress)
    return seen is not None and seen.done > 0


@pytest.mark.parametrize(("old", "new"), [("hnsw", "ivfflat"), ("ivfflat", "hnsw"), ("hnsw", "hnsw")])
def test_searches_stay_right_while_an_index_is_replaced(
    new_database: NewDatabase, open_database: OpenDatabase, monkeypatch: pytest.MonkeyPatch, old: Method, new: Method
) -> None:
    monkeypatch.setattr(ann_registry, "REFRESH_S", 0.5)
    monkeypatch.setattr(ann_indexes, "SETTLE_S", 1.0)
    url = new_database(dimensions=DIMENSIONS)
    vectors = clustered.clustered(1_500)
    clustered.store(url, OWNER, vectors)
    clustered.analyze(url)
    clustered.wish(url, OWNER)
    database = open_database(url)
    with ThreadPoolExecutor(1) as threads, AnnSession(url) as session, closing(AnnRegistry(database)) as registry:
        ann_indexes.create(session, blueprint(OWNER, method=old, ivfflat_lists=4))
        registry.start()
        replacement = threads.submit(
            ann_indexes.replace, session, blueprint(OWNER, method=new, ivfflat_lists=64, hnsw_m=8)
        )
        recalls = []
        while not replacement.done() or registry.of(OWNER) is None:
            known = registry.of(OWNER)
            searcher = Searcher(database, OWNER, numbered(vectors), method=known.method if known else None)
            recalls.append(searcher.recall(QUERIES[:3]))
        replacement.result()
    assert min(recalls) >= 0.9
    assert sum(recalls) / len(recalls) >= 0.98
    [index] = indexes_of(url).values()
    assert (index.name, index.method, index.state) == (name_of(OWNER), new, IndexState.READY)
