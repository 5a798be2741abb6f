"""Connections to a service: each of its own, as callers on different machines have them."""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from memory_service.v1.memory_pb2_grpc import MemoryServiceStub

# By default, gRPC shares connections between the channels of a process.
OF_ITS_OWN = ("grpc.use_local_subchannel_pool", 1)


def open_channel(address: str, *options: tuple[str, int]) -> grpc.Channel:
    """Returns a channel with a connection of its own, and gRPC's defaults but for `options`."""
    return grpc.insecure_channel(address, options=[OF_ITS_OWN, *options])


@contextmanager
def open_stub(address: str) -> Iterator[MemoryServiceStub]:
    """Yields a stub with a connection of its own, in this process."""
    with open_channel(address) as channel:
        yield MemoryServiceStub(channel)
