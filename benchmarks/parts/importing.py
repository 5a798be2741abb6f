"""Many memories of one user through ImportVectors, against COPY BINARY by psycopg in process."""

import time
from collections.abc import Iterator
from uuid import uuid4

import numpy as np

from benchmarks import loading
from benchmarks.collection import Collection, id_of
from benchmarks.comparison import spread
from benchmarks.part import Bench
from benchmarks.progress import say
from harness.channel import open_stub
from harness.outcome import PartResult
from harness.service_process import ServiceProcess
from harness.targets import at_least
from memory_service.v1 import memory_pb2 as pb

SEED = 50
CHUNK = 500
MAX_ROUNDS = 3
LIMIT_S = 300.0
FLOOR, SERVICE = "import_floor", "import_service"


def run(bench: Bench) -> PartResult:
    """Imports the same memories into fresh databases, by turns; the first pair of rounds is warm-up."""
    collection = bench.tables.few(users=1, size=bench.scale.imported, seed=SEED)
    floor: list[float] = []
    service: list[float] = []
    ends_at = time.monotonic() + min(LIMIT_S, bench.scale.comparison_limit_s)
    for number in range(1 + min(MAX_ROUNDS, bench.scale.rounds)):
        if floor and time.monotonic() > ends_at:
            break
        pair = _copied_per_s(bench, collection), _imported_per_s(bench, collection)
        say(f"{pair[0]:,.0f} memories/s by COPY, {pair[1]:,.0f} by ImportVectors")
        if number:
            floor.append(pair[0])
            service.append(pair[1])
    ratio = spread([ours / theirs for theirs, ours in zip(floor, service, strict=True)])
    figures = {
        "memories": len(collection),
        "memories_a_chunk": CHUNK,
        "rounds": len(floor),
        "floor_memories_per_s": float(np.median(floor)),
        "service_memories_per_s": float(np.median(service)),
        "ratio": ratio,
    }
    name = "ImportVectors: memories/s against COPY BINARY in process"
    return PartResult(figures, [at_least(name, ratio["median"], 0.4, "times")])


def _copied_per_s(bench: Bench, collection: Collection) -> float:
    url = bench.tables.empty(FLOOR)
    try:
        with loading.connect(url) as connection:
            began = time.perf_counter()
            loading.store_owners(connection, collection, collection.storage_order)
            loading.copy(connection, collection, collection.storage_order)
            return len(collection) / (time.perf_counter() - began)
    finally:
        bench.tables.drop(FLOOR)


def _imported_per_s(bench: Bench, collection: Collection) -> float:
    url = bench.tables.empty(SERVICE)
    try:
        with (
            ServiceProcess(url, dimensions=collection.dimensions) as service,
            open_stub(service.address) as stub,
        ):
            began = time.perf_counter()
            stored = sum(len(reply.ids) for reply in stub.ImportVectors(_chunks(collection)))
            took_s = time.perf_counter() - began
    finally:
        bench.tables.drop(SERVICE)
    if stored != len(collection):
        raise RuntimeError(f"{stored:,} of {len(collection):,} memories were acknowledged")
    return stored / took_s


def _chunks(collection: Collection) -> Iterator[pb.ImportVectorsRequest]:
    """Yields the same memories, in the same order, as the floor stores."""
    import_id = str(uuid4())
    for number, start in enumerate(range(0, len(collection), CHUNK)):
        memories = [_memory(collection, int(row)) for row in collection.storage_order[start : start + CHUNK]]
        user = collection.users[0].name
        yield pb.ImportVectorsRequest(user_id=user, import_id=import_id, chunk=number, memories=memories)


def _memory(collection: Collection, row: int) -> pb.NewMemory:
    memory = pb.NewMemory(
        id=str(id_of(row)),
        conversation_id=loading.conversation_id(collection.conversations[row]),
        content=collection.content(row),
        embedding=pb.Vector(f32_le=collection.vectors[row].tobytes()),
        importance=int(collection.importances[row]),
    )
    memory.metadata.update(collection.metadata(row))
    memory.created_at.FromDatetime(loading.created_at(row))
    return memory
