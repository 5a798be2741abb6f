"""grpc.health.v1: what the service says about itself when it is asked."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from memory_service.executors import run_on

SERVICE = "grpc.health.v1.Health"
LIVENESS = "liveness"

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

Send = Callable[[Any], None]


class Health:
    """Answers Check, List and Watch for `services` (with "" for the whole), and for "liveness".

    Everything is NOT_SERVING until `report` says otherwise, and for good from `drain` on. Only "liveness" is
    SERVING as long as somebody answers: a process that drains, or waits for its database, must not be killed.

    The servicer of grpcio-health-checking sends to each watcher under the lock that Check needs, so that one
    client that does not read stops all health checks; it lacks List, too.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._lock = threading.Lock()
        self._statuses = dict.fromkeys(("", *services), NOT_SERVING)
        self._draining = False
        self._ended = False
        self._watches: set[_Watch] = set()
        self._deliveries = ThreadPoolExecutor(8, thread_name_prefix="health-watch")

    def add_to(self, server: grpc.Server, executor: ThreadPoolExecutor) -> None:
        """Registers the service with a server, its methods working on `executor`."""
        request, response = health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
        handlers = {
            "Check": grpc.unary_unary_rpc_method_handler(
                run_on(executor, self.check), request.FromString, response.SerializeToString
            ),
            "List": grpc.unary_unary_rpc_method_handler(
                run_on(executor, self.list_all),
                health_pb2.HealthListRequest.FromString,
                health_pb2.HealthListResponse.SerializeToString,
            ),
            "Watch": grpc.unary_stream_rpc_method_handler(
                run_on(executor, self.watch, non_blocking=True),
                request.FromString,
                response.SerializeToString,
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    def report(self, *, serving: bool) -> None:
        """Sets the status of all services, unless they drain."""
        with self._lock:
            if not self._draining:
                self._set(SERVING if serving else NOT_SERVING)

    def drain(self) -> None:
        """Reports NOT_SERVING from now on."""
        with self._lock:
            self._draining = True
            self._set(NOT_SERVING)

    def end_watches(self) -> None:
        """Ends the open Watch streams, and those to come, after their last status."""
        with self._lock:
            self._ended = True
            self._deliver_to_all()

    def close(self) -> None:
        """Ends the watches and the threads that serve them."""
        self.end_watches()
        self._deliveries.shutdown(wait=False)

    def status(self, service: str) -> int | None:
        """Returns the status of a service, None for one that does not exist."""
        return SERVING if service == LIVENESS else self._statuses.get(service)

    def check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        """Health.Check."""
        status = self.status(request.service)
        if status is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return health_pb2.HealthCheckResponse(status=status)

    def list_all(
        self, request: health_pb2.HealthListRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthListResponse:
        """Health.List."""
        del request, context
        response = health_pb2.HealthListResponse()
        for service in (*self._statuses, LIVENESS):
            response.statuses[service].status = self.status(service)
        return response

    def watch(self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext, send: Send) -> None:
        """Health.Watch: the status now, then each change, until the caller leaves or `end_watches`."""
        watch = _Watch(self, request.service, send)
        with self._lock:
            if not context.add_callback(lambda: self._forget(watch)):
                return
            self._watches.add(watch)
            self._deliver_to(watch)

    @property
    def ended(self) -> bool:
        """Whether watches are to end."""
        return self._ended

    def _set(self, status: int) -> None:
        if any(old != status for old in self._statuses.values()):
            self._statuses = dict.fromkeys(self._statuses, status)
            self._deliver_to_all()

    def _deliver_to_all(self) -> None:
        for watch in self._watches:
            self._deliver_to(watch)

    def _deliver_to(self, watch: "_Watch") -> None:
        # Sending waits for the client's flow control: never under the lock, nor on the thread that reports.
        self._deliveries.submit(watch.deliver)

    def _forget(self, watch: "_Watch") -> None:
        with self._lock:
            self._watches.discard(watch)


class _Watch:
    """One Watch stream: sends the status in force, each only once."""

    def __init__(self, health: Health, service: str, send: Send) -> None:
        self._health = health
        self._service = service
        self._send = send
        self._lock = threading.Lock()
        self._delivering = False
        self._due = False
        self._sent: int | None = None
        self._ended = False

    def deliver(self) -> None:
        """Sends the status if it differs from the last one sent, and ends the stream if it is time.

        One thread at a time: a client that does not read must not collect them all.
        """
        with self._lock:
            self._due = True
            if self._delivering:
                return
            self._delivering = True
        while self._is_due():
            self._send_news()

    def _is_due(self) -> bool:
        with self._lock:
            due, self._due = self._due, False
            self._delivering = due
            return due

    def _send_news(self) -> None:
        if self._ended:
            return
        # In this order, so that the status sent last is one of the end.
        ended, status = self._health.ended, self._health.status(self._service)
        status = SERVICE_UNKNOWN if status is None else status
        if status != self._sent:
            self._sent = status
            self._send(health_pb2.HealthCheckResponse(status=status))
        if ended:
            self._ended = True
            self._send(None)
