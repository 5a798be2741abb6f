"""Interceptors: errors become statuses, request ids come back, every call is logged, in all four arities."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
import structlog
from google.rpc import error_details_pb2, status_pb2
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs
from structlog.typing import EventDict

from db.errors import DatabaseUnavailable, MemoryNotFound
from memory_service.calls_in_flight import CallsInFlight
from memory_service.errors import to_status
from memory_service.interceptors import CallInterceptor
from memory_service.metrics.calls import CallMetrics
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceServicer
from tests.fix_server import open_channel
from tests.server.conftest import StartListener, servicer_of

PRIVATE = "password=hunter2 SELECT * FROM memory_entries"

SERVICE = "memory_service.v1.MemoryService"


def count_characters(request: pb.GetStatsRequest, _context: grpc.ServicerContext) -> pb.GetStatsResponse:
    structlog.get_logger().warning("inside")
    return pb.GetStatsResponse(live_count=len(request.user_id))


def failing(error: BaseException) -> MemoryServiceServicer:
    """Returns a servicer whose InsertVector raises `error`, and whose GetStats counts characters."""

    def fail(_request: pb.InsertVectorRequest, _context: grpc.ServicerContext) -> pb.InsertVectorResponse:
        raise error

    return servicer_of(InsertVector=fail, GetStats=count_characters)


NOT_FOUND = MemoryNotFound("no such memory")


def error_of(call: Any, *arguments: Any, **options: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, timeout=5, **options)
    return caught.value


def trailers_of(outcome: Any) -> dict[str, Any]:
    return dict(outcome.trailing_metadata() or ())


def details_of(error: Any) -> status_pb2.Status:
    return status_pb2.Status.FromString(trailers_of(error)["grpc-status-details-bin"])


def info_of(error: Any) -> error_details_pb2.ErrorInfo:
    info = error_details_pb2.ErrorInfo()
    [found] = [detail for detail in details_of(error).details if detail.Unpack(info)]
    assert found is not None
    return info


def calls_in(events: list[EventDict]) -> list[EventDict]:
    return [event for event in events if event["event"] == "call"]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\xff\xff\xff", id="no tag"),
        pytest.param(b"\x0a\x7fshort", id="truncated string"),
        pytest.param(b"\x0a\x02\xc3\x28", id="invalid UTF-8"),
    ],
)
def test_bytes_that_are_no_request_are_an_invalid_argument(start_listener: StartListener, data: bytes) -> None:
    parsed = []
    channel = start_listener(servicer_of(GetStats=lambda request, _context: parsed.append(request))).channel
    call = channel.unary_unary(f"/{SERVICE}/GetStats", lambda raw: raw, pb.GetStatsResponse.FromString)

    error = error_of(call, data)

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert info_of(error).reason == "INVALID_FIELD"
    assert not parsed


@pytest.mark.parametrize("error", [RuntimeError(PRIVATE), KeyError(PRIVATE), SystemExit(PRIVATE)], ids=repr)
def test_a_defect_is_internal_and_tells_nothing_but_where_to_look(
    start_listener: StartListener, error: BaseException
) -> None:
    stub = start_listener(failing(error)).stub

    with capture_logs() as events:
        answer = error_of(stub.InsertVector, pb.InsertVectorRequest(user_id="u"))

    assert answer.code() is grpc.StatusCode.INTERNAL
    assert "internal error" in str(answer.details())
    error_id = info_of(answer).metadata["error_id"]
    assert [event["error_id"] for event in events if event["event"] == "internal_error"] == [error_id]
    sent = f"{answer.details()} {trailers_of(answer)}"
    assert not any(word in sent for word in (*PRIVATE.split(), type(error).__name__, "Traceback"))


def test_known_errors_keep_their_code_and_message(start_listener: StartListener) -> None:
    error = error_of(start_listener(failing(NOT_FOUND)).stub.InsertVector, pb.InsertVectorRequest())
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error.details() == "no such memory"
    assert info_of(error).reason == "MEMORY_NOT_FOUND"


def test_a_request_id_comes_back_with_replies_and_with_errors(start_listener: StartListener) -> None:
    stub = start_listener(failing(NOT_FOUND)).stub
    metadata = (("x-request-id", "trace-7:a/b"),)

    _, call = stub.GetStats.with_call(pb.GetStatsRequest(user_id="u"), timeout=5, metadata=metadata)
    error = error_of(stub.InsertVector, pb.InsertVectorRequest(), metadata=metadata)

    assert trailers_of(call)["x-request-id"] == "trace-7:a/b"
    assert trailers_of(error)["x-request-id"] == "trace-7:a/b"
    assert "grpc-status-details-bin" in trailers_of(error)


@pytest.mark.parametrize("request_id", [None, "", "two words", "x" * 129, "<b>"])
def test_without_a_sane_request_id_one_is_made(start_listener: StartListener, request_id: str | None) -> None:
    stub = start_listener(failing(NOT_FOUND)).stub
    metadata = () if request_id is None else (("x-request-id", request_id),)
    seen = set()
    for _ in range(2):
        _, call = stub.GetStats.with_call(pb.GetStatsRequest(user_id="u"), timeout=5, metadata=metadata)
        seen.add(trailers_of(call)["x-request-id"])
    assert len(seen) == 2
    assert all(len(made) == 32 for made in seen)


@pytest.mark.parametrize(
    ("error", "level", "code", "reason"),
    [
        (MemoryNotFound("none"), "info", "NOT_FOUND", "MEMORY_NOT_FOUND"),
        (DatabaseUnavailable("down"), "error", "UNAVAILABLE", "DATABASE_UNAVAILABLE"),
        (RuntimeError(PRIVATE), "error", "INTERNAL", "INTERNAL"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_failed_calls_are_logged_by_whose_fault_they_are(
    start_listener: StartListener, error: Exception, level: str, code: str, reason: str
) -> None:
    stub = start_listener(failing(error)).stub
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as events:
        error_of(stub.InsertVector, pb.InsertVectorRequest(user_id="alice"), metadata=(("x-request-id", "r1"),))
    [call] = calls_in(events)
    assert call["log_level"] == level
    assert (call["code"], call["reason"], call["rpc"]) == (code, reason, "InsertVector")
    assert call["request_id"] == "r1"
    assert call["duration_ms"] >= 0
    assert "alice" not in str(call)


def test_what_a_behaviour_logs_carries_the_call(start_listener: StartListener) -> None:
    stub = start_listener(failing(NOT_FOUND)).stub
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as events:
        stub.GetStats(pb.GetStatsRequest(user_id="u"), timeout=5, metadata=(("x-request-id", "r2"),))
    [inside] = [event for event in events if event["event"] == "inside"]
    assert (inside["request_id"], inside["rpc"]) == ("r2", "GetStats")
    assert [call["log_level"] for call in calls_in(events)] == ["debug"]


class AllArities(grpc.GenericRpcHandler):
    """Methods of each arity that add up numbers of characters, and fail at a request called "fail"."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="pool-of-its-own")
        self.released = threading.Event()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Returns the handler of a method."""
        codec = (pb.GetStatsRequest.FromString, pb.GetStatsResponse.SerializeToString)
        make = {
            "UnaryUnary": (grpc.unary_unary_rpc_method_handler, self._unary_unary),
            "UnaryStream": (grpc.unary_stream_rpc_method_handler, self._unary_stream),
            "StreamUnary": (grpc.stream_unary_rpc_method_handler, self._stream_unary),
            "StreamStream": (grpc.stream_stream_rpc_method_handler, self._stream_stream),
            "Endless": (grpc.unary_stream_rpc_method_handler, self._endless),
            "NonBlocking": (grpc.unary_stream_rpc_method_handler, self._non_blocking()),
        }
        factory, behaviour = make[handler_call_details.method.rpartition("/")[2]]
        return factory(behaviour, *codec)

    @staticmethod
    def _answer(request: pb.GetStatsRequest) -> pb.GetStatsResponse:
        if request.user_id == "fail":
            raise MemoryNotFound("no such memory")
        return pb.GetStatsResponse(live_count=len(request.user_id))

    def _unary_unary(self, request: pb.GetStatsRequest, _context: grpc.ServicerContext) -> pb.GetStatsResponse:
        return self._answer(request)

    def _unary_stream(
        self, request: pb.GetStatsRequest, _context: grpc.ServicerContext
    ) -> Iterator[pb.GetStatsResponse]:
        yield pb.GetStatsResponse(live_count=1)
        yield self._answer(request)

    def _stream_unary(
        self, requests: Iterator[pb.GetStatsRequest], _context: grpc.ServicerContext
    ) -> pb.GetStatsResponse:
        return pb.GetStatsResponse(live_count=sum(self._answer(request).live_count for request in requests))

    def _stream_stream(
        self, requests: Iterator[pb.GetStatsRequest], _context: grpc.ServicerContext
    ) -> Iterator[pb.GetStatsResponse]:
        for request in requests:
            yield self._answer(request)

    def _endless(self, _request: pb.GetStatsRequest, context: grpc.ServicerContext) -> Iterator[pb.GetStatsResponse]:
        context.add_callback(self.released.set)
        while True:
            yield pb.GetStatsResponse(live_count=1)
            self.released.wait(0.01)

    def _non_blocking(self) -> Any:
        def behaviour(request: pb.GetStatsRequest, _context: grpc.ServicerContext, send: Any) -> None:
            send(self._answer(request))
            send(pb.GetStatsResponse(live_count=int(threading.current_thread().name.startswith("pool-of-its-own"))))
            send(None)

        behaviour.experimental_non_blocking = True  # type: ignore[attr-defined]  # how gRPC wants to be told
        behaviour.experimental_thread_pool = self.pool  # type: ignore[attr-defined]  # likewise
        return behaviour


class AnyCall:
    """Calls methods of AllArities by name, with requests as bytes."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def __call__(self, method: str, *requests: bytes) -> list[int]:
        """Returns the numbers of the replies."""
        path = f"/memory_service.v1.AllArities/{method}"
        codec = (bytes, pb.GetStatsResponse.FromString)
        responses: Any
        match method:
            case "UnaryUnary":
                responses = [self._channel.unary_unary(path, *codec)(requests[0], timeout=5)]
            case "StreamUnary":
                responses = [self._channel.stream_unary(path, *codec)(iter(requests), timeout=5)]
            case "StreamStream":
                responses = self._channel.stream_stream(path, *codec)(iter(requests), timeout=5)
            case _:
                responses = self._channel.unary_stream(path, *codec)(requests[0], timeout=5)
        return [response.live_count for response in responses]

    def endless(self) -> Any:
        """Starts an endless stream of replies."""
        return self._channel.unary_stream(
            "/memory_service.v1.AllArities/Endless", bytes, pb.GetStatsResponse.FromString
        )(b"")


@pytest.fixture
def calls() -> CallsInFlight:
    """Counts the calls of `any_call`."""
    return CallsInFlight()


@pytest.fixture
def registry() -> CollectorRegistry:
    """Holds the metrics of `any_call`."""
    return CollectorRegistry()


@pytest.fixture
def any_call(calls: CallsInFlight, registry: CollectorRegistry) -> Iterator[AnyCall]:
    """Methods of all arities behind the interceptor."""
    with ExitStack() as closing:
        interceptor = CallInterceptor(to_status=to_status, calls=calls, metrics=CallMetrics(registry))
        server = grpc.server(ThreadPoolExecutor(4), interceptors=[interceptor])
        server.add_generic_rpc_handlers((AllArities(),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        closing.callback(lambda: server.stop(None).wait())
        yield AnyCall(closing.enter_context(open_channel(f"127.0.0.1:{port}")))


def stats(user_id: str) -> bytes:
    return pb.GetStatsRequest(user_id=user_id).SerializeToString()


def test_all_arities_answer(any_call: AnyCall) -> None:
    assert any_call("UnaryUnary", stats("abc")) == [3]
    assert any_call("UnaryStream", stats("abc")) == [1, 3]
    assert any_call("StreamUnary", stats("abc"), stats("de")) == [5]
    assert any_call("StreamStream", stats("abc"), stats("de")) == [3, 2]


def test_a_non_blocking_behaviour_keeps_its_mode_and_its_threads(any_call: AnyCall) -> None:
    assert any_call("NonBlocking", stats("abc")) == [3, 1]


@pytest.mark.parametrize("method", ["UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream"])
@pytest.mark.parametrize(
    ("last", "code"),
    [(stats("fail"), grpc.StatusCode.NOT_FOUND), (b"\xff", grpc.StatusCode.INVALID_ARGUMENT)],
    ids=["failing", "malformed"],
)
def test_all_arities_map_errors_of_the_behaviour_and_of_the_parser(
    any_call: AnyCall, calls: CallsInFlight, method: str, last: bytes, code: grpc.StatusCode
) -> None:
    requests = (stats("abc"), last) if method.startswith("Stream") else (last,)
    with pytest.raises(grpc.RpcError) as caught:
        any_call(method, *requests)
    assert caught.value.code() is code
    assert info_of(caught.value).domain == "memory_service"
    assert calls.wait_for_none(timeout_s=5)


def test_a_stream_whose_reader_leaves_is_logged_as_cancelled(any_call: AnyCall, calls: CallsInFlight) -> None:
    with capture_logs() as events:
        stream = any_call.endless()
        next(stream)
        assert calls.count == 1
        stream.cancel()
        assert calls.wait_for_none(timeout_s=5)
    assert [call["code"] for call in calls_in(events)] == ["CANCELLED"]


@dataclass
class Details:
    """What gRPC tells an interceptor of a call."""

    method: str
    invocation_metadata: tuple[tuple[str, str | bytes], ...] = ()


def test_methods_of_grpc_itself_are_not_wrapped() -> None:
    interceptor = CallInterceptor(to_status=to_status, calls=CallsInFlight(), metrics=CallMetrics(CollectorRegistry()))
    handler: Any = grpc.unary_stream_rpc_method_handler(lambda _request, _context: iter(()))

    assert interceptor.intercept_service(lambda _: handler, Details("/grpc.health.v1.Health/Watch")) is handler
    wrapped = interceptor.intercept_service(lambda _: handler, Details(f"/{SERVICE}/GetStats"))
    assert wrapped is not None
    assert wrapped is not handler


def test_unknown_methods_are_unimplemented(start_listener: StartListener) -> None:
    call: Any = start_listener().channel.unary_unary(f"/{SERVICE}/NoSuchMethod", bytes, bytes)
    assert error_of(call, b"").code() is grpc.StatusCode.UNIMPLEMENTED
