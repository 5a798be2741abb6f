"""What surrounds every call: its request id, its line in the log, and its errors made statuses."""

import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from db.errors import DatabaseUnavailable
from memory_service.calls_in_flight import CallsInFlight
from memory_service.executors import run_on
from memory_service.v1 import memory_pb2

log = structlog.get_logger(__name__)

REQUEST_ID = "x-request-id"
STATUS_DETAILS = "grpc-status-details-bin"

# Short enough for a log line, and nothing in it that could end one.
_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

# What a caller did is news for the caller; what the service did is news for its operator. A call that went
# well is logged at debug only: at thousands a second, the lines would cost more than the calls.
_LEVELS = {
    grpc.StatusCode.OK: "debug",
    grpc.StatusCode.UNKNOWN: "error",
    grpc.StatusCode.INTERNAL: "error",
    grpc.StatusCode.UNAVAILABLE: "error",
    grpc.StatusCode.DATA_LOSS: "error",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "warning",
}

if TYPE_CHECKING:  # generic in the stubs only
    Handler = grpc.RpcMethodHandler[Any, Any]

Behaviour = Callable[..., Any]
Request = TypeVar("Request")
Response = TypeVar("Response")


class MalformedRequest(Exception):
    """The bytes of a request are not a message of its method's type."""


class ToStatus(Protocol):
    """Decides what a caller is told about an error: `errors.to_status`."""

    def __call__(self, error: BaseException, *, trailers: tuple[tuple[str, str | bytes], ...]) -> grpc.Status:
        """Returns the status, `trailers` among its trailing metadata."""
        ...


class CallInterceptor(grpc.ServerInterceptor):
    """Wraps the methods of this service's own package and leaves gRPC's own (/grpc.*) alone.

    A behaviour tells what went wrong by raising; `to_status` makes of it the status that is sent.
    """

    def __init__(self, *, to_status: ToStatus, calls: CallsInFlight) -> None:
        self._to_status = to_status
        self._calls = calls
        self._prefix = f"/{memory_pb2.DESCRIPTOR.package}."
        # gRPC asks for the handler anew with each call, under the server's lock: wrap it once.
        self._wrapped: dict[str, Handler] = {}
        self._refusals: ThreadPoolExecutor | None = None

    def refuse_calls(self, executor: ThreadPoolExecutor) -> None:
        """Answers new calls with UNAVAILABLE from now on, on `executor`; those accepted before go on.

        To be done a moment before the server stops: gRPC answers calls that are just arriving with CANCELLED then,
        which no client takes for a reason to try elsewhere (12 of 160 calls, 8 callers in a loop).
        """
        self._refusals = executor

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Request, Response] | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Request, Response] | None":
        """Returns the method's handler, wrapped where it is one of this service's."""
        method = handler_call_details.method
        if not method.startswith(self._prefix):
            return continuation(handler_call_details)
        if method not in self._wrapped or self._refusals is not None:
            handler = continuation(handler_call_details)
            if handler is None:
                return None
            rpc = method.rpartition("/")[2]
            if self._refusals is not None:
                return self._refusal(rpc, handler, self._refusals)
            self._wrapped[method] = self._wrap(rpc, handler)
        return self._wrapped[method]

    def _wrap(self, rpc: str, handler: "Handler") -> "Handler":
        behaviour, make_handler = _arity(handler)
        arguments = _checked_each if handler.request_streaming else _checked

        def call(argument: Any, context: grpc.ServicerContext, *send: Callable[[Any], None]) -> Any:
            with self._observed(rpc, context):
                return behaviour(arguments(argument), context, *send)

        def stream(argument: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with self._observed(rpc, context):
                yield from behaviour(arguments(argument), context)

        # A non-blocking behaviour answers through a callback and returns nothing to iterate over.
        non_blocking = getattr(behaviour, "experimental_non_blocking", False)
        wrapped: Behaviour = stream if handler.response_streaming and not non_blocking else call
        for attribute in ("experimental_thread_pool", "experimental_non_blocking"):
            if hasattr(behaviour, attribute):
                setattr(wrapped, attribute, getattr(behaviour, attribute))
        return make_handler(
            wrapped,
            request_deserializer=_parse_with(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )

    def _refusal(self, rpc: str, handler: "Handler", executor: ThreadPoolExecutor) -> "Handler":
        def refuse(_argument: Any, context: grpc.ServicerContext) -> None:
            with self._observed(rpc, context, levels={}):  # all in order: info
                raise DatabaseUnavailable("the server is shutting down")

        _, make_handler = _arity(handler)
        return make_handler(run_on(executor, refuse))

    @contextmanager
    def _observed(
        self, rpc: str, context: grpc.ServicerContext, *, levels: Mapping[grpc.StatusCode, str] = _LEVELS
    ) -> Iterator[None]:
        request_id = _request_id(context)
        context.set_trailing_metadata(((REQUEST_ID, request_id),))
        started_at = time.perf_counter()
        # Not to be unbound: gRPC runs each call in a context of its own.
        structlog.contextvars.bind_contextvars(request_id=request_id, rpc=rpc)
        with self._calls:
            try:
                yield
            except GeneratorExit:
                _log_call(levels, grpc.StatusCode.CANCELLED, started_at)
                raise
            except BaseException as error:  # what passes here, gRPC shows the client word for word
                if isinstance(error, grpc.RpcError) and not context.is_active():
                    # What gRPC raises from a stream of requests whose caller is gone: nobody to answer.
                    _log_call(levels, grpc.StatusCode.CANCELLED, started_at)
                    raise
                # Trailers go with the status: abort_with_status drops those that were set before.
                status = self._to_status(error, trailers=((REQUEST_ID, request_id),))
                _log_call(levels, status.code, started_at, reason=_reason(status), peer=context.peer())
                context.abort_with_status(status)
            else:
                _log_call(levels, grpc.StatusCode.OK, started_at)


def _request_id(context: grpc.ServicerContext) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID and isinstance(value, str) and _SANE_REQUEST_ID.fullmatch(value):
            return value
    return secrets.token_hex(16)


def _log_call(
    levels: Mapping[grpc.StatusCode, str], code: grpc.StatusCode, started_at: float, **fields: str | None
) -> None:
    duration_ms = round((time.perf_counter() - started_at) * 1_000, 2)
    getattr(log, levels.get(code, "info"))("call", code=code.name, duration_ms=duration_ms, **fields)


def _reason(status: grpc.Status) -> str | None:
    """Returns ErrorInfo.reason. The message stays out of the log: it may quote what the caller sent."""
    for key, value in status.trailing_metadata or ():
        if key == STATUS_DETAILS and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return str(info.reason)
    return None


def _arity(handler: "Handler") -> tuple[Behaviour, "Callable[..., Handler]"]:
    behaviour: Behaviour | None
    if handler.request_streaming and handler.response_streaming:
        behaviour, make_handler = handler.stream_stream, grpc.stream_stream_rpc_method_handler
    elif handler.request_streaming:
        behaviour, make_handler = handler.stream_unary, grpc.stream_unary_rpc_method_handler
    elif handler.response_streaming:
        behaviour, make_handler = handler.unary_stream, grpc.unary_stream_rpc_method_handler
    else:
        behaviour, make_handler = handler.unary_unary, grpc.unary_unary_rpc_method_handler
    if behaviour is None:
        raise TypeError("the handler has no behaviour for its own arity")
    return behaviour, make_handler


def _parse_with(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """Returns a deserializer that hands a parse error on: gRPC would answer INTERNAL to one that raises."""
    if deserialize is None:
        return None

    def parse(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            # The parser's own words name no field, and may quote the bytes.
            return MalformedRequest("the request is not a valid message of the method's request type")

    return parse


def _checked(request: Any) -> Any:
    if isinstance(request, MalformedRequest):
        raise request
    return request


def _checked_each(requests: Iterator[Any]) -> Iterator[Any]:
    return map(_checked, requests)
