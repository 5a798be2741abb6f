"""Relevance: the scale of each side, and how two become one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_service.ranking.candidate import Candidate
from memory_service.ranking.fusion import blend
from memory_service.ranking.options import Convex, Fusion, Mode, Rrf
from tests.unit.sample_candidates import candidate, fusions, modes, options, pools, shares


def relevances(pool: list[Candidate], mode: Mode, fusion: Fusion) -> list[float]:
    found: list[float] = blend(pool, mode, fusion).relevance.tolist()
    return found


def test_cosines_keep_their_value_from_0_to_1() -> None:
    pool = [candidate(cosine=cosine) for cosine in (0.25, -0.5, None, 1.0000001)]
    assert relevances(pool, Mode.DENSE, Convex(0.5)) == [0.25, 0.0, 0.0, 1.0]


def test_bm25_counts_as_a_share_of_the_best() -> None:
    pool = [candidate(bm25=score) for score in (3.0, 12.0, 0.0)]
    assert relevances(pool, Mode.LEXICAL, Convex(0.5)) == [0.25, 1.0, 0.0]


def test_words_that_nobody_has_make_nobody_relevant() -> None:
    assert relevances([candidate(1), candidate(2)], Mode.LEXICAL, Convex(0.5)) == [0.0, 0.0]


def test_reciprocal_ranks_of_a_hand_worked_example() -> None:
    pool = [candidate(dense_rank=1, lexical_rank=1), candidate(dense_rank=2), candidate(lexical_rank=4), candidate()]
    # With k = 1: (1/2 + 1/2) is the best there is; 1/3, 1/5 and 0 are shares of it.
    assert relevances(pool, Mode.HYBRID, Rrf(1.0)) == pytest.approx([1.0, 1 / 3, 1 / 5, 0.0])


@given(pool=pools(), weight=shares)
def test_convex_agrees_with_plain_python(pool: list[Candidate], weight: float) -> None:
    best = max((one.bm25 for one in pool), default=0.0)
    expected = [
        weight * max(0.0, one.cosine or 0.0) + (1 - weight) * (one.bm25 / best if best else 0.0) for one in pool
    ]
    assert relevances(pool, Mode.HYBRID, Convex(weight)) == expected


@given(pool=pools(), k=st.sampled_from([1.0, 5.0, 60.0, 1_000.0]))
def test_rrf_agrees_with_plain_python(pool: list[Candidate], k: float) -> None:
    expected = [
        sum(1 / (k + rank) for rank in (one.dense_rank, one.lexical_rank) if rank is not None) / (2 / (k + 1))
        for one in pool
    ]
    assert relevances(pool, Mode.HYBRID, Rrf(k)) == pytest.approx(expected)


@given(pool=pools(), fusion=fusions)
def test_a_blend_of_one_side_alone_is_that_side(pool: list[Candidate], fusion: Fusion) -> None:
    assert relevances(pool, Mode.HYBRID, Convex(1.0)) == relevances(pool, Mode.DENSE, fusion)
    assert relevances(pool, Mode.HYBRID, Convex(0.0)) == relevances(pool, Mode.LEXICAL, fusion)


@given(pool=pools(), mode=modes, fusion=fusions)
def test_everything_is_from_0_to_1(pool: list[Candidate], mode: Mode, fusion: Fusion) -> None:
    blended = blend(pool, mode, fusion)
    for side in (blended.relevance, blended.dense, blended.lexical):
        assert side is None or ((side >= 0.0) & (side <= 1.0)).all()


def test_the_side_that_takes_no_part_is_left_out() -> None:
    pool = [candidate(cosine=0.5, bm25=2.0)]
    assert blend(pool, Mode.DENSE, Convex(0.5)).lexical is None
    assert blend(pool, Mode.LEXICAL, Convex(0.5)).dense is None


def test_formula_names() -> None:
    for mode, fusion, name in (
        (Mode.HYBRID, Convex(0.5), "convex-1"),
        (Mode.HYBRID, Rrf(60.0), "rrf-1"),
        (Mode.DENSE, Rrf(60.0), "dense-1"),
        (Mode.LEXICAL, Rrf(60.0), "lexical-1"),
    ):
        assert options(mode=mode, fusion=fusion).formula == name
