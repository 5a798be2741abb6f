"""A process of the service is killed or told to stop."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from uuid import uuid4

import grpc
import psycopg
from grpc_health.v1 import health_pb2, health_pb2_grpc

from faults.client import DIMENSIONS, describe, open_channel
from faults.postgres import own_instance
from faults.scenario import Figures
from faults.service import Service
from faults.trial import Trial
from faults.workload import Load
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub

CUT_OFF = "UNAVAILABLE (gRPC)"
"""What gRPC says of calls to a process that is not there."""
# What imports end with that are to be sent again.
RESUMABLE = "UNAVAILABLE DATABASE_UNAVAILABLE"

WORKERS = 2
STREAMS = 2
WATCHES = 5
CHUNK = 20
CHUNKS_BEFORE = 5
IMPORT_LIMIT_S = 60.0
VECTOR = pb.Vector(floats=pb.FloatArray(values=[1.0] * DIMENSIONS))


def worker_killed(load: Load) -> Figures:
    """Each of two worker processes is killed in turn; their supervisor replaces it."""
    with (
        own_instance() as instance,
        Service(instance.url, workers=WORKERS) as service,
        Trial(service, load, refusal=CUT_OFF) as trial,
    ):
        for number, worker in enumerate(service.workers(), start=1):
            with trial.cause():
                worker.kill()
            # Callers have the other worker meanwhile; the trial goes on once both are there again.
            service.wait_for("worker_ready", count=WORKERS + number, timeout_s=60)
        return trial.findings(instance.url)


def all_killed(load: Load) -> Figures:
    """The supervisor is killed, its workers end by themselves, and the service is started anew on its port."""
    with own_instance() as instance:
        listen = f"127.0.0.1:{free_port()}"
        with (
            Service(instance.url, listen=listen, workers=WORKERS) as first,
            Trial(first, load, refusal=CUT_OFF) as trial,
        ):
            first.kill()
            with Service(instance.url, listen=listen, workers=WORKERS) as second:
                trial.service = second
                with trial.cause():
                    pass
                return trial.findings(instance.url)


def told_to_stop(load: Load) -> Figures:
    """SIGTERM comes while imports stream and health is watched; the service is started anew on its port."""
    with own_instance() as instance, ThreadPoolExecutor(STREAMS + WATCHES) as threads:
        listen = f"127.0.0.1:{free_port()}"
        imports = [Import(listen) for _ in range(STREAMS)]
        with Service(instance.url, listen=listen) as first, Trial(first, load, refusal=CUT_OFF) as trial:
            importing = [threads.submit(each.run) for each in imports]
            watching = [threads.submit(_watch, listen) for _ in range(WATCHES)]
            for each in imports:
                each.wait_for(CHUNKS_BEFORE)
            began_at = time.monotonic()
            status = first.stop()
            stopped_in_s = time.monotonic() - began_at
            with Service(instance.url, listen=listen) as second:
                trial.service = second
                with trial.cause():
                    pass
                for each in imports:
                    each.finish()
                for future in importing:
                    future.result(IMPORT_LIMIT_S)
                figures = trial.findings(instance.url)
        seen = [future.result(IMPORT_LIMIT_S) for future in watching]
        lost, doubled = _compare(instance.url, imports)
        return figures | {
            "lost": _count(figures, "lost") + lost,
            "doubled": _count(figures, "doubled") + doubled,
            "exit_status": status,
            "stopped_in_s": stopped_in_s,
            "chunks_acknowledged": sum(len(each.acknowledged) for each in imports),
            "broken_promises": list(_broken(status, seen, imports)),
        }


def _broken(status: int, seen: list[list[int]], imports: list["Import"]) -> Iterator[str]:
    if status:
        yield f"exit status {status}"
    if untold := sum(health_pb2.HealthCheckResponse.NOT_SERVING not in statuses for statuses in seen):
        yield f"{untold} of {len(seen)} watchers were not told"
    for each in imports:
        if each.broken[:1] != [RESUMABLE]:
            yield f"an import ended with {each.broken}, not with {RESUMABLE}"


def free_port() -> int:
    """Returns a port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _count(figures: Figures, name: str) -> int:
    value = figures[name]
    return value if isinstance(value, int) else 0


def _watch(address: str) -> list[int]:
    """Returns the statuses that a watcher of the service's own address was told until its stream ended."""
    seen: list[int] = []
    with open_channel(address) as channel:
        try:
            stream = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True)
            seen.extend(response.status for response in stream)
        except grpc.RpcError:
            return seen
    return seen


@dataclass(slots=True)
class Import:
    """One import, sent again under its id from the first chunk not acknowledged whenever its stream breaks."""

    address: str
    user_id: str = field(default_factory=lambda: f"import-{uuid4().hex[:8]}")
    import_id: str = field(default_factory=lambda: str(uuid4()))
    acknowledged: dict[int, list[str]] = field(default_factory=dict)
    """Ids by chunk."""
    broken: list[str] = field(default_factory=list)
    """How streams ended early."""
    _finishing: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Sends chunks until told to finish."""
        ends_at = time.monotonic() + 2 * IMPORT_LIMIT_S
        with open_channel(self.address) as channel:
            stub = MemoryServiceStub(channel)
            while time.monotonic() < ends_at:
                try:
                    for reply in stub.ImportVectors(self._chunks(), wait_for_ready=True):
                        self.acknowledged[reply.chunk] = list(reply.ids)
                except grpc.RpcError as error:
                    self.broken.append(describe(error))
                    time.sleep(0.1)
                else:
                    return
        raise TimeoutError(f"the import was not finished: {self.broken}")

    def wait_for(self, chunks: int) -> None:
        """Returns once so many chunks are acknowledged."""
        ends_at = time.monotonic() + IMPORT_LIMIT_S
        while len(self.acknowledged) < chunks:
            if time.monotonic() > ends_at:
                raise TimeoutError(f"chunks are not acknowledged: {self.broken}")
            time.sleep(0.05)

    def finish(self) -> None:
        """Lets the chunk under way be the last one."""
        self._finishing.set()

    def _chunks(self) -> Iterator[pb.ImportVectorsRequest]:
        chunk = len(self.acknowledged)
        while not self._finishing.wait(0.05):
            contents = [f"{self.user_id} {chunk}-{number}" for number in range(CHUNK)]
            yield pb.ImportVectorsRequest(
                user_id=self.user_id,
                import_id=self.import_id,
                chunk=chunk,
                memories=[pb.NewMemory(content=content, embedding=VECTOR) for content in contents],
            )
            chunk += 1


def _compare(database_url: str, imports: list[Import]) -> tuple[int, int]:
    """Returns how many acknowledged memories of imports are missing, and how many are there more than once."""
    lost = doubled = 0
    with psycopg.connect(database_url) as connection:
        for each in imports:
            rows = connection.execute(
                "SELECT id::text, content FROM memory_entries WHERE user_id = %s", [each.user_id]
            ).fetchall()
            stored, contents = {row[0] for row in rows}, {row[1] for row in rows}
            lost += len({memory_id for ids in each.acknowledged.values() for memory_id in ids} - stored)
            doubled += len(rows) - len(contents)
    return lost, doubled
