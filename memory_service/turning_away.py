"""Turning calls away at the door, where all threads for their kind are busy and enough calls wait for one.

Done on the thread that accepts calls, with a status made beforehand: a refusal takes no thread from those that are
served, does not wait for its turn behind them, and under overload there are more of them than of anything else.
"""

import random
from typing import Any

import grpc

from memory_service.access.call_threads import AtOnce, CallThreads
from memory_service.access.errors import Overloaded
from memory_service.access.refusals import CountRefusal
from memory_service.executors import run_on
from memory_service.method_handlers import Handler
from memory_service.metrics.calls import MethodMetrics
from memory_service.observed_call import REQUEST_ID, ToStatus, request_id_of

# Each asks to be tried again after another delay, so that callers refused together do not come back together.
STATUSES = 64


def refusing_handler(
    threads: CallThreads, *, to_status: ToStatus, metrics: MethodMetrics, count_refusal: CountRefusal
) -> Handler:
    """Returns a handler that answers any call, whatever its arity, with RESOURCE_EXHAUSTED."""
    error = Overloaded(f"all threads for {threads.kind} calls are busy, and the queue is full", limit=threads.setting)
    statuses = [to_status(error, trailers=()) for _ in range(STATUSES)]
    refused = metrics.codes[grpc.StatusCode.RESOURCE_EXHAUSTED]

    def refuse(_requests: Any, context: grpc.ServicerContext) -> None:
        metrics.started.inc()
        refused.inc()  # without a duration: it would make latencies look better under overload
        count_refusal(threads.setting)
        status = random.choice(statuses)  # noqa: S311 - no secret
        # What `abort` leaves as it is, `abort_with_status` replaces.
        context.set_trailing_metadata((*(status.trailing_metadata or ()), (REQUEST_ID, request_id_of(context))))
        context.abort(status.code, status.details)

    # On the wire all arities look alike. Before it calls one that takes a single request, gRPC waits for that request
    # to arrive; a stream is read by whoever wants to.
    return grpc.stream_unary_rpc_method_handler(run_on(AtOnce(), refuse))
