"""The address that answers Prometheus."""

import socket
import sys
import threading
from socketserver import TCPServer, ThreadingMixIn
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, MetricsHandler, disable_created_metrics

from memory_service.addresses import AddressError, require_free, with_port
from memory_service.settings.address import split_address

log = structlog.get_logger(__name__)

# Somebody who connects and asks nothing must not keep a thread for ever.
CLIENT_TIMEOUT_S = 10.0


class MetricsListener:
    """Answers every GET with the metrics of a registry, as plain text or in OpenMetrics."""

    def __init__(self, address: str, registry: CollectorRegistry) -> None:
        """Binds the address.

        Raises:
            AddressError: When it cannot be bound.
        """
        # Of each counter the time of its first value, as a series of its own: Prometheus sees restarts without.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # theirs lacks the annotation
        require_free(address)
        handler = type("Handler", (MetricsHandler,), {"registry": registry, "timeout": CLIENT_TIMEOUT_S})
        try:
            self._server = _Server(address, handler)
        except OSError as error:  # taken since
            raise AddressError(f"cannot listen on {address}: {error.strerror}") from None
        self.address = with_port(address, self._server.server_address[1])
        """Where it listens, with the port that 0 stood for."""
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()
        log.info("serving_metrics", listen=self.address)

    def close(self) -> None:
        """Stops answering, at once."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingMixIn, TCPServer):
    # Not http.server's: it asks the DNS for the name of its own address, and waits.
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: str, handler: type[MetricsHandler]) -> None:
        host, port = split_address(address)
        family, *_, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        self.address_family = family
        super().__init__((str(where[0]), port), handler)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the names are socketserver's
        error = sys.exception()
        if not isinstance(error, OSError):  # a defect; an OSError is a client that left
            log.error("metrics_not_served", exc_info=error)
