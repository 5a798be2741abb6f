"""Calls by method and status, under the names that dashboards expect of a gRPC server."""

from dataclasses import dataclass

import grpc
from google.protobuf.descriptor import MethodDescriptor
from prometheus_client import CollectorRegistry, Counter, Histogram

from memory_service.v1 import admin_pb2, memory_pb2

SERVICES = (
    memory_pb2.DESCRIPTOR.services_by_name["MemoryService"],
    admin_pb2.DESCRIPTOR.services_by_name["AdminService"],
)

# A search of a small user takes half a millisecond; a call without a deadline ends after ten seconds.
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class MethodMetrics:
    """The series of one method, looked up once: by their labels it would take four times as long."""

    started: Counter
    seconds: Histogram
    codes: dict[grpc.StatusCode, Counter]

    def handled(self, code: grpc.StatusCode, duration_s: float) -> None:
        """Records the end of a call."""
        self.codes[code].inc()
        self.seconds.observe(duration_s)


class CallMetrics:
    """Calls by method and status, as go-grpc-prometheus names them.

    All series of the service's methods are there from the beginning, at 0: a rate can be told from the first error on.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("grpc_type", "grpc_service", "grpc_method")
        self._started = Counter(
            "grpc_server_started_total", "Calls that reached the service.", labels, registry=registry
        )
        self._handled = Counter(
            "grpc_server_handled_total",
            "Calls ended, by the status they were answered with.",
            (*labels, "grpc_code"),
            registry=registry,
        )
        self._seconds = Histogram(
            "grpc_server_handling_seconds",
            "Seconds from a call's reaching the service to its end.",
            labels,
            buckets=SECONDS,
            registry=registry,
        )
        self._methods: dict[tuple[str, str, str], MethodMetrics] = {}
        for service in SERVICES:
            for method in service.methods:
                self.of(service.full_name, method.name, _type_of(method))

    def of(self, service: str, method: str, grpc_type: str) -> MethodMetrics:
        """Returns the series of a method, from the second time on without delay."""
        labels = (grpc_type, service, method)
        if labels not in self._methods:
            self._methods[labels] = MethodMetrics(
                started=self._started.labels(*labels),
                seconds=self._seconds.labels(*labels),
                codes={code: self._handled.labels(*labels, _go_name(code)) for code in grpc.StatusCode},
            )
        return self._methods[labels]


def grpc_type(*, request_streaming: bool, response_streaming: bool) -> str:
    """Returns what the label grpc_type says of a method."""
    if request_streaming:
        return "bidi_stream" if response_streaming else "client_stream"
    return "server_stream" if response_streaming else "unary"


def _type_of(method: MethodDescriptor) -> str:
    return grpc_type(request_streaming=method.client_streaming, response_streaming=method.server_streaming)


def _go_name(code: grpc.StatusCode) -> str:
    """Returns the code as Go spells it, and with it every dashboard: OK, Canceled, NotFound."""
    if code is grpc.StatusCode.CANCELLED:
        return "Canceled"
    return code.name if code is grpc.StatusCode.OK else code.name.title().replace("_", "")
