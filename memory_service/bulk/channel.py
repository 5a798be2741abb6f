"""The connection of a transfer to the service."""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from memory_service.bulk.call_failure import CallFailure, failure_of
from memory_service.bulk.errors import TransferError
from memory_service.bulk.target import Target, with_credentials
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub

FIRST_CALL_TIMEOUT_S = 10.0

OPTIONS = (
    # By default gRPC waits up to two minutes before it connects again.
    ("grpc.initial_reconnect_backoff_ms", 250),
    ("grpc.min_reconnect_backoff_ms", 250),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A stream waits without a deadline: notice when its other end is gone.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)


@contextmanager
def connect(target: Target) -> Iterator[tuple[MemoryServiceStub, pb.GetServerInfoResponse]]:
    """Yields a stub of the service, and what it says about itself.

    Raises:
        TransferError: When it cannot be reached, or refuses. Once it was reached, a transfer tries again by itself.
    """
    with _open(target) as channel:
        stub = MemoryServiceStub(with_credentials(channel, target))
        try:
            info = stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=FIRST_CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            raise TransferError(_told(target, failure_of(error))) from None
        yield stub, info


def _told(target: Target, failure: CallFailure) -> str:
    # What has a reason comes from the service itself: it asks for an API key, for example.
    outcome = "refused by" if failure.reason else "cannot reach"
    # So ends a connection without TLS at a listener with it.
    torn_off = "Socket closed" in failure.message and not target.tls
    hint = "; does it ask for TLS (--tls, --ca)?" if torn_off else ""
    return f"{outcome} the service at {target.address}: {failure}{hint}"


def _open(target: Target) -> grpc.Channel:
    credentials = target.channel_credentials()
    if credentials is None:
        return grpc.insecure_channel(target.address, options=OPTIONS)
    return grpc.secure_channel(target.address, credentials, options=OPTIONS)
