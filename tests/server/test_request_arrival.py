"""Calls whose request does not come keep no thread that others need, and hold up no drain."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from memory_service import request_arrival
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceServicer
from tests.server.conftest import Listener, StartListener, servicer_of

GET_STATS = "/memory_service.v1.MemoryService/GetStats"
SEVEN = pb.GetStatsResponse(live_count=7)


def seven() -> MemoryServiceServicer:
    return servicer_of(GetStats=lambda _request, _context: SEVEN)


@contextmanager
def silent_calls(listener: Listener, count: int) -> Iterator[list[Any]]:
    """Begins calls over one connection and sends no request; yields them once they have reached the server."""
    ended = threading.Event()

    def nothing() -> Iterator[bytes]:
        ended.wait(30)
        yield from ()

    # On the wire, a call with a stream of requests begins as any other.
    begin: Callable[..., Any] = listener.channel.stream_stream(GET_STATS)
    calls = [begin(nothing()) for _ in range(count)]
    wait_for(lambda: listener.server.bulkheads.reads.calls >= count)
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


def test_silent_calls_give_way_to_others(start_listener: StartListener, monkeypatch: pytest.MonkeyPatch) -> None:
    # Calls that wait for a thread for a second are refused.
    monkeypatch.setattr(request_arrival, "LIMIT_IN_HASTE_S", 0.1)
    listener = start_listener(seven(), threads=2)
    with silent_calls(listener, 3) as silent, ThreadPoolExecutor(3) as threads:
        started_at = time.monotonic()
        asked = [threads.submit(listener.stub.GetStats, pb.GetStatsRequest(), timeout=10) for _ in range(3)]
        assert [future.result().live_count for future in asked] == [7] * 3
        assert time.monotonic() - started_at < 5
        assert any(call.done() for call in silent)


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
        assert codes(silent) == {grpc.StatusCode.CANCELLED}


def test_silent_calls_hold_up_no_drain(start_listener: StartListener) -> None:
    listener = start_listener(seven(), threads=2, drain_grace_s=20.0)
    with silent_calls(listener, 2) as silent:
        started_at = time.monotonic()
        assert listener.server.drain()
        assert time.monotonic() - started_at < 5
        # The connection may go before the news of the call's end has come.
        assert codes(silent) <= {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}


def test_a_call_that_ends_without_request_is_told(start_listener: StartListener) -> None:
    listener = start_listener(seven())
    call: Any = listener.channel.stream_stream(GET_STATS)(iter(()))
    with pytest.raises(grpc.RpcError):
        next(call)
    assert (call.code(), call.details()) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "the call ended without a request message",
    )
