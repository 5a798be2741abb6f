"""Wrapping the methods of the service: every call is observed and its request checked, unless it is turned away."""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from db.errors import StatementTimeout
from memory_service.access.admission import OPEN, Admission, AdmittedCall
from memory_service.access.bulkheads import Bulkheads
from memory_service.access.call_threads import CallThreads
from memory_service.access.refusals import CountRefusal, uncounted
from memory_service.calls_in_flight import CallsInFlight
from memory_service.executors import run_on
from memory_service.method_handlers import (
    Behaviour,
    Handler,
    MalformedRequest,
    maker_for_streams,
    parsing_with,
    taken_apart,
)
from memory_service.metrics.calls import CallMetrics, grpc_type
from memory_service.observed_call import Method, ObservedCall, ShuttingDown, ToStatus, log_methods
from memory_service.request_arrival import RequestArrivals
from memory_service.turning_away import refusing_handler
from memory_service.v1 import memory_pb2

Request = TypeVar("Request")
Response = TypeVar("Response")

# A call that has waited until so little is left of its time would only be begun to be cut off.
NOT_WORTH_BEGINNING_S = 0.002


@dataclass(frozen=True, slots=True)
class _Served:
    """How calls of one method are answered."""

    handler: Handler
    threads: CallThreads | None
    """What it works on; None: on the server's own threads."""
    refusal: Handler | None
    """Answers while the threads are full."""

    def next_handler(self) -> Handler:
        """Returns what answers a call that arrives now."""
        if self.refusal is not None and self.threads is not None and self.threads.full:
            return self.refusal
        return self.handler


class CallInterceptor(grpc.ServerInterceptor):
    """Wraps the methods of this service's own package and leaves gRPC's own (/grpc.*) alone.

    A behaviour tells what went wrong by raising; `to_status` makes of it the status that is sent.
    """

    def __init__(
        self,
        *,
        to_status: ToStatus,
        calls: CallsInFlight,
        metrics: CallMetrics,
        admission: Admission = OPEN,
        bulkheads: Bulkheads | None = None,
        count_refusal: CountRefusal = uncounted,
        arrivals: RequestArrivals | None = None,
    ) -> None:
        self._to_status = to_status
        self._admission = admission
        self._bulkheads = bulkheads
        self._count_refusal = count_refusal
        self._arrivals = arrivals
        self._calls = calls
        self._metrics = metrics
        self._log = log_methods()
        self._prefix = f"/{memory_pb2.DESCRIPTOR.package}."
        # gRPC asks for the handler anew with each call, under the server's lock: wrap it once.
        self._served: dict[str, _Served] = {}
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
        """Returns the method's handler, wrapped where it is one of this service's, or one that turns the call away."""
        method = handler_call_details.method
        if not method.startswith(self._prefix):
            return continuation(handler_call_details)
        if method not in self._served or self._refusals is not None:
            handler = continuation(handler_call_details)
            if handler is None:
                return None
            if self._refusals is not None:
                return self._refusal(method, handler, self._refusals)
            self._served[method] = self._serve(method, handler)
        return self._served[method].next_handler()

    def _serve(self, method: str, handler: Handler) -> _Served:
        behaviour, _ = taken_apart(handler)
        threads = getattr(behaviour, "experimental_thread_pool", None)
        if threads is None and self._bulkheads is not None:
            threads = self._bulkheads.of(method)
        refusal = None
        if isinstance(threads, CallThreads):
            refusal = refusing_handler(
                threads,
                to_status=self._to_status,
                metrics=self._shared(method, handler).metrics,
                count_refusal=self._count_refusal,
            )
        return _Served(self._wrap(method, handler, threads), threads, refusal)

    def _wrap(self, method: str, handler: Handler, threads: ThreadPoolExecutor | None) -> Handler:
        behaviour, make_handler = taken_apart(handler)
        arguments = _checked_each if handler.request_streaming else _checked
        observed = self._observe(method, handler)
        bulkheads, bounded = self._bulkheads, threads if isinstance(threads, CallThreads) else None

        def require_time(context: grpc.ServicerContext) -> None:
            if context.time_remaining() < NOT_WORTH_BEGINNING_S:
                raise StatementTimeout("the deadline passed")
            if bulkheads is not None and bounded is not None:
                bulkheads.require_short_wait(bounded)

        def call(argument: Any, context: grpc.ServicerContext, *send: Callable[[Any], None]) -> Any:
            with observed(context) as admitted:
                require_time(context)
                admitted.begin()
                return admitted.replied(behaviour(arguments(argument, admitted), context, *send))

        def stream(argument: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with observed(context) as admitted:
                require_time(context)
                admitted.begin()
                yield from _noted(behaviour(arguments(argument, admitted), context), admitted)

        # A non-blocking behaviour answers through a callback and returns nothing to iterate over.
        non_blocking = getattr(behaviour, "experimental_non_blocking", False)
        wrapped: Behaviour = stream if handler.response_streaming and not non_blocking else call
        if self._arrivals is not None and not handler.request_streaming:
            counted = threads if isinstance(threads, CallThreads) else None
            wrapped = self._arrivals.receiving(wrapped, threads=counted, missing=_no_request)
            make_handler = maker_for_streams(handler)
        if threads is not None:
            wrapped = run_on(threads, wrapped, non_blocking=non_blocking)
        return make_handler(
            wrapped,
            request_deserializer=parsing_with(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )

    def _refusal(self, method: str, handler: Handler, executor: ThreadPoolExecutor) -> Handler:
        observed = self._observe(method, handler)

        def refuse(_argument: Any, context: grpc.ServicerContext) -> None:
            with observed(context):
                raise ShuttingDown("the server is shutting down")

        # Of one request, gRPC would wait for its arrival first, on a thread that health checks need.
        return maker_for_streams(handler)(run_on(executor, refuse))

    def _observe(self, method: str, handler: Handler) -> Callable[[grpc.ServicerContext], ObservedCall]:
        """Returns what makes, for each call of a method, its context manager."""
        shared = self._shared(method, handler)
        return lambda context: ObservedCall(shared, context)

    def _shared(self, method: str, handler: Handler) -> Method:
        _, service, name = method.split("/")
        kind = grpc_type(
            request_streaming=bool(handler.request_streaming), response_streaming=bool(handler.response_streaming)
        )
        return Method(
            name=name,
            full_name=method,
            to_status=self._to_status,
            calls=self._calls,
            metrics=self._metrics.of(service, name, kind),
            log_methods=self._log,
            admission=self._admission,
            count_refusal=self._count_refusal,
        )


def _no_request() -> MalformedRequest:
    return MalformedRequest("the call ended without a request message")


def _checked(request: Any, admitted: AdmittedCall) -> Any:
    if isinstance(request, Exception):  # stands for a request that is none, or did not come
        raise request
    return admitted.check(request)


def _noted(replies: Iterator[Any], admitted: AdmittedCall) -> Iterator[Any]:
    try:
        for reply in replies:
            yield admitted.streamed(reply)
    finally:
        # Now, not when it is collected: the call has not ended before its behaviour has.
        if isinstance(replies, Generator):
            replies.close()


def _checked_each(requests: Iterator[Any], admitted: AdmittedCall) -> Iterator[Any]:
    return (_checked(request, admitted) for request in requests)
