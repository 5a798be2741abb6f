"""Calls whose request never comes: each keeps one of the service's threads while it lasts."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from faults.client import open_channel
from memory_service.v1 import memory_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["MemoryService"].full_name


@contextmanager
def silent_calls(address: str, counts: Mapping[str, int]) -> Iterator[None]:
    """Keeps so many calls of each method open, over one connection."""
    ended = threading.Event()

    def nothing() -> Iterator[bytes]:
        ended.wait()
        yield from ()

    with open_channel(address) as channel:
        calls: list[Any] = []
        for rpc, count in counts.items():
            # On the wire, a call with a stream of requests begins as any other.
            begin: Callable[..., Any] = channel.stream_stream(f"/{SERVICE}/{rpc}")
            calls += [begin(nothing()) for _ in range(count)]
        try:
            yield
        finally:
            ended.set()
            for call in calls:
                call.cancel()
