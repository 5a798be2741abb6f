"""How much of everything a run measures; the judged sets are always whole."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The sizes of one run."""

    name: str
    memories: int
    """Of the one user whose searches are timed."""
    rounds: int
    """Alternations of the modes."""
    questions_a_round: int


FULL = Sizes(name="quality", memories=10_000, rounds=7, questions_a_round=60)
