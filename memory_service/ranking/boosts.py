"""Boosts: what lifts a memory beside its relevance, each a bounded factor around 1.

factor = 1 + weight * (value - 1/2), with a value of 0 to 1: a weight of 0.2 makes 0.9 to 1.1 of it. Factors multiply
relevance, so what is not relevant is lifted by none.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from memory_service.ranking.candidate import Candidate
from memory_service.ranking.fusion import Floats
from memory_service.ranking.options import Boosts, Clock

MIN_IMPORTANCE, MAX_IMPORTANCE = 1, 10
# So many accesses count fully: more would let what is found often be found ever more often.
SATURATING_ACCESSES = 100
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class AppliedBoost:
    """One factor of a score."""

    name: str
    value: float
    weight: float
    factor: float


@dataclass(frozen=True, slots=True, eq=False)
class BoostOfAll:
    """One boost of all candidates."""

    name: str
    weight: float
    values: Floats
    """Shape (candidates,), 0 to 1."""

    @property
    def factors(self) -> Floats:
        """What relevance is multiplied by, shape (candidates,)."""
        return 1.0 + self.weight * (self.values - 0.5)

    def applied(self, index: int) -> AppliedBoost:
        """Returns the boost of one candidate."""
        value = float(self.values[index])
        return AppliedBoost(self.name, value, self.weight, 1.0 + self.weight * (value - 0.5))


def boosts_of(candidates: Sequence[Candidate], boosts: Boosts, *, as_of: datetime) -> list[BoostOfAll]:
    """Returns the boosts that have a weight."""
    found = []
    if boosts.recency_weight > 0.0:
        ages_s = seconds(as_of) - np.array([seconds(time_of(one, boosts.clock)) for one in candidates])
        found.append(BoostOfAll("recency", boosts.recency_weight, recency(ages_s, boosts.half_life_s)))
    if boosts.importance_weight > 0.0:
        values = importance(np.array([float(one.importance) for one in candidates]))
        found.append(BoostOfAll("importance", boosts.importance_weight, values))
    if boosts.access_weight > 0.0:
        values = access(np.array([float(one.access_count) for one in candidates]))
        found.append(BoostOfAll("access", boosts.access_weight, values))
    return found


def recency(ages_s: Floats, half_life_s: float) -> Floats:
    """Returns 2^(-age / half_life): 1 now, and for what is dated later than now."""
    return np.exp2(-np.maximum(ages_s, 0.0) / half_life_s)


def importance(values: Floats) -> Floats:
    """Returns importances of 1 to 10 as 0 to 1."""
    return (values - MIN_IMPORTANCE) / (MAX_IMPORTANCE - MIN_IMPORTANCE)


def access(counts: Floats) -> Floats:
    """Returns ln(1 + count) / ln(101), at most 1."""
    return np.minimum(1.0, np.log1p(counts) / math.log1p(SATURATING_ACCESSES))


def time_of(candidate: Candidate, clock: Clock) -> datetime:
    """Returns what a candidate's age counts from."""
    match clock:
        case Clock.CREATED:
            return candidate.created_at
        case Clock.UPDATED:
            return candidate.updated_at
        case Clock.ACCESSED:
            return candidate.last_accessed_at or candidate.created_at


def seconds(time: datetime) -> float:
    """Returns seconds since 1970; `datetime.timestamp` would take a time without a zone for a local one."""
    return (time - _EPOCH).total_seconds()
