"""Load on the service from processes of their own: callers in closed loops, or calls at a rate that waits for nobody.

Requests are serialized beforehand and replies are not parsed: what these processes take of the cores, the service
lacks.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from benchmarks.process_group import ProcessGroup, Work
from harness.channel import open_channel

SEED = 17
CHANNELS = 4
# Calls are sent in clusters as short as a thread can sleep.
PACE_S = 0.002
WARM_UP_S = 1.0


@dataclass(frozen=True, slots=True)
class Call:
    """One call, ready to be sent."""

    method: str
    """The full name, /memory_service.v1.MemoryService/SearchSimilar and so on."""
    request: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How much, for how long: one of `callers` and `calls_per_s` is given, of all processes together."""

    seconds: float
    """Measured, after the queues have filled."""
    callers: int | None = None
    calls_per_s: float | None = None

    def share(self, processes: int) -> "Load":
        """Returns what one of so many processes does."""
        return Load(
            seconds=self.seconds,
            callers=None if self.callers is None else self.callers // processes,
            calls_per_s=None if self.calls_per_s is None else self.calls_per_s / processes,
        )


@dataclass(slots=True)
class Replies:
    """What came of a load."""

    seconds: float
    sent: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    """How many calls ended with each status code, in the time measured and around it."""
    latencies_s: list[float] = field(default_factory=list)
    """Of calls answered with OK in the seconds measured, from when they were due."""

    @property
    def answered(self) -> int:
        """Calls that ended with OK."""
        return len(self.latencies_s)

    @property
    def goodput(self) -> float:
        """Calls answered with OK in a second."""
        return self.answered / self.seconds

    def percentile_ms(self, percent: float) -> float:
        """Returns a percentile of the latencies."""
        latencies: NDArray[np.float64] = np.array(self.latencies_s)
        return float(np.percentile(latencies, percent)) * 1e3 if len(latencies) else float("nan")

    def add(self, other: "Replies") -> None:
        """Adds those of another process in the same time."""
        self.sent += other.sent
        self.codes += other.codes
        self.latencies_s += other.latencies_s


class LoadGenerators(ProcessGroup):
    """Processes that call one service; connected once."""

    def __init__(self, address: str, calls: Sequence[Call], *, processes: int, deadline_s: float) -> None:
        """Starts them. Each draws from `calls`, which have `deadline_s` to be answered."""
        super().__init__(
            [partial(_open_generator, address, calls, deadline_s, SEED + number) for number in range(processes)]
        )

    def run(self, load: Load) -> Replies:
        """Puts the load on the service and returns what came of it."""
        replies = Replies(load.seconds)
        for part in self.work([load.share(self.size)] * self.size):
            replies.add(part)
        return replies


def _open_generator(address: str, calls: Sequence[Call], deadline_s: float, seed: int, closing: ExitStack) -> Work:
    """Connects one process, and returns what puts its share of a load on the service."""
    channels = [closing.enter_context(open_channel(address)) for _ in range(CHANNELS)]
    for channel in channels:
        grpc.channel_ready_future(channel).result(timeout=10)
    return _Generator(channels, calls, deadline_s, seed).run


class _Generator:
    """One process's share."""

    def __init__(self, channels: Sequence[grpc.Channel], calls: Sequence[Call], deadline_s: float, seed: int) -> None:
        methods = {call.method for call in calls}
        self._stubs: list[dict[str, Any]] = [
            {method: channel.unary_unary(method) for method in methods} for channel in channels
        ]
        self._calls = calls
        self._deadline_s = deadline_s
        self._random = random.Random(seed)  # noqa: S311 - no secrets
        self._lock = threading.Lock()

    def run(self, load: Load) -> Replies:
        replies = Replies(load.seconds)
        if load.callers is not None:
            self._closed(load.callers, load.seconds, replies)
        elif load.calls_per_s is not None:
            self._open(load.calls_per_s, load.seconds, replies)
        return replies

    def _closed(self, callers: int, seconds: float, replies: Replies) -> None:
        counts_from = time.perf_counter() + WARM_UP_S
        ends_at = counts_from + seconds

        def call(stubs: dict[str, Any]) -> None:
            while (due_at := time.perf_counter()) < ends_at:
                chosen = self._random.choice(self._calls)
                try:
                    stubs[chosen.method](chosen.request, timeout=self._deadline_s)
                except grpc.RpcError as error:
                    self._ended(replies, error.code(), due_at, counts_from)
                else:
                    self._ended(replies, grpc.StatusCode.OK, due_at, counts_from)

        threads = [
            threading.Thread(target=call, args=(self._stubs[number % CHANNELS],), daemon=True)
            for number in range(callers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _open(self, calls_per_s: float, seconds: float, replies: Replies) -> None:
        due_at = time.perf_counter()
        counts_from = due_at + WARM_UP_S
        under_way = []
        while due_at < counts_from + seconds:
            if (early_s := due_at - time.perf_counter()) > PACE_S:
                time.sleep(early_s)
            chosen = self._random.choice(self._calls)
            stub = self._stubs[replies.sent % CHANNELS][chosen.method]
            future = stub.future(chosen.request, timeout=self._deadline_s)
            future.add_done_callback(partial(self._future_ended, replies, due_at, counts_from))
            under_way.append(future)
            replies.sent += 1
            due_at += self._random.expovariate(calls_per_s)
        for future in under_way:
            with suppress(grpc.RpcError):
                future.result()

    def _future_ended(self, replies: Replies, due_at: float, counts_from: float, future: Any) -> None:
        self._ended(replies, future.code(), due_at, counts_from)

    def _ended(self, replies: Replies, code: grpc.StatusCode, due_at: float, counts_from: float) -> None:
        now = time.perf_counter()
        with self._lock:
            replies.codes[code.name] += 1
            if code is grpc.StatusCode.OK and counts_from <= now < counts_from + replies.seconds:
                replies.latencies_s.append(now - due_at)
