"""Waiting for the one request of a call, and no longer than others can bear.

gRPC hands a call to a thread before its request has arrived. A client that sends the beginnings of calls and nothing
more held all threads: 24 such calls, over one connection, and nobody was served any more.

Whose fault it is cannot be told in haste: a request that was sent with its call may lie in gRPC's queue, behind those
of others, when this process has too little of a processor. So whoever gives way to others is told to try again, and
only who has been waited for without anybody else waiting, that the request did not come.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import structlog

from db.errors import StatementTimeout
from memory_service.access.call_threads import CallThreads
from memory_service.access.errors import Overloaded
from memory_service.observed_call import ShuttingDown

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

    def fault(self, now: float, *, draining: bool) -> Exception | None:
        """Returns what to tell the caller in place of waiting on; None to wait on."""
        waited_s = now - self.since
        if waited_s > LIMIT_IN_HASTE_S:
            if draining:
                return ShuttingDown("the server is shutting down")
            if self.threads is not None and self.threads.crowded:
                message = f"gave way to other {self.threads.kind} calls before its request had arrived"
                return Overloaded(message, limit=self.threads.setting)
        return StatementTimeout(f"no request arrived within {LIMIT_S:g} s") if waited_s > LIMIT_S else None


class RequestArrivals:
    """Ends calls whose request does not come."""

    def __init__(self) -> None:
        self._awaited: dict[grpc.ServicerContext, _Awaited] = {}
        self._draining = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="request-arrivals", daemon=True)

    def start(self) -> None:
        """Begins to end them."""
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
            missing: Returns the error that stands for the request of a call that ends without one. `behaviour` gets
                likewise an error for its request where waiting for that is given up.
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
            overdue = 0
            # A copy is made in one go; a list of the items is not: what it allocates may run the garbage collector.
            for context, call in self._awaited.copy().items():
                if (fault := call.fault(now, draining=self._draining)) is not None:
                    _give_up(context, fault)
                    overdue += 1
            if overdue:
                log.warning("calls_without_request_cut_off", calls=overdue)


def _give_up(context: Any, fault: Exception) -> None:
    """Has the thread that waits for a call's request get `fault` in its place.

    For ending this wait gRPC offers nothing but cancelling the call. Its client is then told CANCELLED, and not that it
    may try again. So this does what gRPC does when the request arrives; where a version of it keeps its state
    otherwise, the call is cancelled.
    """
    state = _state_of(context)
    if state is None:
        context.cancel()
        return
    with state.condition:
        if state.request is None:  # it may have come just now
            state.request = fault
        # Also where it was given up before: a thread that had not begun to wait by then did not notice.
        state.condition.notify_all()


def _state_of(context: Any) -> Any:
    """Returns what gRPC knows of a call; None where it does not look like what is known of it here."""
    state = getattr(context, "_state", None)
    return state if hasattr(state, "condition") and hasattr(state, "request") else None
