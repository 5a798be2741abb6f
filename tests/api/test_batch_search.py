"""BatchSearchSimilar: each search as SearchSimilar would answer it, in one call; none where one is wrong."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import failure, send
from tests.api.messages import axis, f16, floats, get, insert, insert_all, new_memory, struct
from tests.api.waiting import eventually

ID = "01a1fd79-007b-70dd-85b2-53c3784ade11"


def search(**fields: Any) -> pb.SearchSimilarRequest:
    """Returns a search near the first axis, unless another query is given."""
    queries = {"embedding", "text", "memory_id"}
    return pb.SearchSimilarRequest(**(fields if queries & fields.keys() else {"embedding": axis(0), **fields}))


def batch(stub: MemoryServiceStub, user_id: str, *searches: pb.SearchSimilarRequest) -> pb.BatchSearchSimilarResponse:
    reply: pb.BatchSearchSimilarResponse = send(stub, pb.BatchSearchSimilarRequest(user_id=user_id, searches=searches))
    return reply


@pytest.fixture
def owner(stub: MemoryServiceStub, user_id: str, other_user_id: str) -> str:
    """A user of 60 memories; another one has the same."""
    values = np.random.default_rng(3).normal(size=(60, 8))
    memories = [
        new_memory(
            f"memory {number}",
            embedding=floats(vector),
            importance=1 + number % 10,
            conversation_id=f"c{number % 3}",
            metadata={"number": number},
        )
        for number, vector in enumerate(values)
    ]
    for user in (user_id, other_user_id):
        insert_all(stub, user, memories)
    return user_id


def test_each_search_is_answered_as_if_alone(stub: MemoryServiceStub, owner: str) -> None:
    known = insert(stub, owner, embedding=axis(2)).id
    where = pb.Condition(
        comparison=pb.Comparison(
            path=pb.MetadataPath(keys=["number"]),
            operator=pb.COMPARISON_OPERATOR_GREATER,
            value=pb.Scalar(number=40),
        )
    )
    searches = [
        search(),
        search(limit=3, metric=pb.METRIC_L2, view=pb.MEMORY_VIEW_FULL),
        search(embedding=f16(np.eye(8)[1]), view=pb.MEMORY_VIEW_FULL, metric=pb.METRIC_INNER_PRODUCT),
        search(memory_id=known, exact=True, view=pb.MEMORY_VIEW_HEAD),
        search(filter=pb.MemoryFilter(conversation_id="c1", where=where)),
        search(filter=pb.MemoryFilter(min_importance=9, metadata_contains=struct({"number": 8}))),
        search(min_score=0.9, limit=1_000),
        search(user_id=owner, show_deleted=True),
    ]
    reply = batch(stub, owner, *searches)
    assert len(reply.responses) == len(searches)
    for request, response in zip(searches, reply.responses, strict=True):
        request.user_id = owner
        request.skip_access_recording = True
        alone: pb.SearchSimilarResponse = send(stub, request)
        for one in (alone, response):
            one.ClearField("timing")
            for result in one.results:
                result.memory.ClearField("access_count")
                result.memory.ClearField("last_accessed_at")
        assert response == alone
    assert {result.memory.user_id for response in reply.responses for result in response.results} == {owner}


def test_the_most_searches_at_once(stub: MemoryServiceStub, owner: str) -> None:
    assert send(stub, pb.GetServerInfoRequest()).limits.max_batch_searches == 100
    reply = batch(stub, owner, *[search(limit=1 + number % 7) for number in range(100)])
    assert [len(response.results) for response in reply.responses] == [1 + number % 7 for number in range(100)]


def test_results_count_as_accessed_once_each(stub: MemoryServiceStub, user_id: str) -> None:
    first, second = insert(stub, user_id, embedding=axis(0)).id, insert(stub, user_id, embedding=axis(1)).id
    batch(
        stub,
        user_id,
        search(limit=1),
        search(limit=2),
        search(embedding=axis(1), limit=1, skip_access_recording=True),
    )
    eventually(lambda: get(stub, user_id, first).access_count == 2)
    assert get(stub, user_id, second).access_count == 1


def test_timing_adds_up(stub: MemoryServiceStub, owner: str) -> None:
    reply = batch(stub, owner, *[search(exact=True, limit=20) for _ in range(20)])
    total, *parts = durations(reply.timing)
    assert all(part >= timedelta() for part in parts)
    assert sum(parts, start=timedelta()) <= total
    of_each = [durations(response.timing) for response in reply.responses]
    for own_total, pool_wait, database, embedding in of_each:
        assert timedelta() < database <= own_total
        assert pool_wait == embedding == timedelta()
    assert sum((one[0] for one in of_each), start=timedelta()) <= total
    rounding = timedelta(microseconds=len(of_each))
    assert abs(sum((one[2] for one in of_each), start=timedelta()) - parts[1]) <= rounding


def durations(timing: pb.ServerTiming) -> list[timedelta]:
    parts = (timing.total, timing.pool_wait, timing.database, timing.embedding)
    return [part.ToTimedelta() for part in parts]


@pytest.mark.parametrize("count", [0, 101])
def test_the_number_of_searches_has_bounds(stub: MemoryServiceStub, user_id: str, count: int) -> None:
    refused = failure(lambda: batch(stub, user_id, *[search()] * count))
    assert (refused.code.name, refused.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert refused.violations == {"searches": f"is {count}, expected 1 to 100"}


def test_a_batch_without_a_user_is_refused(stub: MemoryServiceStub) -> None:
    assert list(failure(lambda: batch(stub, "", search(user_id="u"))).violations) == ["user_id"]
    assert list(failure(lambda: batch(stub, "u" * 256, search())).violations) == ["user_id"]


def test_a_search_for_another_user_is_refused(stub: MemoryServiceStub, owner: str, other_user_id: str) -> None:
    foreign = search(user_id=other_user_id)
    refused = failure(lambda: batch(stub, owner, search(), foreign, search(user_id=owner), foreign))
    assert (refused.code.name, refused.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert list(refused.violations) == ["searches[1].user_id", "searches[3].user_id"]


FAULTS: list[tuple[pb.SearchSimilarRequest, str, str]] = [
    (pb.SearchSimilarRequest(), "text", "INVALID_FIELD"),
    (pb.SearchSimilarRequest(text="x", mode=pb.SEARCH_MODE_HYBRID), "text", "EMBEDDER_DISABLED"),
    (search(embedding=floats([1, 2])), "embedding", "DIMENSION_MISMATCH"),
    (search(memory_id="7"), "memory_id", "INVALID_FIELD"),
    (search(limit=-1), "limit", "INVALID_FIELD"),
    (search(ef_search=0), "ef_search", "INVALID_FIELD"),
    (search(candidates=3), "candidates", "INVALID_FIELD"),
    (search(min_score=float("nan")), "min_score", "INVALID_FIELD"),
    (search(filter=pb.MemoryFilter(min_importance=11)), "filter.min_importance", "INVALID_FIELD"),
    (search(filter=pb.MemoryFilter(where=pb.Condition())), "filter.where", "INVALID_FIELD"),
]


@pytest.mark.parametrize(("wrong", "field", "reason"), FAULTS, ids=[f"{one[1]} {one[2]}" for one in FAULTS])
def test_a_fault_is_named_with_its_search(
    stub: MemoryServiceStub, user_id: str, wrong: pb.SearchSimilarRequest, field: str, reason: str
) -> None:
    refused = failure(lambda: batch(stub, user_id, search(), wrong, search()))
    assert (refused.code.name, refused.reason) == ("INVALID_ARGUMENT", reason)
    assert list(refused.violations) == [f"searches[1].{field}"]
    assert refused.message.startswith(f"searches[1].{field}: ")


def test_faults_of_several_searches_are_told_together(stub: MemoryServiceStub, user_id: str) -> None:
    refused = failure(lambda: batch(stub, user_id, search(limit=-1), search(), search(ef_search=0, limit=2_000)))
    assert list(refused.violations) == ["searches[0].limit", "searches[2].limit", "searches[2].ef_search"]


def deleted(stub: MemoryServiceStub, user_id: str) -> str:
    memory_id = insert(stub, user_id).id
    send(stub, pb.DeleteVectorRequest(user_id=user_id, id=memory_id))
    return memory_id


def foreign(stub: MemoryServiceStub, user_id: str) -> str:
    return insert(stub, f"not-{user_id}").id


@pytest.mark.parametrize(
    ("make", "code", "reason"),
    [
        (lambda _stub, _user: ID, "NOT_FOUND", "MEMORY_NOT_FOUND"),
        (foreign, "NOT_FOUND", "MEMORY_NOT_FOUND"),
        (deleted, "FAILED_PRECONDITION", "MEMORY_DELETED"),
    ],
)
def test_a_memory_to_search_from_that_is_not_there_is_named_with_its_search(
    stub: MemoryServiceStub, user_id: str, make: Callable[[MemoryServiceStub, str], str], code: str, reason: str
) -> None:
    memory_id = make(stub, user_id)
    refused = failure(lambda: batch(stub, user_id, search(), search(memory_id=memory_id)))
    assert (refused.code.name, refused.reason) == (code, reason)
    assert refused.message.startswith("searches[1].memory_id: ")
    assert memory_id in refused.message


def test_replies_too_large_together_are_refused(stub: MemoryServiceStub, user_id: str) -> None:
    limit = send(stub, pb.GetServerInfoRequest()).limits.max_reply_bytes
    ids = insert_all(stub, user_id, [new_memory("x" * 65_536) for _ in range(20)])
    assert batch(stub, user_id, *[search(limit=20)] * 2).ByteSize() <= limit
    refused = failure(lambda: batch(stub, user_id, *[search(limit=20)] * 100))
    assert (refused.code.name, refused.reason) == ("RESOURCE_EXHAUSTED", "REPLY_TOO_LARGE")
    # The third search is one too many, and the last that runs.
    assert "the 60 results" in refused.message
    assert f"{limit}" in refused.message
    # Nobody has seen these results.
    assert get(stub, user_id, ids[0]).access_count in {0, 2}


def test_no_reply_exceeds_the_limit(stub: MemoryServiceStub, user_id: str) -> None:
    limit = send(stub, pb.GetServerInfoRequest()).limits.max_reply_bytes
    content = "x" * 30_000
    insert_all(stub, user_id, [new_memory(content)])
    most = limit // batch(stub, user_id, search()).ByteSize()
    fitting = batch(stub, user_id, *[search()] * min(100, most - 1))
    assert fitting.ByteSize() <= limit
