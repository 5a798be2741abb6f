"""Bad input: refused with the field's path, what was expected and what was received, and nothing is written."""

import math
from typing import Any

import grpc
import pytest

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.bad_requests import USER, VALID, Bad, bad_requests, nested
from tests.api.calls import failure, send
from tests.api.conftest import ReadContents
from tests.api.messages import axis, get, insert, new_memory


@pytest.mark.parametrize("bad", list(bad_requests()), ids=lambda bad: bad.name)
def test_a_request_with_one_fault_is_refused(stub: MemoryServiceStub, contents: ReadContents, bad: Bad) -> None:
    before = contents()

    refused = failure(lambda: send(stub, bad.request))

    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, bad.reason)
    assert list(refused.violations) == [bad.field]
    description = refused.violations[bad.field]
    assert refused.message == f"{bad.field}: {description}"
    for word in bad.words:
        assert word in description
    assert contents() == before


@pytest.mark.parametrize("request_of", VALID.values(), ids=VALID)
def test_without_the_fault_they_are_served(stub: MemoryServiceStub, request_of: Any) -> None:
    request = type(request_of)()
    request.CopyFrom(request_of)
    request.user_id = f"{USER}-served"
    if "id" in request.DESCRIPTOR.fields_by_name:
        request.id = insert(stub, request.user_id).id
    if isinstance(request, pb.RestoreVectorRequest):
        send(stub, pb.DeleteVectorRequest(user_id=request.user_id, id=request.id))

    assert send(stub, request) is not None


def test_dimensions_are_told_to_programs_too(stub: MemoryServiceStub, user_id: str) -> None:
    refused = failure(lambda: insert(stub, user_id, embedding=pb.Vector(f32_le=b"\0" * 12)))

    assert refused.facts == {"received_dimensions": "3", "expected_dimensions": "8"}


def test_all_faults_of_a_request_are_told_at_once(stub: MemoryServiceStub) -> None:
    condition = pb.MemoryFilter(min_importance=0)
    request = pb.SearchSimilarRequest(embedding=axis(0), limit=5_000, min_score=math.nan, filter=condition)

    refused = failure(lambda: send(stub, request))

    assert set(refused.violations) == {"user_id", "limit", "min_score", "filter.min_importance"}
    assert "(and 3 more)" in refused.message


def test_no_description_quotes_the_text(stub: MemoryServiceStub, user_id: str) -> None:
    memory = new_memory(f"{'secret' * 12_000}", summary="secret\0", importance=0, id="secret")

    refused = failure(lambda: send(stub, pb.InsertVectorRequest(user_id=user_id, memory=memory)))

    assert "secret" not in f"{refused}"


def test_metadata_may_nest_to_the_limit(stub: MemoryServiceStub, user_id: str) -> None:
    memory = insert(stub, user_id, metadata=nested(32))

    assert get(stub, user_id, memory.id).metadata == nested(32)
