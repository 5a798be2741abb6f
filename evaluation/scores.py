"""How good the rankings of many questions are, together and compared."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.judged import Question
from evaluation.metrics import ndcg, recall, reciprocal_rank

Rankings = Mapping[int, Sequence[str]]
"""By the question's number."""

RESAMPLINGS = 10_000
SEED = 1


def averages(questions: Sequence[Question], rankings: Rankings) -> dict[str, float]:
    """Returns the means over the questions; `ndcg_at_10_error` is the standard error of its mean."""
    each = ndcg_of_each(questions, rankings)
    return {
        "questions": len(questions),
        "ndcg_at_10": float(each.mean()),
        "ndcg_at_10_error": float(each.std(ddof=1) / np.sqrt(len(each))) if len(each) > 1 else 0.0,
        "recall_at_10": float(np.mean([recall(rankings[q.number], q.gains) for q in questions])),
        "mrr_at_10": float(np.mean([reciprocal_rank(rankings[q.number], q.gains) for q in questions])),
    }


def by_half(questions: Sequence[Question], rankings: Rankings) -> dict[str, dict[str, float]]:
    """Returns the means over all questions, and over those of each half."""
    return {
        "all": averages(questions, rankings),
        "tuning": averages([question for question in questions if question.tunes], rankings),
        "held_out": averages([question for question in questions if not question.tunes], rankings),
    }


def by_category(questions: Sequence[Question], rankings: Rankings) -> dict[str, dict[str, float]]:
    """Returns the means over the questions of each category, in the order in which they first appear."""
    categories = dict.fromkeys(question.category for question in questions)
    return {
        category: averages([question for question in questions if question.category == category], rankings)
        for category in categories
    }


def gain(questions: Sequence[Question], *, of: Rankings, over: Rankings) -> dict[str, float]:
    """Returns the mean difference of NDCG@10 and its 95 % interval by a paired bootstrap over questions."""
    differences = ndcg_of_each(questions, of) - ndcg_of_each(questions, over)
    drawn = np.random.default_rng(SEED).integers(0, len(differences), (RESAMPLINGS, len(differences)))
    low, high = np.percentile(differences[drawn].mean(axis=1), [2.5, 97.5])
    return {"difference": float(differences.mean()), "low": float(low), "high": float(high)}


def ndcg_of_each(questions: Sequence[Question], rankings: Rankings) -> NDArray[np.float64]:
    """Returns NDCG@10 of each question."""
    return np.array([ndcg(rankings[question.number], question.gains) for question in questions])
