"""What a part of the benchmark is given, and the questions it draws."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.question import DEFAULT, NONE, Knobs, Question, Restriction
from benchmarks.scale import Scale
from benchmarks.tables import Table, Tables
from harness.instance import Instance
from harness.outcome import PartResult

CALLERS = 8
CALLER_PROCESSES = 2
"""8 callers are 2 processes of 4 threads: with all in one, the interpreter lock of the client is the bottleneck."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What a part works with."""

    scale: Scale
    instance: Instance
    tables: Tables


SMALL_USER = 250
"""Memories of the user whose cost is watched while something else grows."""


Part = Callable[[Bench], PartResult]


class Questions:
    """Draws held-out questions of users, at random from a fixed seed."""

    def __init__(self, table: Table, prefixes: Sequence[str], *, seed: int) -> None:
        """Prepares to draw questions of the users whose names begin so; a whole name means that user only."""
        names = {user.name for user in table.collection.users}
        self._users = [
            user
            for prefix in prefixes
            for user in table.collection.named(prefix)
            if prefix not in names or user.name == prefix
        ]
        self._random = np.random.default_rng(seed)

    def draw(self, count: int, *, restriction: Restriction = NONE, knobs: Knobs = DEFAULT) -> list[Question]:
        """Returns questions of users drawn anew for each."""
        drawn = []
        for _ in range(count):
            user = self._users[self._random.integers(len(self._users))]
            vector = user.questions[self._random.integers(len(user.questions))]
            drawn.append(Question(user.name, vector, restriction, knobs))
        return drawn

    def all(self, *, restriction: Restriction = NONE, knobs: Knobs = DEFAULT) -> list[Question]:
        """Returns every held-out question of every user, once."""
        return [Question(user.name, vector, restriction, knobs) for user in self._users for vector in user.questions]
