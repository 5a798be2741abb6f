"""NDCG, recall and reciprocal rank agree with what is computed by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.metrics import ndcg, recall, reciprocal_rank

GAINS = {"a": 4.0, "b": 2.0, "c": 1.0}
IDEAL = 4.0 + 2.0 / math.log2(3) + 1.0 / 2.0


def test_ndcg_by_hand() -> None:
    found = 2.0 + 4.0 / 2.0  # b at rank 1, nothing at rank 2, a at rank 3
    assert ndcg(["b", "x", "a"], GAINS) == pytest.approx(found / IDEAL)
    assert ndcg(["a", "b", "c"], GAINS) == pytest.approx(1.0)
    assert ndcg(["x", "y"], GAINS) == 0.0
    assert ndcg([], GAINS) == 0.0


def test_ndcg_looks_at_ten_results_and_ten_ideal_ones() -> None:
    gains = {str(number): 1.0 for number in range(12)}
    assert ndcg([str(number) for number in range(10)], gains) == pytest.approx(1.0)
    assert ndcg([*"abcdefghij", "0"], gains) == 0.0
    assert ndcg(["0"], gains) == pytest.approx(1 / sum(1 / math.log2(rank + 1) for rank in range(1, 11)))


def test_ndcg_does_not_distinguish_equal_grades() -> None:
    gains = {"a": 2.0, "b": 2.0, "c": 1.0}
    assert ndcg(["a", "x", "b"], gains) == ndcg(["b", "x", "a"], gains)
    assert ndcg(["b", "a", "c"], gains) == pytest.approx(1.0)


def test_ndcg_counts_a_repetition_once() -> None:
    assert ndcg(["a", "a", "b"], GAINS) == ndcg(["a", "x", "b"], GAINS)


def test_recall_by_hand() -> None:
    assert recall(["b", "x", "a"], GAINS) == pytest.approx(2 / 3)
    assert recall(["b", "b", "b"], GAINS) == pytest.approx(1 / 3)
    assert recall([*"0123456789", "a"], GAINS) == 0.0
    assert recall(["a", "b"], GAINS, depth=1) == pytest.approx(1 / 3)
    assert recall([], GAINS) == 0.0


def test_reciprocal_rank_by_hand() -> None:
    assert reciprocal_rank(["x", "c", "a"], GAINS) == 0.5
    assert reciprocal_rank(["c"], GAINS) == 1.0
    assert reciprocal_rank([*"0123456789", "a"], GAINS) == 0.0
    assert reciprocal_rank([], GAINS) == 0.0


def test_documents_without_a_judgment_are_irrelevant() -> None:
    assert ndcg(["x", "a"], {"a": 1.0}) == pytest.approx(1 / math.log2(3))
    assert recall(["x"], {"a": 1.0, "x": 0.0}) == 0.0
    assert reciprocal_rank(["x", "a"], {"a": 1.0, "x": 0.0}) == 0.5


@pytest.mark.parametrize("metric", [ndcg, recall, reciprocal_rank])
@pytest.mark.parametrize("gains", [{}, {"a": 0.0}])
def test_questions_without_an_answer_are_refused(metric: object, gains: dict[str, float]) -> None:
    assert callable(metric)
    with pytest.raises(ValueError, match="no document"):
        metric(["a"], gains)


@given(
    ranking=st.lists(st.sampled_from("abcdefghijklmnop"), max_size=15),
    gains=st.dictionaries(st.sampled_from("abcdefghijkl"), st.integers(1, 4).map(float), min_size=1),
)
def test_scores_are_shares(ranking: list[str], gains: dict[str, float]) -> None:
    for metric in (ndcg, recall, reciprocal_rank):
        assert 0.0 <= metric(ranking, gains) <= 1.0 + 1e-9
    best_first = sorted(gains, key=lambda document: -gains[document])
    assert ndcg(best_first, gains) == pytest.approx(1.0)
