"""What is to be reached, and whether it was."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One figure to reach."""

    name: str
    measured: float
    direction: Literal["at least", "at most"]
    reach: float
    unit: str = ""

    @property
    def reached(self) -> bool:
        """Whether it was."""
        return self.measured >= self.reach if self.direction == "at least" else self.measured <= self.reach

    @property
    def verdict(self) -> str:
        """Says "reached" or "missed"."""
        return "reached" if self.reached else "missed"


def at_least(name: str, measured: float, reach: float, unit: str = "") -> Target:
    """Returns a target to be reached from below."""
    return Target(name=name, measured=measured, direction="at least", reach=reach, unit=unit)


def at_most(name: str, measured: float, reach: float, unit: str = "") -> Target:
    """Returns a target not to be exceeded."""
    return Target(name=name, measured=measured, direction="at most", reach=reach, unit=unit)
