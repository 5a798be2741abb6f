"""Callers who cancel, and callers who are slow on purpose."""

import itertools
import random
import socket
import struct
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import grpc
import psycopg

from faults.client import DIMENSIONS, open_channel
from faults.postgres import own_instance
from faults.scenario import Figures
from faults.service import Service
from faults.silence import silent_calls
from faults.trial import Trial
from faults.workload import Load
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub

CANCELLED_CALLS = 20_000
CANCELLING_THREADS = 8
# Among so many others a call takes some milliseconds: some are cancelled under way to the server, some in the database,
# some too late.
LONGEST_PATIENCE_S = 0.02
BATCH = 5

VECTOR = pb.Vector(f32_le=struct.pack(f"<{DIMENSIONS}f", *range(1, DIMENSIONS + 1)))

# RFC 9113, section 3.4.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


def cancelled(load: Load) -> Figures:
    """Callers cancel 20,000 calls of all kinds, at any moment."""
    user_id = f"cancelled-{uuid.uuid4().hex[:8]}"
    with own_instance() as instance, Service(instance.url) as service, Trial(service, load) as trial:
        with trial.cause():
            ended = _cancel(service.address, user_id)
        figures = trial.findings(instance.url)
        stored = _stored(instance.url, user_id)
    return figures | {
        "calls": dict(ended),
        "stored": stored.total(),
        "broken_promises": list(_broken(stored)),
    }


def _cancel(address: str, user_id: str) -> Counter[str]:
    """Makes calls and cancels them, until enough of them have ended so; returns how they ended."""
    chance = random.Random(7)  # noqa: S311 - no secret
    ended: Counter[str] = Counter()
    with ExitStack() as channels, ThreadPoolExecutor(CANCELLING_THREADS) as threads:
        opened = [channels.enter_context(open_channel(address)) for _ in range(CANCELLING_THREADS)]
        stubs = [MemoryServiceStub(channel) for channel in opened]

        def call_and_cancel(number: int) -> str:
            request = _request(user_id, number)
            rpc = type(request).__name__.removesuffix("Request")
            call = getattr(stubs[number % len(stubs)], rpc).future(request, timeout=10)
            time.sleep(chance.uniform(0, LONGEST_PATIENCE_S))
            call.cancel()
            with suppress(grpc.RpcError, grpc.FutureCancelledError):
                call.result()
            return str(call.code().name)

        numbers = itertools.count()
        while (missing := CANCELLED_CALLS - ended[grpc.StatusCode.CANCELLED.name]) > 0:
            ended.update(threads.map(call_and_cancel, itertools.islice(numbers, missing)))
    return ended


def _request(user_id: str, number: int) -> Any:
    memory = pb.NewMemory(content=f"one {number}", embedding=VECTOR)
    request_id = str(uuid.uuid4())
    match number % 5:
        case 0:
            return pb.InsertVectorRequest(user_id=user_id, memory=memory, request_id=request_id)
        case 1:
            memories = [pb.NewMemory(content=f"several {number}", embedding=VECTOR)] * BATCH
            return pb.BatchInsertVectorsRequest(user_id=user_id, memories=memories, request_id=request_id)
        case 2:
            return pb.SearchSimilarRequest(user_id=user_id, embedding=VECTOR)
        case 3:
            return pb.GetRecentRequest(user_id=user_id)
        case _:
            return pb.GetStatsRequest(user_id=user_id)


def _stored(database_url: str, user_id: str) -> Counter[str]:
    """Returns how often each content is stored."""
    with psycopg.connect(database_url) as connection:
        return Counter(
            content
            for (content,) in connection.execute("SELECT content FROM memory_entries WHERE user_id = %s", [user_id])
        )


def _broken(stored: Counter[str]) -> Iterator[str]:
    for content, count in stored.items():
        whole = BATCH if content.startswith("several") else 1
        if count != whole:
            yield f"{content!r} is stored {count} times, whole are {whole}"
    if not stored:
        yield "no call got as far as the database"


SLOW_S = 12.0
DRIP_S = 0.2
DRIPPING = 300
SILENT = {"SearchSimilar": 60, "ImportVectors": 8}


def slow(load: Load) -> Figures:
    """Callers open connections and calls, and then send next to nothing."""
    with own_instance() as instance, Service(instance.url) as service, Trial(service, load) as trial:
        with trial.cause(), _dripping(service.address, DRIPPING), silent_calls(service.address, SILENT):
            time.sleep(SLOW_S)
        figures = trial.findings(instance.url)
    return figures | {"connections": DRIPPING, "calls_without_request": SILENT}


@contextmanager
def _dripping(address: str, count: int) -> Iterator[None]:
    """Keeps connections open that send the beginning of HTTP/2 byte by byte, and then frames that never end."""
    host, _, port = address.rpartition(":")
    ended = threading.Event()

    def drip(connections: list[socket.socket]) -> None:
        # A frame of 16 KiB is announced, of which little ever comes.
        beginning = PREFACE + SETTINGS + b"\x00\x40\x00\x00\x00\x00\x00\x00\x01"
        for sent in range(1_000_000):
            byte = beginning[sent : sent + 1] or b"\x00"
            for connection in connections:
                with suppress(OSError):  # the server may well hang up
                    connection.send(byte)
            if ended.wait(DRIP_S):
                return

    with ExitStack() as closing:
        connections = [
            closing.enter_context(socket.create_connection((host, int(port)), timeout=5)) for _ in range(count)
        ]
        thread = threading.Thread(target=drip, args=(connections,))
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
