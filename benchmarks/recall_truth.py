"""The right answers: brute force over float32 originals, in numpy, outside the database."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.callers import Callers, Job
from benchmarks.collection import Collection, User, row_of
from benchmarks.question import LIMIT, Answer, Question, Restriction

BLOCK = 64
"""Questions compared at once: enough to keep the processor busy, few enough for the memory of 200,000 rows."""
TIE = 1e-6
"""Similarities closer than this are ties: sums of float32 differ so much by the order of their terms."""


@dataclass(frozen=True, slots=True)
class Recall:
    """recall@10 over many questions, and whether an answer was ever shorter than it had to be."""

    questions: int
    mean: float
    p5: float
    minimum: float
    short_answers: int
    """Answers with fewer than min(10, visible rows) rows."""


@dataclass(frozen=True, slots=True)
class Best:
    """What a right answer has: `wanted` rows, each at least as similar as `threshold`."""

    wanted: int
    threshold: float


def best_of(similarities: NDArray[np.float32], k: int) -> Best:
    """Returns what the best `k` rows are, fewer where there are fewer.

    Args:
        similarities: Of every visible row to the query, shape (rows,).
        k: How many are asked for.
    """
    wanted = min(k, len(similarities))
    if wanted == 0:
        return Best(0, np.inf)
    return Best(wanted, float(np.partition(similarities, len(similarities) - wanted)[len(similarities) - wanted]))


def recall_at_k(best: Best, found: Sequence[tuple[int, float]]) -> float:
    """Returns the share of the best rows that were found.

    A row counts when it is at least as similar as the k-th best, so that exact ties may be answered either way. A
    row found twice counts once.

    Args:
        best: What a right answer has.
        found: The visible rows among those found, at most k, with their similarities to the query.
    """
    if best.wanted == 0:
        return 1.0
    hits = {row for row, similarity in found if similarity >= best.threshold - TIE}
    return min(len(hits), best.wanted) / best.wanted


class Truth:
    """Compares answers with what a collection holds; right answers are worked out once."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._users = {user.name: user for user in collection.users}
        self._best: dict[tuple[str, Restriction, bytes], Best] = {}
        self._visible: dict[tuple[str, Restriction], NDArray[np.int64]] = {}

    def recall(self, questions: Sequence[Question], answers: Sequence[Answer]) -> Recall:
        """Returns the recall of answers, parallel to their questions."""
        self._work_out(questions)
        values, short = [], 0
        for question, answer in zip(questions, answers, strict=True):
            best = self._best[_key(question)]
            values.append(recall_at_k(best, self._among_visible(question, answer)))
            short += len(answer.ids) < best.wanted
        return Recall(
            len(values), float(np.mean(values)), float(np.percentile(values, 5)), float(np.min(values)), short
        )

    def _among_visible(self, question: Question, answer: Answer) -> list[tuple[int, float]]:
        visible = self._visible_to(question)
        rows = np.array([row_of(memory_id) for memory_id in answer.ids[:LIMIT]], np.int64)
        rows = rows[np.isin(rows, visible)]
        similarities = self._collection.vectors[rows] @ question.vector
        return list(zip(rows.tolist(), similarities.tolist(), strict=True))

    def _visible_to(self, question: Question) -> NDArray[np.int64]:
        key = question.user, question.restriction
        if key not in self._visible:
            self._visible[key] = self._collection.visible(self._users[question.user], question.restriction)
        return self._visible[key]

    def _work_out(self, questions: Sequence[Question]) -> None:
        """Works out the right answers not known yet, many questions of one user at a time."""
        groups: dict[tuple[str, Restriction], dict[bytes, Question]] = {}
        for question in questions:
            if _key(question) not in self._best:
                group = groups.setdefault((question.user, question.restriction), {})
                group[question.vector.tobytes()] = question
        for (name, _), group in groups.items():
            alike = list(group.values())
            rows = self._rows(self._users[name], self._visible_to(alike[0]))
            for start in range(0, len(alike), BLOCK):
                block = alike[start : start + BLOCK]
                similarities = np.stack([question.vector for question in block]) @ rows.T
                for question, row in zip(block, similarities, strict=True):
                    self._best[_key(question)] = best_of(row, LIMIT)

    def _rows(self, user: User, visible: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the visible rows' vectors, without copying those of a user who sees all."""
        vectors = self._collection.vectors
        return vectors[user.rows] if len(visible) == user.size else vectors[visible]


def _key(question: Question) -> tuple[str, Restriction, bytes]:
    return question.user, question.restriction, question.vector.tobytes()


@dataclass(frozen=True, slots=True)
class Asked:
    """What came of asking some questions once each."""

    recall: Recall
    plans: dict[str, int]
    """How many answers each plan gave."""
    p50_ms: float

    def figures(self) -> dict[str, object]:
        """Returns them for the report."""
        return {
            "p50_ms": self.p50_ms,
            "recall_at_10": self.recall.mean,
            "recall_p5": self.recall.p5,
            "short_answers": self.recall.short_answers,
            "questions": self.recall.questions,
            "plans": self.plans,
        }


def ask_all(truth: Truth, callers: Callers, questions: Sequence[Question]) -> Asked:
    """Asks every question once."""
    outcome = callers.run(Job(questions))
    in_order = [questions[position] for position in outcome.asked]
    plans = Counter(answer.plan for answer in outcome.answers)
    return Asked(truth.recall(in_order, outcome.answers), dict(plans), outcome.p50_ms)
