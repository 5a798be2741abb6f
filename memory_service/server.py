"""The gRPC listeners of one process: the service itself, and the ops address that only answers health checks."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
import structlog

from memory_service import descriptors
from memory_service.access.admission import OPEN, Admission
from memory_service.access.bulkheads import Bulkheads
from memory_service.access.refusals import CountRefusal, uncounted
from memory_service.addresses import AddressError, require_free, with_port
from memory_service.calls_in_flight import CallsInFlight
from memory_service.certificates import Certificates
from memory_service.config import Settings
from memory_service.health import Health
from memory_service.interceptors import CallInterceptor
from memory_service.limits import limits_of
from memory_service.metrics.calls import CallMetrics
from memory_service.observed_call import ToStatus
from memory_service.reflection import Reflection, ReflectionGuard
from memory_service.request_arrival import RequestArrivals
from memory_service.v1 import admin_pb2, admin_pb2_grpc, memory_pb2, memory_pb2_grpc

log = structlog.get_logger(__name__)

SERVICE = memory_pb2.DESCRIPTOR.services_by_name["MemoryService"].full_name
ADMIN_SERVICE = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name

# Between refusing calls and stopping the server: enough for those that are on their way.
REFUSING_S = 0.2

# How long handlers may go on once gRPC has cancelled their calls: their statements are cancelled, too.
CANCELLED_CALLS_S = 2.0

CONNECTION_OPTIONS = (
    # Find dead peers, and let clients ping as often as they do by default: gRPC's own floor of 300 s without data
    # cuts off a Go client that pings every 10 s with ENHANCE_YOUR_CALM.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    # Ageing connections is what spreads clients anew over servers behind a TCP load balancer.
    ("grpc.max_connection_age_ms", 300_000),
    ("grpc.max_connection_age_grace_ms", 60_000),
    ("grpc.max_connection_idle_ms", 600_000),
    # Soft and hard limit alike: in between, gRPC refuses at random.
    ("grpc.max_metadata_size", 16_384),
    ("grpc.absolute_max_metadata_size", 16_384),
)


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a server listens, with the ports that 0 stood for."""

    listen: str
    ops_listen: str | None


class Server:
    """Serves one servicer, with health checks and reflection beside it on threads of their own.

    `end_streams` is called when the server drains: the servicer's streams have to end then as calls do.
    """

    def __init__(
        self,
        settings: Settings,
        servicer: memory_pb2_grpc.MemoryServiceServicer,
        *,
        administration: admin_pb2_grpc.AdminServiceServicer | None = None,
        to_status: ToStatus,
        metrics: CallMetrics,
        admission: Admission = OPEN,
        certificates: Certificates | None = None,
        count_refusal: CountRefusal = uncounted,
        end_streams: Callable[[], None] = lambda: None,
        share_ports: bool = False,
    ) -> None:
        self._settings = settings
        self._certificates = certificates
        self._end_streams = end_streams
        self._share_ports = share_ports
        self._calls = CallsInFlight()
        self.bulkheads = Bulkheads(settings)
        """The threads that calls of the service work on."""
        self._arrivals = RequestArrivals()
        self._interceptor = CallInterceptor(
            to_status=to_status,
            calls=self._calls,
            metrics=metrics,
            admission=admission,
            bulkheads=self.bulkheads,
            count_refusal=count_refusal,
            arrivals=self._arrivals,
        )
        self.health = Health([SERVICE] if administration is None else [SERVICE, ADMIN_SERVICE])
        """What it reports; everything is NOT_SERVING at first."""
        self._reflection = _reflection(settings, admission, to_status, count_refusal)
        self._health_threads = ThreadPoolExecutor(4, thread_name_prefix="health")
        self._main = grpc.server(
            self.bulkheads.reads,
            interceptors=[self._interceptor],
            maximum_concurrent_rpcs=settings.max_concurrent_calls,
            options=[
                *self._options(),
                ("grpc.max_receive_message_length", limits_of(settings).max_request_bytes),
            ],
        )
        memory_pb2_grpc.add_MemoryServiceServicer_to_server(servicer, self._main)
        if administration is not None:
            admin_pb2_grpc.add_AdminServiceServicer_to_server(administration, self._main)
        self.health.add_to(self._main, self._health_threads)
        if self._reflection is not None:
            self._reflection.add_to(self._main)
        self._ops: grpc.Server | None = None
        if settings.ops_listen != "off":
            # No limit on concurrent calls: on the main address it refuses health checks as well.
            self._ops = grpc.server(self._health_threads, options=self._options())
            self.health.add_to(self._ops, self._health_threads)

    def start(self) -> Addresses:
        """Binds the ports and begins to accept calls.

        Raises:
            AddressError: When a port cannot be bound.
        """
        listen = self._bind(self._main, self._settings.listen, self._certificates)
        ops_listen = None
        if self._ops is not None:
            ops_certificates = self._certificates if self._settings.ops_tls else None
            ops_listen = self._bind(self._ops, self._settings.ops_listen, ops_certificates)
        self._arrivals.start()
        self._main.start()
        if self._ops is not None:
            self._ops.start()
        return Addresses(listen, ops_listen)

    def drain(self) -> bool:
        """Reports NOT_SERVING, waits for balancers to see it, then refuses new calls and lets those under way end.

        Returns whether all ended within the grace period; the ops address goes on answering until `close`.
        """
        self.health.drain()
        time.sleep(self._settings.drain_delay_s)
        log.info("draining", calls=self._calls.count, grace_s=self._settings.drain_grace_s)
        self._interceptor.refuse_calls(self._health_threads)
        # A stream may go on for hours, or wait for a caller who sends nothing.
        self._end_streams()
        time.sleep(REFUSING_S)
        self._arrivals.drain()
        # gRPC cancels what is left a moment after we have looked.
        ended = self._main.stop(self._settings.drain_grace_s + 0.1)
        # Idle streams that would last for the whole grace period. What remains are calls, and gRPC knows best when
        # the last reply has been sent.
        self.health.end_watches()
        if self._reflection is not None:
            self._reflection.end_streams()
        if ended.wait(self._settings.drain_grace_s) or not self._calls.count:
            ended.wait()
            return True
        log.error("calls_cut_off", calls=self._calls.count)
        ended.wait()
        if not self._calls.wait_for_none(timeout_s=CANCELLED_CALLS_S):
            log.error("calls_do_not_end", calls=self._calls.count)
        return False

    def close(self) -> None:
        """Stops what still listens, at once."""
        for server in (self._main, self._ops):
            if server is not None:
                server.stop(None).wait()
        self.health.close()
        if self._reflection is not None:
            self._reflection.close()
        self._arrivals.close()
        self.bulkheads.close()
        self._health_threads.shutdown(wait=False, cancel_futures=True)

    def _options(self) -> list[tuple[str, int]]:
        return [*CONNECTION_OPTIONS, ("grpc.so_reuseport", int(self._share_ports))]

    def _bind(self, server: grpc.Server, address: str, certificates: Certificates | None) -> str:
        if not self._share_ports:
            require_free(address)
        try:
            if certificates is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, certificates.credentials())
            return with_port(address, port)
        except RuntimeError:
            raise AddressError(f"cannot listen on {address}") from None


def _reflection(
    settings: Settings, admission: Admission, to_status: ToStatus, count_refusal: CountRefusal
) -> Reflection | None:
    if settings.reflection == "off":
        return None
    guarded = settings.reflection == "authenticated"
    guard = ReflectionGuard(admission, to_status, count_refusal) if guarded else None
    return Reflection(descriptors.served(), guard=guard)
