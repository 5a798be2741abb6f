"""Scores are averaged and compared right, and weights are chosen by the half that tunes."""

import math

import pytest

from evaluation import scores, tuning
from evaluation.judged import Question
from evaluation.tuning import Point

QUESTIONS = [
    Question(number=number, user="u", text="?", gains={"a": 1.0}, category="even" if number % 2 == 0 else "odd")
    for number in range(1, 5)
]
RIGHT, SECOND, WRONG = ["a"], ["x", "a"], ["x"]


def test_halves_are_by_parity() -> None:
    rankings = {1: RIGHT, 2: WRONG, 3: SECOND, 4: RIGHT}
    halves = scores.by_half(QUESTIONS, rankings)
    assert halves["tuning"]["recall_at_10"] == 0.5
    assert halves["held_out"]["recall_at_10"] == 1.0
    assert halves["held_out"]["mrr_at_10"] == 0.75
    assert halves["held_out"]["ndcg_at_10"] == pytest.approx((1 + 1 / math.log2(3)) / 2)
    assert halves["all"]["questions"] == 4
    assert halves["all"]["ndcg_at_10"] == pytest.approx((2 + 1 / math.log2(3)) / 4)


def test_standard_error_by_hand() -> None:
    found = scores.averages(QUESTIONS[:2], {1: RIGHT, 2: WRONG})
    assert found["ndcg_at_10_error"] == pytest.approx(math.sqrt(0.5) / math.sqrt(2))


def test_categories_are_apart() -> None:
    found = scores.by_category(QUESTIONS, {1: RIGHT, 2: WRONG, 3: RIGHT, 4: WRONG})
    assert {name: score["mrr_at_10"] for name, score in found.items()} == {"odd": 1.0, "even": 0.0}


def test_gain_is_paired() -> None:
    always = {question.number: RIGHT for question in QUESTIONS}
    never = {question.number: WRONG for question in QUESTIONS}
    assert scores.gain(QUESTIONS, of=always, over=never) == {"difference": 1.0, "low": 1.0, "high": 1.0}
    mixed = scores.gain(QUESTIONS, of={**never, 1: RIGHT}, over={**never, 2: RIGHT})
    assert mixed["difference"] == 0.0
    assert mixed["low"] < 0.0 < mixed["high"]


def test_weights_are_chosen_on_one_half_only() -> None:
    rankings = {
        0.2: {1: RIGHT, 2: WRONG, 3: RIGHT, 4: WRONG},  # perfect where it does not count
        0.4: {1: WRONG, 2: RIGHT, 3: SECOND, 4: RIGHT},
        0.6: {1: RIGHT, 2: RIGHT, 3: RIGHT, 4: RIGHT},
    }
    points = tuning.points(QUESTIONS, rankings)
    assert [point.tuning for point in points] == [0.0, 1.0, 1.0]
    assert tuning.chosen(points).value == 0.4  # the lower one of equals
    assert tuning.chosen(points).held_out == pytest.approx(1 / math.log2(3) / 2)


def test_sets_choose_together() -> None:
    one = [Point(0.0, 0.9, 0.0, 0.0), Point(0.5, 0.8, 0.0, 0.0), Point(1.0, 0.1, 0.0, 0.0)]
    other = [Point(0.0, 0.1, 0.0, 0.0), Point(0.5, 0.8, 0.0, 0.0), Point(1.0, 0.9, 0.0, 0.0)]
    assert tuning.chosen_for_all([one, other]) == 0.5
    with pytest.raises(ValueError, match="different values"):
        tuning.chosen_for_all([one, other[::-1]])
