"""Search against brute force: the same memories, the same scores, in a fixed order, of one user only."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from db import search
from db.errors import ReplyTooLarge
from db.filters import Filter
from db.memory import NewMemory, View
from db.pool import Database
from db.search import Hit, Means, Nearest
from db.search_plan import SearchTuning, coarse_of
from db.search_statements import Metric
from db.vectors import normalize
from tests.storage import brute_force, sample_filters
from tests.storage.brute_force import Row, score, stored_score
from tests.storage.conftest import OpenDatabase
from tests.storage.sample_memories import (
    DIMENSIONS,
    embedding_of,
    new_memory,
    random_vector,
    read,
    soft_delete,
    store,
    unit,
)

# Components whose float16 forms are exact, so that many vectors tie; and some that are rounded.
components = st.integers(-3, 3).map(float) | st.floats(-10, 10, width=32)
vectors = st.lists(components, min_size=DIMENSIONS, max_size=DIMENSIONS).map(
    lambda values: np.array(values if any(values) else [1.0] * DIMENSIONS, dtype=np.float32)
)

# pgvector sums float16 products in float32; the scale is that of the numbers summed.
PRECISION = 5e-6
# A component is off by 2^-11 of itself at most, and so is the vector.
HALF_PRECISION = 2.0**-11


def find(database: Database, user_id: str, vector: NDArray[np.float32], **wanted: Any) -> list[Hit]:
    fields: dict[str, Any] = {"metric": Metric.COSINE, "limit": 10, "filter": Filter(), **wanted}
    nearest = Nearest(embedding=normalize(vector), **fields)
    means = Means(coarse=coarse_of(DIMENSIONS), ann=None, user_rows=None, tuning=SearchTuning())
    return database.read(
        database.call(), lambda conn: search.search(conn, user_id, nearest, means), user_id=user_id
    ).hits


def neighbours(owner: str) -> list[str]:
    """Returns the owner and users whose ids begin alike."""
    return [owner, owner + "x", owner[:-1]]


@st.composite
def populations(draw: st.DrawFn) -> tuple[str, list[Row]]:
    """A user, and memories of this and other users, whose ids, vectors and all the rest are partly the same."""
    pool = draw(st.lists(vectors, min_size=3, max_size=6))
    owner = uuid4().hex
    owners = st.sets(st.sampled_from(neighbours(owner)), min_size=1)
    rows: list[Row] = []
    for _ in range(draw(st.integers(6, 12))):
        memory = new_memory(
            conversation_id=draw(sample_filters.conversations),
            metadata=draw(sample_filters.metadata),
            importance=draw(sample_filters.importances),
            created_at=draw(sample_filters.moments),
        )
        for user_id in sorted(draw(owners)):
            deleted = draw(st.sampled_from([False, False, False, True]))
            rows.append(row_of(user_id, memory, draw(st.sampled_from(pool)), deleted=deleted))
    return owner, rows


def row_of(user_id: str, memory: NewMemory, vector: NDArray[np.float32], *, deleted: bool) -> Row:
    own = replace(memory, content=f"of {user_id}", embedding=normalize(vector))
    return Row(user_id, own, vector, deleted)


def store_all(database: Database, rows: Sequence[Row]) -> None:
    for user_id in {row.user_id for row in rows}:
        store(database, user_id, *[row.memory for row in rows if row.user_id == user_id])
    for row in rows:
        if row.deleted:
            soft_delete(database, row.user_id, row.memory.id)


def scale(metric: Metric, query: NDArray[np.float32], vector: NDArray[np.float32]) -> float:
    """Returns the size of the numbers that a score is made of."""
    lengths = float(np.linalg.norm(query)), float(np.linalg.norm(vector))
    return {Metric.COSINE: 1.0, Metric.INNER_PRODUCT: lengths[0] * lengths[1], Metric.L2: sum(lengths)}[metric]


@given(
    population=populations(),
    query=vectors,
    filters=st.lists(sample_filters.filters, min_size=4, max_size=4),
    limit=st.integers(1, 15),
    threshold=st.integers(0, 20),
)
def test_search_is_brute_force(
    database: Database,
    *,
    population: tuple[str, list[Row]],
    query: NDArray[np.float32],
    filters: list[Filter],
    limit: int,
    threshold: int,
) -> None:
    user_id, rows = population
    store_all(database, rows)
    for metric in Metric:
        for filter_ in [Filter(), *filters]:
            candidates = brute_force.passing(rows, user_id, filter_)
            expected = {
                id_: stored_score(metric, normalize(query), embedding_of(row.memory)) for id_, row in candidates.items()
            }
            # Beyond the number of scores, the threshold is none.
            min_score = dict(enumerate(expected.values())).get(threshold)
            hits = find(database, user_id, query, metric=metric, limit=limit, filter=filter_, min_score=min_score)

            assert {(hit.memory.user_id, hit.memory.content) for hit in hits} <= {(user_id, f"of {user_id}")}
            assert_exact(hits, candidates, metric, query)
            assert_complete(hits, candidates, expected, metric, query, limit=limit, min_score=min_score)


def assert_exact(hits: list[Hit], candidates: dict[UUID, Row], metric: Metric, query: NDArray[np.float32]) -> None:
    """Checks the scores of what was found, against the rows as stored and the vectors as sent."""
    for hit in hits:
        row = candidates[hit.memory.id]
        size = scale(metric, query, row.original)
        assert abs(hit.score - stored_score(metric, normalize(query), embedding_of(row.memory))) <= PRECISION * size
        assert abs(hit.score - score(metric, query, row.original)) <= 2.1 * HALF_PRECISION * size


def assert_complete(
    hits: list[Hit],
    candidates: dict[UUID, Row],
    expected: dict[UUID, float],
    metric: Metric,
    query: NDArray[np.float32],
    *,
    limit: int,
    min_score: float | None,
) -> None:
    """Checks that the best were found, each once and in order, equal scores by id."""
    order = [(-hit.score, hit.memory.id) for hit in hits]
    assert order == sorted(set(order))
    assert len(hits) <= limit
    assert min_score is None or all(hit.score >= min_score for hit in hits)
    least = hits[-1].score if len(hits) == limit else min_score
    for id_ in candidates.keys() - {hit.memory.id for hit in hits}:
        assert least is not None, "a memory is missing although there is room for it"
        assert expected[id_] <= least + PRECISION * scale(metric, query, candidates[id_].original)


def test_order_of_a_thousand_memories(database: Database, user_id: str) -> None:
    embeddings = {UUID(int=seed): normalize(random_vector(seed)) for seed in range(1_000)}
    store(database, user_id, *[new_memory(id=id_, embedding=embedding) for id_, embedding in embeddings.items()])
    query = random_vector(1_000)
    for metric in Metric:
        hits = find(database, user_id, query, metric=metric, limit=1_000)
        scores = np.array([score(metric, query, embeddings[hit.memory.id].original()) for hit in hits])
        assert {hit.memory.id for hit in hits} == embeddings.keys()
        assert np.all(np.diff(scores) <= 4 * HALF_PRECISION * np.linalg.norm(query))


def test_ties_are_in_order_of_id(database: Database, user_id: str) -> None:
    # Of the same direction and, for inner product and distance, of the same length.
    memories = [new_memory(embedding=unit(0)) for _ in range(20)]
    store(database, user_id, *memories)
    ids = sorted(memory.id for memory in memories)
    for metric in Metric:
        hits = find(database, user_id, np.eye(DIMENSIONS, dtype=np.float32)[0], metric=metric, limit=7)
        assert [hit.memory.id for hit in hits] == ids[:7]


def test_threshold_is_inclusive(database: Database, user_id: str) -> None:
    store(database, user_id, *[new_memory(embedding=normalize(random_vector(seed))) for seed in range(9)])
    for metric in Metric:
        hits = find(database, user_id, random_vector(9), metric=metric)
        for number, hit in enumerate(hits, start=1):
            found = find(database, user_id, random_vector(9), metric=metric, min_score=hit.score)
            assert [hit.memory.id for hit in found] == [hit.memory.id for hit in hits[:number]]
        assert find(database, user_id, random_vector(9), metric=metric, min_score=hits[0].score + 1e-9) == []


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (Metric.COSINE, [1.0, 1.0, 0.0, -1.0]),
        (Metric.INNER_PRODUCT, [6.0, 2.0, 0.0, -2.0]),
        (Metric.L2, [-1.0, -1.0, -np.sqrt(5), -3.0]),
    ],
)
def test_scores_refer_to_the_vectors_as_sent(
    database: Database, user_id: str, metric: Metric, expected: list[float]
) -> None:
    axes = np.eye(DIMENSIONS)
    vectors = [axes[0], 3 * axes[0], axes[1], -axes[0]]
    store(database, user_id, *[new_memory(embedding=normalize(vector)) for vector in vectors])
    hits = find(database, user_id, 2 * axes[0].astype(np.float32), metric=metric)
    assert [hit.score for hit in hits] == pytest.approx(expected, abs=1e-6)


def test_distance_of_vectors_close_together_is_exact(database: Database, user_id: str) -> None:
    # |a|² + |b|² - 2ab would leave nothing of a distance this small.
    vector = 1e6 * np.eye(DIMENSIONS, dtype=np.float64)[0]
    store(database, user_id, new_memory(embedding=normalize(vector)))
    [hit] = find(database, user_id, vector + np.eye(DIMENSIONS)[0] * 0.5, metric=Metric.L2)
    assert hit.score == pytest.approx(-0.5)


def test_identical_vectors_score_best(database: Database, user_id: str) -> None:
    for seed in range(20):
        vector = random_vector(seed)
        store(database, f"{user_id}-{seed}", new_memory(embedding=normalize(vector)))
        for metric, best in ((Metric.COSINE, 1.0), (Metric.L2, 0.0)):
            [hit] = find(database, f"{user_id}-{seed}", vector, metric=metric)
            assert hit.score == pytest.approx(best, abs=1e-6)
            assert hit.score <= best


def test_extreme_lengths_can_be_searched(database: Database, user_id: str) -> None:
    largest, smallest = np.full(8, 3e38, dtype=np.float32), np.full(8, 1e-45, dtype=np.float32)
    store(database, user_id, *[new_memory(embedding=normalize(vector)) for vector in (largest, smallest)])
    for metric in Metric:
        for query in (largest, smallest):
            hits = find(database, user_id, query, metric=metric)
            assert len(hits) == 2
            assert all(np.isfinite(hit.score) for hit in hits)


def test_excluded_memory_is_left_out(database: Database, user_id: str) -> None:
    memories = [new_memory() for _ in range(3)]
    store(database, user_id, *memories)
    hits = find(database, user_id, random_vector(1), exclude=memories[1].id, limit=2)
    assert {hit.memory.id for hit in hits} == {memories[0].id, memories[2].id}


def test_view_decides_what_is_read(database: Database, user_id: str) -> None:
    store(database, user_id, new_memory(content="text", metadata={"a": 1}, conversation_id="c"))
    for view in View:
        [hit] = find(database, user_id, random_vector(1), view=view)
        assert hit.memory.content == (None if view is View.HEAD else "text")
        assert hit.memory.metadata == (None if view is View.HEAD else {"a": 1})
        assert (hit.memory.embedding is None) is (view is not View.FULL)
        whole = read(database, user_id, hit.memory.id, view=view)
        assert replace(hit.memory, embedding=None) == replace(whole, embedding=None)


def test_too_much_text_is_refused_with_its_size(database: Database, user_id: str) -> None:
    store(database, user_id, *[new_memory(content="x" * 100, summary="é", metadata={}) for _ in range(3)])
    each = 100 + 2 + len("{}")
    assert len(find(database, user_id, random_vector(1), max_text_bytes=3 * each)) == 3
    with pytest.raises(ReplyTooLarge, match=f"the 3 results take {3 * each} bytes, a reply at most {3 * each - 1}"):
        find(database, user_id, random_vector(1), max_text_bytes=3 * each - 1)
    assert len(find(database, user_id, random_vector(1), max_text_bytes=2 * each, limit=2)) == 2
    assert len(find(database, user_id, random_vector(1), max_text_bytes=1, view=View.HEAD)) == 3


def test_nothing_stored_nothing_found(database: Database, user_id: str) -> None:
    assert find(database, user_id, random_vector(1), max_text_bytes=0) == []


def test_many_dimensions(new_database: Any, open_database: OpenDatabase) -> None:
    database = open_database(new_database(dimensions=3072))
    vectors = [random_vector(seed, dimensions=3072) for seed in range(12)]
    ids = [UUID(int=index) for index in range(12)]
    store(database, "u", *[new_memory(id=id_, embedding=normalize(v)) for id_, v in zip(ids, vectors, strict=True)])
    for metric in Metric:
        expected = sorted(ids, key=lambda id_: -score(metric, vectors[0], vectors[id_.int]))
        hits = find(database, "u", vectors[0], metric=metric, limit=12)
        assert [hit.memory.id for hit in hits] == expected
