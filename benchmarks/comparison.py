"""Alternating rounds of floor and service: the machine's noise hits both, and each round yields a ratio."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic

import numpy as np

from benchmarks.callers import Callers, Job, Round


@dataclass(frozen=True, slots=True)
class Comparison:
    """The rounds of the floor and of the service, in pairs."""

    floor: Sequence[Round]
    service: Sequence[Round]

    def latency_ratio(self) -> float:
        """Returns service p50 over floor p50, the median of the pairs."""
        return float(np.median(self._latency_ratios()))

    def throughput_ratio(self) -> float:
        """Returns service calls/s over floor calls/s, the median of the pairs."""
        return float(np.median(self._throughput_ratios()))

    def _latency_ratios(self) -> list[float]:
        return [ours.p50_ms / theirs.p50_ms for theirs, ours in zip(self.floor, self.service, strict=True)]

    def _throughput_ratios(self) -> list[float]:
        return [ours.calls_per_s / theirs.calls_per_s for theirs, ours in zip(self.floor, self.service, strict=True)]

    def service_p50_ms(self) -> float:
        """Returns the median over the rounds of the service's p50."""
        return figures(self.service)["p50_ms"]

    def figures(self, *, floor: str = "floor", service: str = "service") -> dict[str, object]:
        """Returns medians over the rounds, and the ratios with their spread; `floor` and `service` name the sides."""
        return {
            "rounds": len(self.floor),
            floor: figures(self.floor),
            service: figures(self.service),
            "p50_ratio": spread(self._latency_ratios()),
            "calls_per_s_ratio": spread(self._throughput_ratios()),
        }


MIN_ROUNDS = 2


def alternate(floor: Callers, service: Callers, jobs: Callable[[], Job], *, rounds: int, limit_s: float) -> Comparison:
    """Runs a warm-up round of each, then pairs, each pair with one job of its own; who begins alternates.

    Args:
        floor: Whom to compare with.
        service: Who is compared.
        jobs: Makes the job of a pair.
        rounds: Pairs to run.
        limit_s: After so long no further pair begins, once there are two.
    """
    ends_at = monotonic() + limit_s
    warm_up = jobs()
    floor.run(warm_up)
    service.run(warm_up)
    floor_rounds, service_rounds = [], []
    for number in range(rounds):
        if number >= MIN_ROUNDS and monotonic() > ends_at:
            break
        job = jobs()
        if number % 2:
            service_rounds.append(service.run(job))
            floor_rounds.append(floor.run(job))
        else:
            floor_rounds.append(floor.run(job))
            service_rounds.append(service.run(job))
    return Comparison(floor_rounds, service_rounds)


def figures(rounds: Sequence[Round]) -> dict[str, float]:
    """Returns the medians, over the rounds, of a round's figures."""
    return {
        "p50_ms": float(np.median([each.p50_ms for each in rounds])),
        "p99_ms": float(np.median([each.p99_ms for each in rounds])),
        "calls_per_s": float(np.median([each.calls_per_s for each in rounds])),
        "calls": sum(len(each.answers) for each in rounds),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns the median with the smallest and the largest value."""
    return {"median": float(np.median(values)), "minimum": min(values), "maximum": max(values)}
