"""Kinds of calls are kept apart: each has its threads and its queue, and what is too much is turned away at once."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, cast

import grpc
import pytest
from prometheus_client import CollectorRegistry

from memory_service import config
from memory_service.access import authorization
from memory_service.access.bulkheads import Bulkheads
from memory_service.access.principal import Role
from memory_service.calls_in_flight import CallsInFlight
from memory_service.errors import to_status
from memory_service.interceptors import CallInterceptor
from memory_service.metrics.calls import CallMetrics
from memory_service.v1 import admin_pb2
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceServicer
from tests.api.calls import Failure, failure
from tests.api.waiting import eventually
from tests.server.conftest import Listener, StartListener, servicer_of

INSERT, STATS, INFO = pb.InsertVectorRequest(), pb.GetStatsRequest(), pb.GetServerInfoRequest()


class Gate:
    """Keeps calls waiting inside the service until it is opened."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._lock = threading.Lock()
        self.waiting = 0

    def behaviour(self, reply: Any) -> Callable[[Any, grpc.ServicerContext], Any]:
        """Returns a behaviour that waits and then replies so."""

        def wait(_request: Any, _context: grpc.ServicerContext) -> Any:
            with self._lock:
                self.waiting += 1
            self._open.wait(30)
            return reply

        return wait

    def open(self) -> None:
        """Lets all calls end, also those to come."""
        self._open.set()


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate that is open in the end."""
    gate = Gate()
    yield gate
    gate.open()


def servicer(gate: Gate) -> MemoryServiceServicer:
    """Returns a service whose writes wait, and whose reads do not."""
    return servicer_of(
        InsertVector=gate.behaviour(pb.InsertVectorResponse()),
        GetStats=lambda _request, _context: pb.GetStatsResponse(live_count=7),
        GetServerInfo=lambda _request, _context: pb.GetServerInfoResponse(),
    )


def fill_writes(listener: Listener, gate: Gate, *, working: int, waiting: int) -> list[Any]:
    """Sends as many writes as there is room for, and returns once they have arrived."""
    futures = [listener.stub.InsertVector.future(INSERT, timeout=30) for _ in range(working)]
    eventually(lambda: gate.waiting == working)
    futures += [listener.stub.InsertVector.future(INSERT, timeout=30) for _ in range(waiting)]
    writes = listener.server.bulkheads.of("/memory_service.v1.MemoryService/InsertVector")
    eventually(lambda: writes.calls == working + waiting)
    return futures


def refused_insert(listener: Listener) -> Failure:
    return failure(lambda: listener.stub.InsertVector(INSERT, timeout=5))


def accepted(listener: Listener) -> bool:
    """Returns whether the service has room for another write."""
    try:
        listener.stub.InsertVector(INSERT, timeout=5)
    except grpc.RpcError:
        return False
    return True


def test_the_threads_of_administrators_are_theirs_alone() -> None:
    bulkheads = Bulkheads(config.load())
    for service in (*pb.DESCRIPTOR.services_by_name.values(), *admin_pb2.DESCRIPTOR.services_by_name.values()):
        for method in service.methods:
            path = f"/{service.full_name}/{method.name}"
            role = authorization.RULES.get(path, authorization.ADMINISTRATION).role
            assert (bulkheads.of(path).kind == "admin") == (role is Role.ADMIN), path
    bulkheads.close()


def test_writes_that_hang_fill_their_own_threads_only(start_listener: StartListener, gate: Gate) -> None:
    listener = start_listener(servicer(gate), threads=2, write_threads=2, queue_calls=2, queue_timeout_s=30)
    futures = fill_writes(listener, gate, working=2, waiting=2)

    refused = [refused_insert(listener) for _ in range(8)]
    for _ in range(20):
        assert listener.stub.GetStats(STATS, timeout=5).live_count == 7
    listener.stub.GetServerInfo(INFO, timeout=5)

    assert {(found.code, found.reason) for found in refused} == {(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")}
    assert refused[0].facts == {"limit": "MEMORY_WRITE_THREADS"}
    delays = {found.retry_after_s for found in refused}
    assert len(delays) > 1
    assert all(delay is not None and 0.25 <= delay <= 0.38 for delay in delays)
    gate.open()
    for future in futures:
        future.result(timeout=5)
    eventually(lambda: accepted(listener))


def test_being_turned_away_does_not_wait_for_those_who_wait(start_listener: StartListener, gate: Gate) -> None:
    listener = start_listener(servicer(gate), write_threads=1, queue_calls=0)
    fill_writes(listener, gate, working=1, waiting=0)
    started_at = time.monotonic()
    for _ in range(50):
        refused_insert(listener)
    assert time.monotonic() - started_at < 2


def test_a_caller_who_stops_waiting_makes_room(start_listener: StartListener, gate: Gate) -> None:
    listener = start_listener(servicer(gate), write_threads=1, queue_calls=2)
    _, second, third = fill_writes(listener, gate, working=1, waiting=2)
    refused_insert(listener)
    second.cancel()
    third.cancel()
    gate.open()
    eventually(lambda: accepted(listener))
    writes = listener.server.bulkheads.of("/memory_service.v1.MemoryService/InsertVector")
    eventually(lambda: writes.calls == 0)
    # Nobody has worked on those who left.
    assert gate.waiting == 2


def test_a_call_turned_away_keeps_its_request_id_and_is_counted(start_listener: StartListener, gate: Gate) -> None:
    counted: list[str] = []
    listener = start_listener(servicer(gate), count_refusal=counted.append, write_threads=1, queue_calls=0)
    fill_writes(listener, gate, working=1, waiting=0)
    with pytest.raises(grpc.RpcError) as caught:
        listener.stub.InsertVector(INSERT, timeout=5, metadata=(("x-request-id", "trace-1"),))
    trailers: dict[str, Any] = dict(cast("grpc.Call", caught.value).trailing_metadata() or ())
    assert trailers["x-request-id"] == "trace-1"
    assert counted == ["MEMORY_WRITE_THREADS"]


def test_a_burst_of_as_many_calls_as_may_wait_is_answered(start_listener: StartListener) -> None:
    def answer(_request: pb.GetStatsRequest, _context: grpc.ServicerContext) -> pb.GetStatsResponse:
        time.sleep(0.001)
        return pb.GetStatsResponse(live_count=7)

    listener = start_listener(servicer_of(GetStats=answer))
    calls = [listener.stub.GetStats.future(STATS, timeout=30) for _ in range(100)]
    assert [call.result().live_count for call in calls] == [7] * 100


def test_streams_are_turned_away_like_other_calls(start_listener: StartListener) -> None:
    entered, leave = threading.Event(), threading.Event()

    def block(_requests: Iterator[Any], _context: grpc.ServicerContext) -> Iterator[pb.ImportVectorsResponse]:
        entered.set()
        leave.wait(30)
        yield pb.ImportVectorsResponse(chunk=1)

    listener = start_listener(servicer_of(ImportVectors=block), threads=1, queue_calls=0)
    first = listener.stub.ImportVectors(iter(()), timeout=30)
    try:
        assert entered.wait(5)
        chunks = iter([pb.ImportVectorsRequest(chunk=1)] * 3)
        refused = failure(lambda: list(listener.stub.ImportVectors(chunks, timeout=5)))
        assert (refused.code, refused.facts) == (grpc.StatusCode.RESOURCE_EXHAUSTED, {"limit": "MEMORY_THREADS"})
    finally:
        leave.set()
    assert [reply.chunk for reply in first] == [1]


def test_who_has_waited_too_long_is_turned_away(start_listener: StartListener, gate: Gate) -> None:
    listener = start_listener(servicer(gate), write_threads=1, queue_timeout_s=0.2)
    first, second = fill_writes(listener, gate, working=1, waiting=1)
    time.sleep(0.25)
    gate.open()
    refused = failure(second.result)
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
    assert refused.facts == {"limit": "MEMORY_QUEUE_TIMEOUT_S"}
    first.result(timeout=5)
    assert gate.waiting == 1


class LateCall:
    """As much of a call's context as the interceptor needs: a call that has next to no time left."""

    def __init__(self) -> None:
        self.ended: Future[grpc.Status] = Future()

    def time_remaining(self) -> float:
        """Returns a millisecond."""
        return 0.001

    def invocation_metadata(self) -> tuple[()]:
        """Returns none."""
        return ()

    def set_trailing_metadata(self, _metadata: Any) -> None:
        """Ignores it."""

    def peer(self) -> str:
        """Returns an address."""
        return "ipv4:127.0.0.1:1"

    def is_active(self) -> bool:
        """Returns that the call is under way."""
        return True

    def abort_with_status(self, status: grpc.Status) -> None:
        """Takes note of how the call ends, and ends it."""
        self.ended.set_result(status)
        raise ConnectionAbortedError


def test_a_call_that_waited_too_long_is_not_begun() -> None:
    begun: list[Any] = []
    handler: Any = grpc.unary_unary_rpc_method_handler(lambda request, _context: begun.append(request))
    interceptor = CallInterceptor(to_status=to_status, calls=CallsInFlight(), metrics=CallMetrics(CollectorRegistry()))
    details = type("Details", (), {"method": "/memory_service.v1.MemoryService/GetStats"})()
    wrapped = interceptor.intercept_service(lambda _: handler, details)
    assert wrapped is not None
    assert wrapped.unary_unary is not None
    call = LateCall()
    with pytest.raises(ConnectionAbortedError):
        wrapped.unary_unary(STATS, call)  # type: ignore[arg-type]  # see LateCall
    assert call.ended.result().code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not begun
