"""SearchSimilar: metrics, thresholds, ties, views, and the counting of accesses."""

import uuid
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import failure, send
from tests.api.messages import (
    axis,
    f16,
    f32,
    floats,
    get,
    insert,
    insert_all,
    new_memory,
    values_of,
)
from tests.api.waiting import eventually

RANDOM = np.random.default_rng(20_240_101)
VECTORS: NDArray[np.float32] = (RANDOM.standard_normal((40, 8)) * RANDOM.uniform(0.1, 9, (40, 1))).astype(np.float32)
QUERY: NDArray[np.float32] = (RANDOM.standard_normal(8) * 3).astype(np.float32)

SCORES = {
    pb.METRIC_COSINE: VECTORS @ QUERY / (np.linalg.norm(VECTORS, axis=1) * np.linalg.norm(QUERY)),
    pb.METRIC_INNER_PRODUCT: VECTORS @ QUERY,
    pb.METRIC_L2: -np.linalg.norm(VECTORS - QUERY, axis=1),
}

# How large scores can become: float16 rounds in proportion to it.
SCALES = {
    pb.METRIC_COSINE: 1.0,
    pb.METRIC_INNER_PRODUCT: float(np.linalg.norm(VECTORS, axis=1).max() * np.linalg.norm(QUERY)),
    pb.METRIC_L2: float(np.linalg.norm(VECTORS, axis=1).max() + np.linalg.norm(QUERY)),
}


def search(stub: MemoryServiceStub, user_id: str, **fields: Any) -> list[pb.SearchResult]:
    """Searches near the first axis unless told where."""
    if not fields.keys() & {"embedding", "text", "memory_id"}:
        fields["embedding"] = axis(0)
    return list(send(stub, pb.SearchSimilarRequest(user_id=user_id, **fields)).results)


def ids_of(results: list[pb.SearchResult]) -> list[str]:
    return [result.memory.id for result in results]


@pytest.fixture
def ids(stub: MemoryServiceStub, user_id: str) -> list[str]:
    """Memories with the embeddings VECTORS."""
    return insert_all(stub, user_id, [new_memory(f"{i}", embedding=f32(vector)) for i, vector in enumerate(VECTORS)])


@pytest.mark.parametrize("metric", SCORES)
@pytest.mark.parametrize("encode", [floats, f32, f16])
def test_scores_are_those_of_the_vectors_as_sent(
    stub: MemoryServiceStub, user_id: str, ids: list[str], metric: pb.Metric.ValueType, encode: Any
) -> None:
    results = search(stub, user_id, embedding=encode(QUERY), metric=metric, limit=40)

    scores = np.array([result.score for result in results])
    expected = SCORES[metric][[ids.index(memory_id) for memory_id in ids_of(results)]]
    np.testing.assert_allclose(scores, expected, rtol=0, atol=2e-3 * SCALES[metric])
    assert np.all(np.diff(scores) <= 0)
    assert set(ids_of(results)) == set(ids)


def test_cosine_is_the_metric_unless_told_otherwise(stub: MemoryServiceStub, user_id: str, ids: list[str]) -> None:
    assert len(ids) == 40
    query = floats(QUERY)

    assert search(stub, user_id, embedding=query) == search(stub, user_id, embedding=query, metric=pb.METRIC_COSINE)


@pytest.mark.parametrize(("metric", "score"), [(pb.METRIC_COSINE, 1), (pb.METRIC_L2, 0), (pb.METRIC_INNER_PRODUCT, 9)])
def test_the_scale_of_an_exact_match(
    stub: MemoryServiceStub, user_id: str, metric: pb.Metric.ValueType, score: float
) -> None:
    insert(stub, user_id, embedding=axis(4, 3.0))

    [found] = search(stub, user_id, embedding=axis(4, 3.0), metric=metric)

    assert found.score == pytest.approx(score, abs=1e-3)


def test_ten_results_unless_told_otherwise(stub: MemoryServiceStub, user_id: str, ids: list[str]) -> None:
    assert len(search(stub, user_id)) == 10
    assert len(search(stub, user_id, limit=3)) == 3
    assert len(search(stub, user_id, limit=1_000)) == len(ids)


@pytest.mark.parametrize("metric", SCORES)
def test_a_threshold_on_the_metrics_own_scale(
    stub: MemoryServiceStub, user_id: str, ids: list[str], metric: pb.Metric.ValueType
) -> None:
    threshold = float(np.sort(SCORES[metric])[-7:-5].mean())

    results = search(stub, user_id, embedding=f32(QUERY), metric=metric, limit=40, min_score=threshold)

    assert {ids.index(memory_id) for memory_id in ids_of(results)} == set(np.flatnonzero(SCORES[metric] >= threshold))
    assert search(stub, user_id, metric=metric, min_score=float("inf")) == []


def test_a_threshold_of_zero_is_one(stub: MemoryServiceStub, user_id: str) -> None:
    insert(stub, user_id, embedding=axis(0, -1))

    assert search(stub, user_id, min_score=0.0) == []
    assert len(search(stub, user_id, min_score=float("-inf"))) == 1


def test_equal_scores_are_ordered_by_id(stub: MemoryServiceStub, user_id: str) -> None:
    ids = insert_all(stub, user_id, [new_memory(id=str(uuid.uuid4())) for _ in range(20)])

    assert ids_of(search(stub, user_id, limit=12)) == sorted(ids)[:12]


def test_near_a_memory_which_is_itself_left_out(stub: MemoryServiceStub, user_id: str) -> None:
    origin, near = insert(stub, user_id, embedding=axis(0, 5)), insert(stub, user_id, embedding=floats([1] * 8))
    far = insert(stub, user_id, embedding=axis(0, -1))

    results = search(stub, user_id, memory_id=origin.id)

    assert ids_of(results) == [near.id, far.id]
    assert results[1].score == pytest.approx(-1, abs=1e-3)
    [nearest] = search(stub, user_id, memory_id=origin.id, metric=pb.METRIC_INNER_PRODUCT, limit=1)
    assert nearest.score == pytest.approx(5, rel=1e-2)


def test_near_a_deleted_memory_only_if_those_are_shown(stub: MemoryServiceStub, user_id: str) -> None:
    origin, other = insert(stub, user_id), insert(stub, user_id)
    send(stub, pb.DeleteVectorRequest(user_id=user_id, id=origin.id))

    refused = failure(lambda: search(stub, user_id, memory_id=origin.id))

    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "MEMORY_DELETED")
    assert ids_of(search(stub, user_id, memory_id=origin.id, show_deleted=True)) == [other.id]


def test_near_an_unknown_memory_finds_none(stub: MemoryServiceStub, user_id: str) -> None:
    missing = failure(lambda: search(stub, user_id, memory_id=str(uuid.uuid4())))

    assert (missing.code, missing.reason) == (grpc.StatusCode.NOT_FOUND, "MEMORY_NOT_FOUND")


def test_deleted_memories_are_found_on_request(stub: MemoryServiceStub, user_id: str) -> None:
    live, gone = insert(stub, user_id), insert(stub, user_id)
    send(stub, pb.DeleteVectorRequest(user_id=user_id, id=gone.id))

    assert ids_of(search(stub, user_id)) == [live.id]
    assert ids_of(search(stub, user_id, show_deleted=True)) == [live.id, gone.id]


def test_results_are_memories_as_get_returns_them(stub: MemoryServiceStub, user_id: str) -> None:
    memory = insert(stub, user_id, "content", summary="s", metadata={"k": "v"}, conversation_id="c", importance=2)

    [found] = search(stub, user_id, skip_access_recording=True)
    [head] = search(stub, user_id, view=pb.MEMORY_VIEW_HEAD, skip_access_recording=True)

    assert found.memory == memory
    assert (head.memory.id, head.memory.content, head.score) == (memory.id, "", found.score)


@pytest.mark.parametrize("encode", [floats, f32, f16])
def test_embeddings_come_back_in_the_encoding_of_the_query(stub: MemoryServiceStub, user_id: str, encode: Any) -> None:
    insert(stub, user_id, embedding=floats([1, 2, 3, 4, 5, 6, 7, 8]))
    query = encode(np.ones(8))

    [found] = search(stub, user_id, embedding=query, view=pb.MEMORY_VIEW_FULL)

    assert found.memory.embedding.WhichOneof("encoding") == query.WhichOneof("encoding")
    np.testing.assert_allclose(values_of(found.memory.embedding), range(1, 9), rtol=2e-3)


def test_an_encoding_asked_for_wins(stub: MemoryServiceStub, user_id: str) -> None:
    memory = insert(stub, user_id)
    insert(stub, user_id)

    for query in ({"embedding": f32(np.ones(8))}, {"memory_id": memory.id}):
        found = search(stub, user_id, view=pb.MEMORY_VIEW_FULL, embedding_encoding=pb.VECTOR_ENCODING_F16_LE, **query)
        assert {result.memory.embedding.WhichOneof("encoding") for result in found} == {"f16_le"}


def test_an_unknown_user_has_no_results(stub: MemoryServiceStub, user_id: str) -> None:
    assert search(stub, user_id) == []


def test_results_are_counted_as_accessed(stub: MemoryServiceStub, user_id: str) -> None:
    found, not_found = insert(stub, user_id), insert(stub, user_id, embedding=axis(1))
    search(stub, user_id, limit=1, skip_access_recording=True)
    search(stub, user_id, limit=1)

    eventually(lambda: get(stub, user_id, found.id).access_count == 1)

    assert get(stub, user_id, not_found.id).access_count == 0
