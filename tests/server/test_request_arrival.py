"""Calls whose request does not come keep no thread that others need, and hold up no drain."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from db.errors import StatementTimeout
from memory_service import interceptors, request_arrival, server
from memory_service.request_arrival import RequestArrivals
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceServicer
from tests.api.calls import failure_of
from tests.server.conftest import Listener, StartListener, servicer_of

GET_STATS = "/memory_service.v1.MemoryService/GetStats"
SEVEN = pb.GetStatsResponse(live_count=7)


def seven() -> MemoryServiceServicer:
    return servicer_of(GetStats=lambda _request, _context: SEVEN)


@contextmanager
def silent_calls(listener: Listener, count: int, *, refused: bool = False) -> Iterator[list[Any]]:
    """Begins calls over one connection and sends no request; yields them once they wait, unless they are refused."""
    ended = threading.Event()

    def nothing() -> Iterator[bytes]:
        ended.wait(30)
        yield from ()

    # On the wire, a call with a stream of requests begins as any other.
    begin: Callable[..., Any] = listener.channel.stream_stream(GET_STATS)
    calls = [begin(nothing()) for _ in range(count)]
    wait_for(lambda: refused or listener.server.bulkheads.reads.calls >= count)
    yield calls
    ended.set()
    for call in calls:
        call.cancel()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def codes(calls: list[Any]) -> set[grpc.StatusCode]:
    return {call.code() for call in calls}  # which waits for their end


def reasons(calls: list[Any]) -> set[str]:
    return {failure_of(call).reason for call in calls}


def test_silent_calls_give_way_to_others(start_listener: StartListener, monkeypatch: pytest.MonkeyPatch) -> None:
    # Calls that wait for a thread for a second are refused.
    monkeypatch.setattr(request_arrival, "LIMIT_IN_HASTE_S", 0.1)
    listener = start_listener(seven(), threads=2)
    with silent_calls(listener, 3) as silent, ThreadPoolExecutor(3) as threads:
        started_at = time.monotonic()
        asked = [threads.submit(listener.stub.GetStats, pb.GetStatsRequest(), timeout=10) for _ in range(3)]
        assert [future.result().live_count for future in asked] == [7] * 3
        assert time.monotonic() - started_at < 5
        wait_for(lambda: any(call.done() for call in silent))
        ended = [call for call in silent if call.done()]
        # It may as well have been this process that was slow: whoever gave way may try again.
        assert codes(ended) == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        for call in ended:
            refused = failure_of(call)
            assert (refused.reason, refused.facts) == ("OVERLOADED", {"limit": "MEMORY_THREADS"})
            assert refused.retry_after_s is not None


def test_a_call_whose_request_this_process_is_too_busy_to_read_is_told_to_try_again(
    start_listener: StartListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_arrival, "LIMIT_IN_HASTE_S", 0.1)
    begun, may_end, may_parse = threading.Semaphore(0), threading.Event(), threading.Event()
    may_parse.set()

    def parse_when_told(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
        # Requests are parsed on the one thread that hands them over.
        return lambda data: parse(data) if may_parse.wait(30) else None

    def hold(_request: pb.GetStatsRequest, _context: grpc.ServicerContext) -> pb.GetStatsResponse:
        begun.release()
        may_end.wait(30)
        return SEVEN

    monkeypatch.setattr(interceptors, "parsing_with", parse_when_told)
    listener = start_listener(servicer_of(GetStats=hold), threads=2)
    with ThreadPoolExecutor(5) as threads:
        asked = [threads.submit(listener.stub.GetStats, pb.GetStatsRequest(), timeout=30) for _ in range(2)]
        for _ in asked:
            assert begun.acquire(timeout=10)
        asked += [threads.submit(listener.stub.GetStats, pb.GetStatsRequest(), timeout=30) for _ in range(3)]
        wait_for(lambda: listener.server.bulkheads.reads.calls == 5)
        may_parse.clear()
        may_end.set()
        wait_for(lambda: any(future.done() and future.exception() is not None for future in asked))
        may_parse.set()
        errors = [error for future in asked if isinstance(error := future.exception(), grpc.RpcError)]
    for error in errors:
        refused = failure_of(error)
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert refused.retry_after_s is not None
    assert len(errors) < len(asked), "whoever was not in anybody's way was served"


def test_slow_calls_have_time_while_nobody_waits(
    start_listener: StartListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_arrival, "LIMIT_IN_HASTE_S", 0.0)
    listener = start_listener(seven(), threads=2)
    sending = threading.Event()

    def late() -> Iterator[bytes]:
        sending.wait(30)
        yield pb.GetStatsRequest().SerializeToString()

    begin: Callable[..., Any] = listener.channel.stream_stream(GET_STATS)
    replies = begin(late())
    wait_for(lambda: listener.server.bulkheads.reads.calls == 1)
    time.sleep(3 * request_arrival.POLL_S)
    sending.set()
    assert [pb.GetStatsResponse.FromString(reply) for reply in replies] == [SEVEN]


def test_the_longest_wait_is_bounded(start_listener: StartListener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_arrival, "LIMIT_S", 0.2)
    with silent_calls(start_listener(seven(), threads=2), 1) as silent:
        assert codes(silent) == {grpc.StatusCode.DEADLINE_EXCEEDED}
        assert reasons(silent) == {"DEADLINE_EXCEEDED"}


class LateState:
    """What gRPC knows of a call, and the stream of its requests: whoever reads it waits only once it was given up."""

    def __init__(self) -> None:
        self._state = self
        self.condition = threading.Condition()
        self.request: object = None

    def __next__(self) -> object:
        wait_for(lambda: self.request is not None)
        with self.condition:
            assert self.condition.wait(5)
        return self.request


def test_a_thread_that_begins_to_wait_late_is_told_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_arrival, "LIMIT_S", 0.02)
    monkeypatch.setattr(request_arrival, "POLL_S", 0.05)
    arrivals, state = RequestArrivals(), LateState()
    arrivals.start()
    receive = arrivals.receiving(lambda request, _context: request, threads=None, missing=LookupError)
    assert isinstance(receive(state, state), StatementTimeout)
    arrivals.close()


def test_where_grpc_keeps_its_state_otherwise_the_call_is_cancelled(
    start_listener: StartListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_arrival, "LIMIT_S", 0.2)
    monkeypatch.setattr(request_arrival, "_state_of", lambda _context: None)
    with silent_calls(start_listener(seven(), threads=2), 1) as silent:
        assert codes(silent) == {grpc.StatusCode.CANCELLED}


def test_silent_calls_hold_up_no_drain(start_listener: StartListener) -> None:
    listener = start_listener(seven(), threads=2, drain_grace_s=20.0)
    with silent_calls(listener, 2) as silent:
        started_at = time.monotonic()
        assert listener.server.drain()
        assert time.monotonic() - started_at < 5
        # The connection may go before the news of the call's end has come, which then is gRPC's own.
        assert codes(silent) == {grpc.StatusCode.UNAVAILABLE}


def test_those_that_begin_during_a_drain_are_refused_at_once(
    start_listener: StartListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "REFUSING_S", 1.0)
    listener = start_listener(seven(), drain_grace_s=20.0)
    assert listener.stub.GetStats(pb.GetStatsRequest(), timeout=5) == SEVEN
    with ThreadPoolExecutor(1) as threads:
        started_at = time.monotonic()
        draining = threads.submit(listener.server.drain)
        time.sleep(0.3)
        with silent_calls(listener, 6, refused=True) as silent:
            assert codes(silent) == {grpc.StatusCode.UNAVAILABLE}
            assert reasons(silent) == {"DATABASE_UNAVAILABLE"}
            assert draining.result(timeout=10)
        assert time.monotonic() - started_at < 5


def test_a_call_that_ends_without_request_is_told(start_listener: StartListener) -> None:
    listener = start_listener(seven())
    call: Any = listener.channel.stream_stream(GET_STATS)(iter(()))
    with pytest.raises(grpc.RpcError):
        next(call)
    assert (call.code(), call.details()) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "the call ended without a request message",
    )
