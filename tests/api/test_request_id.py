"""request_id: a repeated call changes nothing and gets the first reply, whichever RPC it is."""

import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc
import pytest

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import failure, send
from tests.api.conftest import ReadContents
from tests.api.messages import get, insert, new_memory, stats
from tests.fix_server import StartServer

MakeRequest = Callable[[pb.Memory], Any]

REQUESTS: dict[str, MakeRequest] = {
    "InsertVector": lambda live: pb.InsertVectorRequest(
        user_id=live.user_id, memory=new_memory("new", metadata={"b": 1, "a": 2, "c": {"z": 1, "y": 2}})
    ),
    "BatchInsertVectors": lambda live: pb.BatchInsertVectorsRequest(
        user_id=live.user_id, memories=[new_memory("one"), new_memory("two")]
    ),
    "UpdateVector": lambda live: pb.UpdateVectorRequest(
        user_id=live.user_id, id=live.id, memory=pb.Memory(summary="new"), etag=live.etag
    ),
    "DeleteVector": lambda live: pb.DeleteVectorRequest(user_id=live.user_id, id=live.id),
    "DeleteVector hard": lambda live: pb.DeleteVectorRequest(user_id=live.user_id, id=live.id, hard=True),
    "DeleteVector of nothing": lambda live: pb.DeleteVectorRequest(
        user_id=live.user_id, id=str(uuid.uuid4()), allow_missing=True
    ),
}


@pytest.fixture
def live(stub: MemoryServiceStub, user_id: str) -> pb.Memory:
    """A live memory."""
    return insert(stub, user_id, "content")


@pytest.mark.parametrize("make_request", REQUESTS.values(), ids=REQUESTS)
def test_a_repetition_changes_nothing_and_gets_the_first_reply(
    stub: MemoryServiceStub, live: pb.Memory, contents: ReadContents, make_request: MakeRequest
) -> None:
    request = make_request(live)
    request.request_id = str(uuid.uuid4())
    first = send(stub, request)
    before = contents()

    assert send(stub, request) == first
    assert contents() == before


@pytest.mark.parametrize("make_request", REQUESTS.values(), ids=REQUESTS)
def test_of_concurrent_repetitions_of_any_call_one_is_carried_out(
    stub: MemoryServiceStub, live: pb.Memory, make_request: MakeRequest
) -> None:
    request = make_request(live)
    request.request_id = str(uuid.uuid4())
    before = stats(stub, live.user_id)

    with ThreadPoolExecutor(6) as threads:
        replies = list(threads.map(lambda _: send(stub, request), range(6)))

    assert all(reply == replies[0] for reply in replies)
    after = stats(stub, live.user_id)
    stored = {"InsertVectorRequest": 1, "BatchInsertVectorsRequest": 2}.get(type(request).__name__, 0)
    assert after.live_count + after.deleted_count <= before.live_count + stored


def test_a_request_id_of_one_user_is_none_of_another(stub: MemoryServiceStub, user_id: str) -> None:
    request_id = str(uuid.uuid4())
    mine, theirs = (
        send(stub, pb.InsertVectorRequest(user_id=owner, memory=new_memory("mine"), request_id=request_id)).memory
        for owner in (user_id, f"{user_id}-other")
    )
    assert mine.id != theirs.id
    assert (mine.user_id, theirs.user_id) == (user_id, f"{user_id}-other")


def test_a_repeated_restore_gets_the_first_reply(stub: MemoryServiceStub, live: pb.Memory) -> None:
    send(stub, pb.DeleteVectorRequest(user_id=live.user_id, id=live.id))
    request = pb.RestoreVectorRequest(user_id=live.user_id, id=live.id, request_id=str(uuid.uuid4()))
    first = send(stub, request)

    assert send(stub, request) == first


def test_the_first_reply_comes_back_whatever_happened_since(stub: MemoryServiceStub, user_id: str) -> None:
    request = pb.InsertVectorRequest(user_id=user_id, memory=new_memory("new"), request_id=str(uuid.uuid4()))
    first = send(stub, request)
    send(stub, pb.DeleteVectorRequest(user_id=user_id, id=first.memory.id, hard=True))

    assert send(stub, request) == first
    assert stats(stub, user_id).live_count == 0


def test_another_request_with_the_same_id_is_refused(
    stub: MemoryServiceStub, live: pb.Memory, contents: ReadContents
) -> None:
    request_id = str(uuid.uuid4())
    send(
        stub,
        pb.UpdateVectorRequest(user_id=live.user_id, id=live.id, memory=pb.Memory(summary="a"), request_id=request_id),
    )
    before = contents()
    others = [
        pb.UpdateVectorRequest(user_id=live.user_id, id=live.id, memory=pb.Memory(summary="b"), request_id=request_id),
        pb.DeleteVectorRequest(user_id=live.user_id, id=live.id, request_id=request_id),
        pb.RestoreVectorRequest(user_id=live.user_id, id=live.id, request_id=request_id),
        pb.InsertVectorRequest(user_id=live.user_id, memory=new_memory(), request_id=request_id),
    ]

    for refused in [failure(partial(send, stub, other)) for other in others]:
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")
    assert contents() == before


def test_a_failed_call_may_be_repeated_with_its_id(stub: MemoryServiceStub, live: pb.Memory) -> None:
    request = pb.RestoreVectorRequest(user_id=live.user_id, id=live.id, request_id=str(uuid.uuid4()))
    assert failure(lambda: send(stub, request)).reason == "MEMORY_NOT_DELETED"
    send(stub, pb.DeleteVectorRequest(user_id=live.user_id, id=live.id))

    assert send(stub, request).memory.id == live.id


def test_a_failed_call_of_an_unknown_user_leaves_nothing(
    stub: MemoryServiceStub, user_id: str, contents: ReadContents
) -> None:
    before = contents()
    request = pb.DeleteVectorRequest(user_id=user_id, id=str(uuid.uuid4()), request_id=str(uuid.uuid4()))

    assert failure(lambda: send(stub, request)).reason == "MEMORY_NOT_FOUND"
    assert contents() == before


def test_of_concurrent_repetitions_one_is_carried_out(stub: MemoryServiceStub, user_id: str) -> None:
    request = pb.InsertVectorRequest(user_id=user_id, memory=new_memory("once"), request_id=str(uuid.uuid4()))

    with ThreadPoolExecutor(8) as threads:
        replies = list(threads.map(lambda _: send(stub, request), range(24)))

    assert all(reply == replies[0] for reply in replies)
    assert stats(stub, user_id).live_count == 1


def test_an_id_is_forgotten_after_its_time(start_server: StartServer, user_id: str) -> None:
    stub = start_server(request_id_retention_hours=0.5 / 3_600).stub
    request = pb.InsertVectorRequest(user_id=user_id, memory=new_memory("again"), request_id=str(uuid.uuid4()))
    first = send(stub, request).memory
    time.sleep(0.6)

    second = send(stub, request).memory
    time.sleep(0.6)
    request.memory.content = "something else"
    third = send(stub, request).memory

    assert len({first.id, second.id, third.id}) == 3
    assert get(stub, user_id, second.id).content == "again"
    assert get(stub, user_id, third.id).content == "something else"
