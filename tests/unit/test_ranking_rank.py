"""The whole ranking: ties, limits, thresholds, and that it does not depend on the order candidates come in."""

import ast
import sys
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_service import ranking
from memory_service.ranking.candidate import Candidate
from memory_service.ranking.options import Boosts, Diversity, Mode, RankingOptions
from memory_service.ranking.rank import rank
from tests.unit.sample_candidates import candidate, options, pools, rankings, signs

PACKAGE = Path(str(ranking.__file__)).parent


@given(pool=pools(), chosen=rankings, random=st.randoms(use_true_random=False))
def test_the_order_of_candidates_is_without_effect(
    pool: list[Candidate], chosen: RankingOptions, random: object
) -> None:
    shuffled = list(pool)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # Hypothesis gives a Random
    assert rank(shuffled, chosen) == rank(pool, chosen)


@given(pool=pools(), chosen=rankings)
def test_scores_are_bounded_and_results_as_asked_for(pool: list[Candidate], chosen: RankingOptions) -> None:
    found = rank(pool, chosen)
    assert len(found) <= chosen.limit
    assert len({ranked.candidate.id for ranked in found}) == len(found)
    weights = (chosen.boosts.recency_weight, chosen.boosts.importance_weight, chosen.boosts.access_weight)
    highest = lowest = 1.0
    for weight in weights:
        highest *= 1 + weight / 2
        lowest *= 1 - weight / 2
    for ranked in found:
        assert 0.0 <= ranked.relevance <= 1.0
        assert lowest * ranked.relevance <= ranked.score * (1 + 1e-12)
        assert ranked.score <= highest * ranked.relevance * (1 + 1e-12)
        assert chosen.min_score is None or ranked.score >= chosen.min_score


@given(pool=pools(), chosen=rankings.filter(lambda drawn: drawn.diversity.mmr_lambda is None))
def test_results_come_best_first(pool: list[Candidate], chosen: RankingOptions) -> None:
    keys = [(-ranked.score, ranked.candidate.id.bytes) for ranked in rank(pool, chosen)]
    assert keys == sorted(keys)


def test_ties_are_ordered_by_id_as_postgresql_orders_them() -> None:
    ids = [
        UUID("00000000-0000-0000-0000-0000000000ff"),
        UUID("00000000-0000-0000-0000-000000000100"),
        UUID("80000000-0000-0000-0000-000000000000"),
        UUID("ffffffff-0000-0000-0000-000000000000"),
    ]
    pool = [candidate(one.int, cosine=0.5) for one in (ids[2], ids[0], ids[3], ids[1])]
    assert [ranked.candidate.id for ranked in rank(pool, options())] == ids


def test_boosts_count_before_the_limit() -> None:
    pool = [candidate(1, cosine=0.5, importance=1), candidate(2, cosine=0.46875, importance=10)]
    chosen = options(limit=1)
    assert [ranked.candidate.id.int for ranked in rank(pool, chosen)] == [1]
    boosted = options(limit=1, boosts=Boosts(importance_weight=0.5))
    assert [ranked.candidate.id.int for ranked in rank(pool, boosted)] == [2]


def test_min_score_is_held_against_the_boosted_score() -> None:
    pool = [candidate(1, cosine=0.5, importance=10), candidate(2, cosine=0.5, importance=1)]
    chosen = options(boosts=Boosts(importance_weight=0.5), min_score=0.625)
    [found] = rank(pool, chosen)
    assert (found.candidate.id.int, found.score) == (1, 0.625)


@given(chosen=rankings)
def test_nobody_ranks_as_nobody(chosen: RankingOptions) -> None:
    assert rank([], chosen) == []


@given(pool=pools(), chosen=rankings)
def test_what_took_no_part_is_not_reported(pool: list[Candidate], chosen: RankingOptions) -> None:
    for place, ranked in enumerate(rank(pool, chosen)):
        assert (ranked.dense is None) == (chosen.mode is Mode.LEXICAL)
        assert (ranked.lexical is None) == (chosen.mode is Mode.DENSE)
        assert (ranked.conversation is None) == chosen.conversation.neutral
        assert (ranked.max_similarity is None) == (chosen.diversity.mmr_lambda is None or place == 0)
        assert chosen.diversity.collapse_similarity is not None or ranked.collapsed == ()


def test_all_at_once_by_hand() -> None:
    east, north = signs(0), signs(0b11111111)
    pool = [
        candidate(1, cosine=1.0, bm25=4.0, importance=10, embedding=east),
        candidate(2, cosine=1.0, bm25=4.0, importance=1, embedding=east),
        candidate(3, cosine=0.5, bm25=2.0, importance=10, embedding=north),
        candidate(4, cosine=0.5, bm25=0.0, importance=10, embedding=east),
    ]
    found = rank(
        pool,
        options(
            mode=Mode.HYBRID,
            boosts=Boosts(importance_weight=0.5),
            diversity=Diversity(mmr_lambda=0.5, collapse_similarity=0.875),
            limit=2,
        ),
    )
    assert [(ranked.candidate.id.int, ranked.score, ranked.relevance) for ranked in found] == [
        (1, 1.25, 1.0),
        (3, 0.625, 0.5),
    ]
    assert [one.int for one in found[0].collapsed] == [2, 4]
    assert found[1].max_similarity == 0.0


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.name)
def test_the_package_needs_numpy_alone(path: Path) -> None:
    imported = {
        name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    own = {name for name in imported if name.startswith("memory_service.ranking.")}
    others = {name.partition(".")[0] for name in imported - own}
    assert others <= {"numpy"} | sys.stdlib_module_names
