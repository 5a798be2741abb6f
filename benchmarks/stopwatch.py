"""Times something that is done over and over in this process, by one caller."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Argument = TypeVar("Argument")


@dataclass(frozen=True, slots=True)
class Times:
    """What each repetition took."""

    latencies_s: NDArray[np.float64]

    @property
    def p50_ms(self) -> float:
        """Median."""
        return float(np.median(self.latencies_s)) * 1e3

    @property
    def p99_ms(self) -> float:
        """99th percentile."""
        return float(np.percentile(self.latencies_s, 99)) * 1e3

    @property
    def mean_ms(self) -> float:
        """Mean."""
        return float(np.mean(self.latencies_s)) * 1e3

    def figures(self) -> dict[str, float]:
        """Returns them for the report."""
        return {"p50_ms": self.p50_ms, "p99_ms": self.p99_ms, "calls": len(self.latencies_s)}


def timed(action: Callable[[Argument], object], arguments: Iterable[Argument], *, limit_s: float) -> Times:
    """Times `action` on each argument in turn, until they end or `limit_s` has passed, at least once."""
    latencies: list[float] = []
    ends_at = time.perf_counter() + limit_s
    for argument in arguments:
        before = time.perf_counter()
        action(argument)
        after = time.perf_counter()
        latencies.append(after - before)
        if after > ends_at:
            break
    return Times(np.array(latencies))
