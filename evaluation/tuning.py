"""Chooses weights on one half of the questions and reports them on the other.

Even question numbers tune, odd ones are held out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.judged import Question
from evaluation.scores import Rankings, ndcg_of_each


@dataclass(frozen=True, slots=True)
class Point:
    """One value of a knob, and NDCG@10 with it."""

    value: float
    tuning: float
    held_out: float
    all: float


def points(questions: Sequence[Question], rankings: Mapping[float, Rankings]) -> list[Point]:
    """Returns a point for each value of a knob, given the rankings it led to."""
    tunes = np.array([question.tunes for question in questions])
    found = []
    for value, ranked in rankings.items():
        each = ndcg_of_each(questions, ranked)
        found.append(Point(value, float(each[tunes].mean()), float(each[~tunes].mean()), float(each.mean())))
    return found


def chosen(sweep: Sequence[Point]) -> Point:
    """Returns the point that is best on the tuning half; the lower value of equals."""
    return max(sweep, key=lambda point: (point.tuning, -point.value))


def chosen_for_all(sweeps: Sequence[Sequence[Point]]) -> float:
    """Returns the value with the best mean over the tuning halves of several sets, each counting alike.

    Raises:
        ValueError: When the sets were tried with different values.
    """
    total: dict[float, float] = {}
    for at_value in zip(*sweeps, strict=True):
        if len({point.value for point in at_value}) != 1:
            raise ValueError("the sets were tried with different values")
        total[at_value[0].value] = sum(point.tuning for point in at_value)
    return max(total, key=lambda value: (total[value], -value))
