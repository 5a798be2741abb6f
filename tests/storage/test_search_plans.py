"""Every plan of search against brute force: what is exact is exact, and no filter hides what exists."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from db.conditions import AllOf, Compares, Exists, MemberOf, Negated, Operator
from db.filters import Filter
from db.memory import View
from db.pool import Database, PoolOptions
from db.search import Answer, Means, Nearest, search
from db.search_plan import Coarse, Plan, SearchTuning, coarse_of
from db.search_statements import Metric
from db.vectors import normalize
from tests.fix_database import Databases
from tests.storage.sample_memories import NOW, read, soft_delete, store
from tests.storage.sample_population import (
    NEIGHBOUR,
    OWNER,
    ROWS,
    Population,
    nearest_first,
    populate,
    scale,
)

PRECISION = 5e-6

# The embedding stands in the covering index; its signs do; there is no covering index.
DIMENSIONS = {8: Coarse.EMBEDDING, 768: Coarse.SIGNS, 12_001: Coarse.NOTHING}


@pytest.fixture(scope="module", params=[8, 768])
def population(request: pytest.FixtureRequest, databases: Databases) -> Iterator[Population]:
    """The population in a covering index of either kind."""
    yield from populated(databases, request.param)


def populated(databases: Databases, dimensions: int, **sizes: int) -> Iterator[Population]:
    assert coarse_of(dimensions) is DIMENSIONS[dimensions]
    url = databases.create(dimensions)
    database = Database(url, PoolOptions(min_size=1, max_size=2))
    database.open()
    yield populate(database, dimensions=dimensions, **sizes)
    database.close()
    databases.drop(url)


def find(population: Population, user_id: str = OWNER, *, rows: int | None = None, **wanted: Any) -> Answer:
    fields: dict[str, Any] = {
        "metric": Metric.COSINE,
        "limit": 10,
        "filter": Filter(),
        "view": View.HEAD,
        "embedding": normalize(population.queries[1]),
        **wanted,
    }
    means = Means(coarse=coarse_of(population.dimensions), ann=None, user_rows=rows, tuning=SearchTuning())
    database = population.database
    return database.read(database.call(), lambda conn: search(conn, user_id, Nearest(**fields), means), user_id=user_id)


moments = st.integers(-2, 3).map(lambda seconds: NOW + timedelta(seconds=seconds))
wheres = st.sampled_from(
    [
        Compares(("from", "n"), Operator.GREATER, 3.0),
        Compares(("from", "n"), Operator.LESS_OR_EQUAL, "4"),
        Negated(Compares(("from", "n"), Operator.EQUAL, 1.0)),
        AllOf((Exists(("from", "app")), MemberOf(("lang",), ("de", 1.0)))),
        Exists(("nowhere",)),
    ]
)
filter_fields: dict[str, st.SearchStrategy[Any]] = {
    "conversation_id": st.sampled_from(["a", "ab", "unknown"]),
    "min_importance": st.integers(1, 10),
    "max_importance": st.integers(1, 10),
    "created_after": moments,
    "created_before": moments,
    "metadata_contains": st.sampled_from([{}, {"lang": "en"}, {"from": {"app": "chat"}}, {"lang": None}]),
    "where": wheres,
    "show_deleted": st.just(value=True),
}
filters = st.sets(st.sampled_from(sorted(filter_fields)), max_size=3).flatmap(
    lambda names: st.builds(Filter, **{name: filter_fields[name] for name in sorted(names)})
)
searches = st.fixed_dictionaries(
    {
        "metric": st.sampled_from(Metric),
        "filter": filters,
        "limit": st.integers(1, 40),
        "exact": st.booleans(),
        "exclude": st.none() | st.integers(0, ROWS - 1).map(lambda number: UUID(int=number)),
        "candidates": st.none() | st.integers(1, 300),
        # Unknown, right, and quite wrong: how many memories there are may only decide how they are found.
        "rows": st.sampled_from([None, 0, ROWS, 500, 5_000, 100_000]),
    }
)


@given(wanted=searches, query=st.integers(0, 60), threshold=st.none() | st.integers(0, 30))
@settings(max_examples=250)
def test_search_finds_what_brute_force_finds(
    population: Population, wanted: dict[str, Any], query: int, threshold: int | None
) -> None:
    vector = population.queries[query % len(population.queries)]
    passing = population.passing(wanted["filter"], exclude=wanted["exclude"])
    truth = nearest_first(passing, wanted["metric"], vector)
    min_score = None
    if threshold is not None and threshold < len(truth):
        min_score = truth[threshold][0] - PRECISION * scale(wanted["metric"], vector)
    expected = [found for found in truth if min_score is None or found[0] >= min_score][: wanted["limit"]]

    answer = find(population, embedding=normalize(vector), min_score=min_score, **wanted)

    assert_scores(answer, {id_: score for score, id_ in truth}, PRECISION * scale(wanted["metric"], vector))
    if answer.plan is Plan.EXACT:
        assert [hit.memory.id for hit in answer.hits] == [id_ for _, id_ in expected]
        assert not answer.maybe_incomplete
    else:
        assert answer.plan is Plan.QUANTIZED
        assert may_be_quantized(population, wanted)
        assert min_score is not None or len(answer.hits) == len(expected)
        assert answer.maybe_incomplete is (len(answer.hits) < wanted["limit"])
    assert_considered(population, answer, wanted, len(passing))


def assert_scores(answer: Answer, truth: dict[UUID, float], precision: float) -> None:
    """Checks that the hits are the user's, pass the filter, and stand in order with their right scores."""
    for hit in answer.hits:
        assert hit.memory.user_id == OWNER
        assert hit.score == pytest.approx(truth[hit.memory.id], abs=precision)
    order = [(-hit.score, hit.memory.id) for hit in answer.hits]
    assert order == sorted(set(order))


def may_be_quantized(population: Population, wanted: dict[str, Any]) -> bool:
    by_signs = coarse_of(population.dimensions) is Coarse.SIGNS and wanted["metric"] is Metric.COSINE
    return by_signs and not wanted["exact"] and not wanted["filter"].show_deleted


def assert_considered(population: Population, answer: Answer, wanted: dict[str, Any], passing: int) -> None:
    """Checks how many memories were compared, as far as it is promised."""
    assert min(wanted["limit"], passing) <= answer.considered <= passing
    by_embedding = coarse_of(population.dimensions) is Coarse.EMBEDDING
    if answer.plan is Plan.EXACT and not by_embedding:
        assert answer.considered == passing
    if answer.plan is Plan.QUANTIZED and not wanted["filter"].reads_metadata:
        assert answer.considered < passing
        if wanted["candidates"] is not None:
            assert answer.considered == max(wanted["candidates"], wanted["limit"])


def test_more_dimensions_than_an_index_entry_holds(databases: Databases) -> None:
    for population in populated(databases, 12_001, rows=24, vectors=6):
        for metric in Metric:
            for filter_ in (Filter(), Filter(conversation_id="a"), Filter(where=Exists(("lang",)), show_deleted=True)):
                truth = nearest_first(population.passing(filter_), metric, population.queries[1])
                answer = find(population, metric=metric, filter=filter_, rows=100_000)
                assert [hit.memory.id for hit in answer.hits] == [id_ for _, id_ in truth[:10]]
                assert (answer.plan, answer.considered) == (Plan.EXACT, len(truth))


def test_a_neighbour_with_the_same_ids_is_never_seen(population: Population) -> None:
    for user_id in (OWNER, NEIGHBOUR):
        answer = find(population, user_id, limit=1_000, filter=Filter(show_deleted=True), view=View.BASIC)
        assert {hit.memory.content.partition(" of ")[2] for hit in answer.hits if hit.memory.content} == {user_id}
    for stranger in ("", "owner%", "OWNER", "owner  ", "own"):
        assert find(population, stranger).hits == []


@pytest.mark.parametrize("exact", [False, True])
def test_deleted_memories_leave_the_plans_and_come_back(population: Population, *, exact: bool) -> None:
    database, user_id = population.database, f"deletes-{exact}"
    memories = [row.memory for row in population.rows if row.user_id == OWNER][:80]
    store(database, user_id, *memories)
    everything = {memory.id for memory in memories}
    gone = {memory.id for memory in memories[::3]}
    for id_ in gone:
        soft_delete(database, user_id, id_)

    def found(**wanted: Any) -> set[UUID]:
        return {hit.memory.id for hit in find(population, user_id, limit=100, exact=exact, **wanted).hits}

    assert found() == found(rows=5_000) == everything - gone
    assert found(filter=Filter(show_deleted=True)) == everything
    assert read(database, user_id, next(iter(gone))).deleted_at is not None


def test_everything_considered_is_exact(databases: Databases) -> None:
    for population in populated(databases, 768):
        live = len(population.passing(Filter()))
        plans = {number: find(population, candidates=number, rows=100_000) for number in (live - 1, live, live + 1)}
        assert [(answer.plan, answer.considered) for answer in plans.values()] == [
            (Plan.QUANTIZED, live - 1),
            (Plan.EXACT, live),
            (Plan.EXACT, live),
        ]


@pytest.mark.parametrize("dimensions", DIMENSIONS)
def test_the_longest_ids_fit_the_covering_index(databases: Databases, dimensions: int) -> None:
    for population in populated(databases, dimensions, rows=1, vectors=2):
        # Four bytes a character, and nothing for compression to find: what is longest for a B-tree entry.
        random = np.random.default_rng(1)
        user_id, conversation_id = ("".join(map(chr, random.integers(0x10000, 0x10FFFF, 255))) for _ in range(2))
        memory = population.rows[0].memory
        row = {"id": memory.id, "conversation_id": conversation_id, "embedding": memory.embedding}
        store(population.database, user_id, type(memory)(**{**fields_of(memory), **row}))
        answer = find(population, user_id, filter=Filter(conversation_id=conversation_id), rows=100_000)
        assert [hit.memory.id for hit in answer.hits] == [memory.id]


def fields_of(memory: Any) -> dict[str, Any]:
    return {name: getattr(memory, name) for name in memory.__dataclass_fields__}
