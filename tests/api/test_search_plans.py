"""SearchSimilar says how it searched: the plan, how many memories it compared, and where the time went."""

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import failure, send
from tests.api.messages import f16, insert_all, new_memory, struct
from tests.api.waiting import eventually
from tests.fix_database import Databases
from tests.fix_server import ServerProcess, running_servers

# The signs of the components stand in the covering index.
BY_SIGNS = 768
ROWS = 300
USER = "user-of-plans"


@pytest.fixture(scope="module")
def server(databases: Databases) -> Iterator[ServerProcess]:
    """A service of 768 dimensions, shared by the tests of this module."""
    with running_servers(databases) as start:
        yield start(embedding_dimensions=BY_SIGNS)


@pytest.fixture(scope="module")
def vectors(stub: MemoryServiceStub) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What USER has stored, in order of id."""
    values = np.random.default_rng(1).normal(size=(ROWS, BY_SIGNS))
    memories = [
        new_memory(embedding=f16(vector), metadata={"number": number, "third": number % 3})
        for number, vector in enumerate(values)
    ]
    insert_all(stub, USER, memories)
    search(stub, values[0])
    # Now the server knows how many memories the user has.
    eventually(lambda: search(stub, values[0]).candidates_considered == 64)
    return values


def search(stub: MemoryServiceStub, vector: Any, **fields: Any) -> pb.SearchSimilarResponse:
    reply: pb.SearchSimilarResponse = send(
        stub, pb.SearchSimilarRequest(**{"user_id": USER, "embedding": f16(vector), **fields})
    )
    return reply


def numbers(reply: pb.SearchSimilarResponse) -> list[int]:
    return [int(result.memory.metadata.fields["number"].number_value) for result in reply.results]


def test_a_search_by_signs_says_so(stub: MemoryServiceStub, vectors: Any) -> None:
    reply = search(stub, vectors[7])
    assert reply.plan == pb.SEARCH_PLAN_QUANTIZED
    assert (len(reply.results), reply.maybe_incomplete) == (10, False)
    assert numbers(reply)[0] == 7


def test_exact_compares_with_every_memory(stub: MemoryServiceStub, vectors: Any) -> None:
    reply = search(stub, vectors[7], exact=True)
    assert (reply.plan, reply.candidates_considered) == (pb.SEARCH_PLAN_EXACT, ROWS)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert numbers(reply) == np.argsort(-(unit @ unit[7])).tolist()[:10]


@pytest.mark.parametrize(
    ("candidates", "plan"), [(10, "QUANTIZED"), (150, "QUANTIZED"), (300, "EXACT"), (9_999, "EXACT")]
)
def test_the_caller_chooses_how_many_candidates_are_compared(
    stub: MemoryServiceStub, vectors: Any, candidates: int, plan: str
) -> None:
    reply = search(stub, vectors[3], candidates=candidates, limit=10)
    assert pb.SearchPlan.Name(reply.plan) == f"SEARCH_PLAN_{plan}"
    assert reply.candidates_considered == min(candidates, ROWS)


def test_a_filter_that_only_the_farthest_pass_hides_nothing(stub: MemoryServiceStub, vectors: Any) -> None:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    farthest = np.argsort(unit @ unit[5])[:4].tolist()
    where = pb.Condition(
        member_of=pb.Membership(
            path=pb.MetadataPath(keys=["number"]), values=[pb.Scalar(number=number) for number in farthest]
        )
    )
    reply = search(stub, vectors[5], filter=pb.MemoryFilter(where=where))
    assert numbers(reply) == farthest[::-1]
    assert (reply.plan, reply.candidates_considered) == (pb.SEARCH_PLAN_EXACT, 4)


def test_filters_on_metadata_of_a_small_user_are_exact(stub: MemoryServiceStub, vectors: Any) -> None:
    reply = search(stub, vectors[5], filter=pb.MemoryFilter(metadata_contains=struct({"third": 2})))
    assert (reply.plan, reply.candidates_considered) == (pb.SEARCH_PLAN_EXACT, ROWS // 3)
    assert {number % 3 for number in numbers(reply)} == {2}


@pytest.mark.parametrize("metric", [pb.METRIC_INNER_PRODUCT, pb.METRIC_L2])
def test_metrics_of_lengths_are_exact(stub: MemoryServiceStub, vectors: Any, metric: pb.Metric.ValueType) -> None:
    reply = search(stub, vectors[5], metric=metric)
    assert (reply.plan, reply.candidates_considered) == (pb.SEARCH_PLAN_EXACT, ROWS)


def test_a_threshold_may_hide_what_an_approximate_plan_overlooked(stub: MemoryServiceStub, vectors: Any) -> None:
    [best, second] = search(stub, vectors[5], limit=2).results
    reply = search(stub, vectors[5], min_score=best.score)
    assert (len(reply.results), reply.plan, reply.maybe_incomplete) == (1, pb.SEARCH_PLAN_QUANTIZED, True)
    exact = search(stub, vectors[5], min_score=second.score, exact=True)
    assert (len(exact.results), exact.maybe_incomplete) == (2, False)


def test_ef_search_has_no_effect_without_an_approximate_index(stub: MemoryServiceStub, vectors: Any) -> None:
    plain, wide = search(stub, vectors[5]), search(stub, vectors[5], ef_search=1_000)
    for reply in (plain, wide):
        reply.ClearField("timing")
    assert wide == plain


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"ef_search": 0}, "ef_search", "is 0, expected 1 to 1000"),
        ({"ef_search": 1_001}, "ef_search", "is 1001, expected 1 to 1000"),
        ({"ef_search": -1}, "ef_search", "is -1"),
        ({"candidates": 0}, "candidates", "is 0, expected 10 to 10000"),
        ({"candidates": 10_001}, "candidates", "is 10001, expected 10 to 10000"),
        ({"candidates": 49, "limit": 50}, "candidates", "is 49, expected 50 to 10000"),
        ({"candidates": -(2**31)}, "candidates", "expected 10 to 10000"),
    ],
)
def test_how_far_to_look_has_bounds(stub: MemoryServiceStub, fields: dict[str, int], field: str, words: str) -> None:
    refused = failure(lambda: search(stub, np.ones(BY_SIGNS), user_id="user-of-bounds", **fields))
    assert (refused.code.name, refused.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert list(refused.violations) == [field]
    assert words in refused.violations[field]


def test_the_bounds_are_those_of_the_server(stub: MemoryServiceStub, user_id: str) -> None:
    limits = send(stub, pb.GetServerInfoRequest()).limits
    assert (limits.max_ef_search, limits.max_candidates) == (1_000, 10_000)
    fields = {"ef_search": limits.max_ef_search, "candidates": limits.max_candidates}
    assert search(stub, np.ones(BY_SIGNS), user_id=user_id, **fields).plan == pb.SEARCH_PLAN_EXACT


def test_a_stranger_has_an_exact_answer_of_nothing(stub: MemoryServiceStub, user_id: str) -> None:
    for _ in range(2):
        reply = search(stub, np.ones(BY_SIGNS), user_id=user_id)
        assert (reply.plan, reply.candidates_considered, len(reply.results)) == (pb.SEARCH_PLAN_EXACT, 0, 0)
        assert not reply.maybe_incomplete


def test_a_user_who_has_grown_since_counted_is_counted_again(stub: MemoryServiceStub, user_id: str) -> None:
    query = np.ones(BY_SIGNS)
    assert search(stub, query, user_id=user_id).candidates_considered == 0
    # Time for the count of 0 to arrive; where it does not, there is nothing to correct.
    time.sleep(0.1)
    insert_all(stub, user_id, [new_memory(embedding=f16(query))] * 100)
    eventually(lambda: search(stub, query, user_id=user_id).candidates_considered == 40)


def test_timing_adds_up(stub: MemoryServiceStub, vectors: Any) -> None:
    for fields in ({}, {"exact": True}, {"limit": 300}):
        timing = search(stub, vectors[0], **fields).timing
        total, *parts = (
            part.ToTimedelta() for part in (timing.total, timing.pool_wait, timing.database, timing.embedding)
        )
        assert timedelta() < timing.database.ToTimedelta() < timedelta(seconds=10)
        assert timing.embedding.ToTimedelta() == timedelta()
        assert all(part >= timedelta() for part in parts)
        assert sum(parts, start=timedelta()) <= total
