"""The database layer's view of an RPC: a call that ends with it."""

from collections.abc import Callable

import grpc

from db.cancellation import Call

# gRPC reports a missing deadline as some 292 years.
NO_DEADLINE_S = 1e8

NewCall = Callable[[float | None], Call]
"""Makes a call that may run for so many seconds."""


def call_of(context: grpc.ServicerContext, new_call: NewCall) -> Call:
    """Returns a call with the RPC's deadline, which is cancelled when the RPC is."""
    remaining_s = context.time_remaining()
    call = new_call(remaining_s if remaining_s < NO_DEADLINE_S else None)
    # Runs when the RPC ends for whatever reason; what still runs for it then has lost its reader.
    if not context.add_callback(call.cancel):
        call.cancel()
    return call
