"""A provider that fails: what callers are told, that nothing is written, and what goes on working meanwhile."""

import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from memory_service.config import Settings
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import code_of, failure, send
from tests.api.conftest import ReadContents
from tests.api.messages import axis, get, insert, new_memory
from tests.api.waiting import eventually
from tests.embedding.provider import Hang, Provider, Reset, Status, Tamper
from tests.fix_server import ServerProcess

DOWN = Status(503, "SELECT password FROM users; host=secret")

MakeRequest = Callable[[pb.Memory, str], Any]

NEEDING_EMBEDDINGS: dict[str, MakeRequest] = {
    "InsertVector": lambda memory, text: pb.InsertVectorRequest(
        user_id=memory.user_id, memory=pb.NewMemory(content=text, conversation_id="new")
    ),
    "InsertVector of a new user": lambda memory, text: pb.InsertVectorRequest(
        user_id=f"{memory.user_id}-new", memory=pb.NewMemory(content=text), request_id=str(uuid.uuid4())
    ),
    "BatchInsertVectors": lambda memory, text: pb.BatchInsertVectorsRequest(
        user_id=memory.user_id, memories=[new_memory("fine"), pb.NewMemory(content=text)]
    ),
    "UpdateVector": lambda memory, text: pb.UpdateVectorRequest(
        user_id=memory.user_id, id=memory.id, memory=pb.Memory(content=text, summary="new")
    ),
    "SearchSimilar": lambda memory, text: pb.SearchSimilarRequest(user_id=memory.user_id, text=text),
}

every_rpc_that_embeds = pytest.mark.parametrize(
    "make_request", NEEDING_EMBEDDINGS.values(), ids=list(NEEDING_EMBEDDINGS)
)


@pytest.fixture
def memory(stub: MemoryServiceStub, user_id: str) -> pb.Memory:
    """A memory whose embedding came with the call."""
    return insert(stub, user_id, "content")


@every_rpc_that_embeds
@pytest.mark.parametrize("fault", [DOWN, Reset(), Status(500)], ids=["503", "reset", "500"])
def test_a_provider_that_is_down_is_unavailable(
    stub: MemoryServiceStub,
    memory: pb.Memory,
    contents: ReadContents,
    *,
    text: str,
    provider: Provider,
    make_request: MakeRequest,
    fault: Status | Reset,
) -> None:
    provider.fail(fault, always=True)
    before = contents()

    refused = failure(lambda: send(stub, make_request(memory, text)))

    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "EMBEDDER_UNAVAILABLE")
    assert refused.retry_after_s is not None
    assert refused.retry_after_s > 0
    assert contents() == before
    provider.recover()
    send(stub, make_request(memory, text))


def test_the_providers_own_wish_is_passed_on(
    stub: MemoryServiceStub, memory: pb.Memory, text: str, provider: Provider
) -> None:
    provider.fail(Status(429, headers={"Retry-After": "7"}))

    refused = failure(lambda: send(stub, NEEDING_EMBEDDINGS["InsertVector"](memory, text)))

    assert refused.retry_after_s == pytest.approx(7)


@every_rpc_that_embeds
def test_a_provider_that_refuses_the_key_is_the_operators_to_mend(
    stub: MemoryServiceStub,
    memory: pb.Memory,
    contents: ReadContents,
    *,
    text: str,
    provider: Provider,
    make_request: MakeRequest,
) -> None:
    provider.fail(Status(401, "Incorrect API key provided: sk-secret-of-the-operator"))
    before = contents()

    refused = failure(lambda: send(stub, make_request(memory, text)))

    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "EMBEDDER_MISCONFIGURED")
    assert "sk-" not in refused.message
    assert refused.retry_after_s is None
    assert contents() == before


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda body: {**body, "data": []}, id="no vectors"),
        pytest.param(lambda body: {**body, "data": [{"index": 0, "embedding": [1.0] * 7}]}, id="too short"),
        pytest.param(lambda body: {**body, "data": [{"index": 0, "embedding": [float("nan")] * 8}]}, id="NaN"),
        pytest.param(lambda _: b"<html>", id="no JSON"),
    ],
)
def test_vectors_that_do_not_fit_are_not_stored(
    stub: MemoryServiceStub,
    memory: pb.Memory,
    contents: ReadContents,
    *,
    text: str,
    provider: Provider,
    answer: Any,
) -> None:
    provider.fail(Tamper(answer))
    before = contents()

    refused = failure(lambda: send(stub, NEEDING_EMBEDDINGS["InsertVector"](memory, text)))

    assert refused.reason in {"EMBEDDER_MISCONFIGURED", "EMBEDDER_UNAVAILABLE"}
    assert contents() == before


def test_a_deadline_ends_the_wait_for_a_provider(
    server: ServerProcess,
    stub: MemoryServiceStub,
    memory: pb.Memory,
    *,
    contents: ReadContents,
    text: str,
    provider: Provider,
) -> None:
    provider.fail(Hang(20))
    before, started_at = contents(), time.monotonic()
    calls = len(server.log.events("call"))

    code = code_of(lambda: send(stub, NEEDING_EMBEDDINGS["InsertVector"](memory, text), timeout_s=0.4))

    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - started_at < 2
    ended = server.log.wait_for("call", count=calls + 1)
    assert (ended["rpc"], ended["duration_ms"] < 2_000) == ("InsertVector", True)
    assert ended["code"] in {"DEADLINE_EXCEEDED", "CANCELLED"}
    assert contents() == before


def test_while_the_provider_is_down_all_else_works(
    stub: MemoryServiceStub, user_id: str, text: str, provider: Provider
) -> None:
    request = pb.InsertVectorRequest(user_id=user_id, memory=pb.NewMemory(content=text), request_id=str(uuid.uuid4()))
    first = send(stub, request)
    provider.fail(DOWN, always=True)

    assert send(stub, request) == first, "a repeated request needs no provider"
    assert insert(stub, user_id, "brings its own embedding", embedding=axis(1)).id
    assert send(stub, pb.SearchSimilarRequest(user_id=user_id, text=text)).results[0].memory.id == first.memory.id
    assert send(stub, pb.SearchSimilarRequest(user_id=user_id, memory_id=first.memory.id)).results
    assert get(stub, user_id, first.memory.id).content == text


def test_a_slow_provider_does_not_stop_those_who_need_none(
    stub: MemoryServiceStub, user_id: str, text: str, provider: Provider
) -> None:
    provider.fail(Hang(20), always=True)

    def wait_in_vain(number: int) -> grpc.StatusCode:
        request = pb.SearchSimilarRequest(user_id=user_id, text=f"{text} {number}")
        return code_of(lambda: send(stub, request, timeout_s=1.5))

    with ThreadPoolExecutor(10) as threads:
        waiting = [threads.submit(wait_in_vain, number) for number in range(10)]
        eventually(lambda: len(provider.requests) == Settings.model_fields["embedding_concurrent_requests"].default)
        # More callers wait for the provider than there are database connections.
        assert insert(stub, user_id, "quick").content == "quick"
        assert not any(future.done() for future in waiting)

    assert {future.result() for future in waiting} == {grpc.StatusCode.DEADLINE_EXCEEDED}


def test_a_cancelled_call_gives_its_thread_back(
    server: ServerProcess, stub: MemoryServiceStub, user_id: str, text: str, provider: Provider
) -> None:
    provider.fail(Hang(20), always=True)
    before = len(server.log.events("call"))

    waiting = stub.SearchSimilar.future(pb.SearchSimilarRequest(user_id=user_id, text=text))
    eventually(lambda: len(provider.requests) == 1)
    cancelled_at = time.monotonic()
    waiting.cancel()

    def has_ended() -> bool:  # a call of the test before may end only now, too
        return ("SearchSimilar", "CANCELLED") in {(e["rpc"], e["code"]) for e in server.log.events("call")[before:]}

    eventually(has_ended)
    assert time.monotonic() - cancelled_at < 2
