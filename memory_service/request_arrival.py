"""Waiting for the one request of a call, and no longer than others can bear.

gRPC hands a call to a thread before its request has arrived. A client that sends the beginnings of calls and nothing
more held all threads: 24 such calls, over one connection, and nobody was served any more.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import structlog

from memory_service.access.call_threads import CallThreads

log = structlog.get_logger(__name__)

Behaviour = Callable[..., Any]

# The largest request over a line of 2 Mbit/s.
LIMIT_S = 60.0
# While other calls wait for a thread, or the server drains. Requests of ordinary size come with the call's beginning,
# but on a machine with eight times the work for its cores it took more than 50 ms to hand one over.
LIMIT_IN_HASTE_S = 0.5
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class _Awaited:
    """A thread that waits for a request."""

    since: float
    """time.monotonic()"""
    threads: CallThreads | None

    def is_overdue(self, now: float, *, draining: bool) -> bool:
        haste = draining or (self.threads is not None and self.threads.crowded)
        return now - self.since > (LIMIT_IN_HASTE_S if haste else LIMIT_S)


class RequestArrivals:
    """Cuts off calls whose request does not come."""

    def __init__(self) -> None:
        self._awaited: dict[grpc.ServicerContext, _Awaited] = {}
        self._draining = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="request-arrivals", daemon=True)

    def start(self) -> None:
        """Begins to cut off."""
        self._thread.start()

    def drain(self) -> None:
        """Lets the server wait only a moment for requests that have not come."""
        self._draining = True

    def close(self) -> None:
        """Ends the thread."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def receiving(
        self, behaviour: Behaviour, *, threads: CallThreads | None, missing: Callable[[], object]
    ) -> Behaviour:
        """Returns a behaviour for a stream of requests that waits for the first and calls `behaviour` with it.

        Args:
            behaviour: Takes one request.
            threads: What it works on.
            missing: Returns what stands for the request of a call that ends without one.
        """
        # On the wire, a call with one request looks like a stream of requests. Of a stream, gRPC leaves it to the
        # behaviour to wait, and so to be told to stop: 1 µs.
        awaited = self._awaited

        def receive(requests: Iterator[Any], context: grpc.ServicerContext, *send: Callable[[Any], None]) -> Any:
            awaited[context] = _Awaited(time.monotonic(), threads)
            try:
                request = next(requests, None)
            finally:
                del awaited[context]
            return behaviour(missing() if request is None else request, context, *send)

        return receive

    def _watch(self) -> None:
        while not self._closing.wait(POLL_S):
            now = time.monotonic()
            awaited = list(self._awaited.items())
            overdue = [context for context, call in awaited if call.is_overdue(now, draining=self._draining)]
            for context in overdue:
                context.cancel()
            if overdue:
                log.warning("calls_without_request_cut_off", calls=len(overdue))
