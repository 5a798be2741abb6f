"""The memory of one server process over many calls of all kinds, some of them refused."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import uuid4

import grpc
import numpy as np

from benchmarks import loading
from benchmarks.client import insert_request, search_request
from benchmarks.collection import Collection, User, id_of
from benchmarks.part import Bench
from benchmarks.progress import Progress
from benchmarks.question import Question
from harness.channel import open_stub
from harness.outcome import PartResult
from harness.service_process import ServiceProcess
from harness.targets import at_most
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub

SEED = 60
NAME = "mixed"
USERS = 20
USER_SIZE = 200
THREADS = 4
SAMPLES = 100
WARM_UP = 0.2
"""Share of the calls after which memory has to be flat."""
FLAT = 1.05
LIMIT_S = 420.0
WEIGHTS = {"search": 60, "insert": 12, "get": 10, "recent": 5, "update": 5, "delete": 3, "stats": 2, "refused": 3}


@dataclass(slots=True)
class _Traffic:
    """What the callers share."""

    collection: Collection
    total: int
    ends_at: float
    progress: Progress
    done: int = 0
    unexpected: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin_call(self) -> bool:
        """Counts a call, unless there were enough."""
        with self.lock:
            if self.done >= self.total or time.monotonic() > self.ends_at or self.unexpected:
                return False
            self.done += 1
            self.progress.advance()
            return True


def run(bench: Bench) -> PartResult:
    """Calls, and looks at the memory of the process a hundred times meanwhile."""
    collection = bench.tables.few(users=USERS, size=USER_SIZE, seed=SEED)
    url = bench.tables.empty(NAME)
    try:
        loading.store(url, collection)
        with ServiceProcess(url, dimensions=collection.dimensions) as service:
            began = time.monotonic()
            samples, calls = _watch(bench, service, collection)
            took_s = time.monotonic() - began
    finally:
        bench.tables.drop(NAME)
    growth = growth_after_warm_up(samples)
    figures = {
        "calls": calls,
        "calls_wanted": bench.scale.mixed_calls,
        "calls_per_s": calls / took_s,
        "mix_percent": WEIGHTS,
        "resident_bytes": [{"calls": at, "bytes": size} for at, size in samples],
        "growth_after_warm_up": growth,
    }
    name = f"resident memory after {calls:,} mixed calls against that after a fifth of them"
    return PartResult(figures, [at_most(name, growth, FLAT, "times")])


def growth_after_warm_up(samples: list[tuple[int, int]]) -> float:
    """Returns the memory at the end over that after the warm-up, each the mean over a tenth of the calls.

    Args:
        samples: Calls made so far and resident bytes, ascending.
    """
    calls = samples[-1][0]

    def mean(start: float, end: float) -> float:
        chosen = [size for at, size in samples if start * calls <= at <= end * calls]
        return float(np.mean(chosen))

    return mean(0.9, 1.0) / mean(WARM_UP, WARM_UP + 0.1)


def _watch(bench: Bench, service: ServiceProcess, collection: Collection) -> tuple[list[tuple[int, int]], int]:
    total = bench.scale.mixed_calls
    ends_at = time.monotonic() + min(LIMIT_S, 4 * bench.scale.comparison_limit_s)
    traffic = _Traffic(collection, total, ends_at, Progress("mixed calls", total))
    samples: list[tuple[int, int]] = []
    with open_stub(service.address) as stub:
        callers = [_Caller(stub, traffic, number) for number in range(THREADS)]
        threads = [threading.Thread(target=caller.run, daemon=True) for caller in callers]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            if not samples or traffic.done - samples[-1][0] >= total / SAMPLES:
                samples.append((traffic.done, service.resident_bytes()))
            time.sleep(0.01)
        samples.append((traffic.done, service.resident_bytes()))
    if traffic.unexpected:
        raise RuntimeError(f"after {traffic.done:,} calls: {traffic.unexpected[0]}")
    return samples, traffic.done


class _Caller:
    """One thread's calls, each of a kind drawn at random, on users that no other thread touches."""

    def __init__(self, stub: MemoryServiceStub, traffic: _Traffic, number: int) -> None:
        self._stub = stub
        self._traffic = traffic
        self._random = random.Random(SEED + number)  # noqa: S311 - no secrets
        self._users = traffic.collection.users[number::THREADS]
        self._stored = {user.name: [str(id_of(row)) for row in range(user.first, user.first + user.size)]
                        for user in self._users}  # fmt: skip
        self._calls: dict[str, Callable[[User], object]] = {
            "search": self._search,
            "insert": self._insert,
            "get": self._get,
            "recent": self._recent,
            "update": self._update,
            "delete": self._delete,
            "stats": self._stats,
            "refused": self._refused,
        }

    def run(self) -> None:
        """Calls until there were enough; stops everybody on an error that is none of the mix."""
        try:
            while self._traffic.begin_call():
                [kind] = self._random.choices(list(WEIGHTS), list(WEIGHTS.values()))
                self._calls[kind](self._random.choice(self._users))
        except Exception as error:  # noqa: BLE001 - raised by whoever watches
            self._traffic.unexpected.append(f"{type(error).__name__}: {error}")

    def _question(self, user: User) -> Question:
        return Question(user.name, user.questions[self._random.randrange(len(user.questions))])

    def _some_id(self, user: User) -> str:
        return self._random.choice(self._stored[user.name])

    def _search(self, user: User) -> None:
        self._stub.SearchSimilar(search_request(self._question(user)))

    def _insert(self, user: User) -> None:
        stored = self._stub.InsertVector(insert_request(self._question(user)))
        self._stored[user.name].append(stored.memory.id)

    def _get(self, user: User) -> None:
        view = self._random.choice([pb.MEMORY_VIEW_BASIC, pb.MEMORY_VIEW_FULL])
        self._stub.GetVector(pb.GetVectorRequest(user_id=user.name, id=self._some_id(user), view=view))

    def _recent(self, user: User) -> None:
        self._stub.GetRecent(pb.GetRecentRequest(user_id=user.name, page_size=20))

    def _update(self, user: User) -> None:
        memory = pb.Memory(importance=self._random.randint(1, 10))
        memory.metadata.update({"updated": self._random.random()})
        self._stub.UpdateVector(pb.UpdateVectorRequest(user_id=user.name, id=self._some_id(user), memory=memory))

    def _delete(self, user: User) -> None:
        stored = self._stored[user.name]
        memory_id = stored.pop(self._random.randrange(len(stored)))
        self._stub.DeleteVector(pb.DeleteVectorRequest(user_id=user.name, id=memory_id, hard=True))

    def _stats(self, user: User) -> None:
        self._stub.GetStats(pb.GetStatsRequest(user_id=user.name))

    def _refused(self, user: User) -> None:
        try:
            self._stub.GetVector(pb.GetVectorRequest(user_id=user.name, id=str(uuid4())))
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
