"""Five times as many calls as the service can answer: what it still answers, how soon, and what health checks see."""

import threading
import time
from dataclasses import dataclass, field
from statistics import median
from types import TracebackType
from typing import Self

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks import loading
from benchmarks.client import search_request, to_vector
from benchmarks.collection import Collection
from benchmarks.load import WARM_UP_S, Call, Load, LoadGenerators, Replies
from benchmarks.part import CALLER_PROCESSES, Bench
from benchmarks.question import CONTENT, Question
from harness.channel import open_channel
from harness.outcome import Figures, PartResult
from harness.service_process import ServiceProcess
from harness.targets import at_least, at_most
from memory_service.v1 import memory_pb2 as pb

SEED = 80
NAME = "overload"
USERS = 20
USER_SIZE = 250
SERVICE = "/memory_service.v1.MemoryService/"
SEARCHES_A_CALL = 10
MEMORIES_A_CALL = 10
CALLS = 200
READS_OF_TEN = 8
CALLERS = 16
"""In closed loops, for the peak."""
FACTOR = 5
DEADLINE_S = 2.0
PROBE_EVERY_S = 0.02
HEALTH_MS = 100.0
HEALTH_TIMEOUT_S = 5.0
KEPT = 0.8
ACCEPTED_P99_MS = 1_000.0


def run(bench: Bench) -> PartResult:
    """Measures by turns: callers in closed loops, then the same calls at five times the rate they reached.

    Calls are heavy (ten searches, or ten memories to store), so that sending five times too many leaves the service
    its share of the cores.
    """
    collection = bench.tables.few(users=USERS, size=USER_SIZE, seed=SEED)
    url = bench.tables.empty(NAME)
    try:
        loading.store(url, collection)
        with (
            ServiceProcess(url, dimensions=collection.dimensions, ops_listen="127.0.0.1:0") as service,
            LoadGenerators(
                service.address, calls_of(collection), processes=CALLER_PROCESSES, deadline_s=DEADLINE_S
            ) as callers,
        ):
            return _measure(bench, service, callers)
    finally:
        bench.tables.drop(NAME)


def calls_of(collection: Collection) -> list[Call]:
    """Returns the calls to draw from: eight in ten search, two store, for users nobody searches."""
    rng = np.random.default_rng(SEED)
    calls = []
    for number in range(CALLS):
        user = collection.users[rng.integers(len(collection.users))]
        vectors = [user.questions[rng.integers(len(user.questions))] for _ in range(SEARCHES_A_CALL)]
        if number % 10 < READS_OF_TEN:
            searches = [search_request(Question(user.name, vector)) for vector in vectors]
            search = pb.BatchSearchSimilarRequest(user_id=user.name, searches=searches)
            calls.append(Call(f"{SERVICE}BatchSearchSimilar", search.SerializeToString()))
        else:
            memories = [pb.NewMemory(content=CONTENT, embedding=to_vector(vector)) for vector in vectors]
            store = pb.BatchInsertVectorsRequest(user_id=f"writer-{number}", memories=memories[:MEMORIES_A_CALL])
            calls.append(Call(f"{SERVICE}BatchInsertVectors", store.SerializeToString()))
    return calls


@dataclass(slots=True)
class _Turn:
    """A closed loop and the overload after it."""

    peak: Replies
    overload: Replies

    @property
    def kept(self) -> float:
        """Goodput under overload over that of the closed loop."""
        return self.overload.goodput / self.peak.goodput


def _measure(bench: Bench, service: ServiceProcess, callers: LoadGenerators) -> PartResult:
    seconds = bench.scale.seconds_per_round
    callers.run(Load(seconds=seconds, callers=CALLERS))  # warms up
    turns: list[_Turn] = []
    ends_at = time.monotonic() + bench.scale.comparison_limit_s
    probes = {"ops": _Probe(service.ops_address), "main": _Probe(service.address)}
    for _ in range(bench.scale.rounds):
        peak = callers.run(Load(seconds=seconds, callers=CALLERS))
        with probes["ops"], probes["main"]:
            overload = callers.run(Load(seconds=seconds, calls_per_s=FACTOR * peak.goodput))
        turns.append(_Turn(peak, overload))
        if time.monotonic() > ends_at:
            break
    return _result(turns, probes)


def _result(turns: list[_Turn], probes: "dict[str, _Probe]") -> PartResult:
    kept = median(turn.kept for turn in turns)
    p99_ms = median(turn.overload.percentile_ms(99) for turn in turns)
    figures: Figures = {
        "rounds": [
            {
                "peak_calls_per_s": turn.peak.goodput,
                "peak_p99_ms": turn.peak.percentile_ms(99),
                "offered_calls_per_s": turn.overload.sent / (turn.overload.seconds + WARM_UP_S),
                "answered_calls_per_s": turn.overload.goodput,
                "answered_p50_ms": turn.overload.percentile_ms(50),
                "answered_p99_ms": turn.overload.percentile_ms(99),
                "codes": dict(turn.overload.codes),
            }
            for turn in turns
        ],
        "health": {name: probe.figures() for name, probe in probes.items()},
    }
    return PartResult(
        figures,
        [
            at_least(f"goodput at {FACTOR} times the load against the peak", kept, KEPT, "times"),
            at_most("p99 of calls answered under overload", p99_ms, ACCEPTED_P99_MS, "ms"),
            *(
                at_most(f"p99 of health checks under overload, {name} port", probe.percentile_ms(99), HEALTH_MS, "ms")
                for name, probe in probes.items()
            ),
        ],
    )


@dataclass(slots=True)
class _Probe:
    """Asks for the health of an address every 20 ms, for as long as it is entered."""

    address: str
    latencies_s: list[float] = field(default_factory=list)
    failures: int = 0
    _ending: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def percentile_ms(self, percent: float) -> float:
        """Returns a percentile of the latencies."""
        return float(np.percentile(np.array(self.latencies_s), percent)) * 1e3

    def figures(self) -> dict[str, float]:
        """Returns what was seen."""
        return {
            "checks": len(self.latencies_s),
            "failures": self.failures,
            **{f"p{percent}_ms": self.percentile_ms(percent) for percent in (50, 99, 100)},
        }

    def _probe(self) -> None:
        with open_channel(self.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while not self._ending.wait(PROBE_EVERY_S):
                began = time.perf_counter()
                try:
                    stub.Check(health_pb2.HealthCheckRequest(), timeout=HEALTH_TIMEOUT_S)
                except grpc.RpcError:
                    self.failures += 1
                    self.latencies_s.append(HEALTH_TIMEOUT_S)  # a quick refusal is no quick answer
                else:
                    self.latencies_s.append(time.perf_counter() - began)

    def __enter__(self) -> Self:
        self._ending.clear()
        self._thread = threading.Thread(target=self._probe, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
