"""What a scenario is, and what it hands back."""

from collections.abc import Callable
from dataclasses import dataclass

from faults.workload import Load

Figures = dict[str, object]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One fault."""

    name: str
    fault: str
    """What happens."""
    promise: str
    """What callers may rely on, beside what is promised of every fault."""
    how: str
    """How it is brought about."""
    run: Callable[[Load], Figures]
