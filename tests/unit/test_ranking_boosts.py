"""Boosts: their values at known points, their bounds, and that more of what they reward never hurts."""

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_service.ranking.boosts import AppliedBoost, boosts_of
from memory_service.ranking.candidate import Candidate
from memory_service.ranking.options import Boosts, Clock, Mode
from memory_service.ranking.rank import Ranked, rank
from tests.unit.sample_candidates import NOW, boosts, candidate, moments, options, pools, shares

DAY_S = 86_400.0


def value_of(one: Candidate, **weights: float | Clock) -> float:
    [boost] = boosts_of([one], Boosts(**weights), as_of=NOW)  # type: ignore[arg-type]  # a test's few keywords
    return float(boost.values[0])


def score_of(one: Candidate, chosen: Boosts, *, as_of: datetime = NOW) -> float:
    [ranked] = rank([one], options(boosts=chosen, as_of=as_of))
    return ranked.score


@pytest.mark.parametrize(("age_days", "expected"), [(0, 1.0), (30, 0.5), (60, 0.25), (-3, 1.0), (700_000, 0.0)])
def test_recency_halves_with_each_half_life(age_days: int, expected: float) -> None:
    one = candidate(created_at=NOW - timedelta(days=age_days))
    assert value_of(one, recency_weight=0.1, half_life_s=30 * DAY_S) == pytest.approx(expected)


def test_each_clock_reads_its_own_time() -> None:
    one = candidate(
        created_at=NOW - timedelta(days=3),
        updated_at=NOW - timedelta(days=2),
        last_accessed_at=NOW - timedelta(days=1),
    )
    found = [value_of(one, recency_weight=0.1, half_life_s=DAY_S, clock=clock) for clock in Clock]
    assert found == pytest.approx([1 / 8, 1 / 4, 1 / 2])


def test_what_was_never_accessed_is_as_old_as_its_creation() -> None:
    one = candidate(created_at=NOW - timedelta(days=3), updated_at=NOW, last_accessed_at=None)
    assert value_of(one, recency_weight=0.1, half_life_s=DAY_S, clock=Clock.ACCESSED) == pytest.approx(1 / 8)


def test_times_of_the_first_year_are_old_and_nothing_else() -> None:
    one = candidate(created_at=datetime(1, 1, 1, tzinfo=UTC))
    assert value_of(one, recency_weight=0.1, half_life_s=1.0) == 0.0


@pytest.mark.parametrize(("importance", "expected"), [(1, 0.0), (4, 1 / 3), (10, 1.0)])
def test_importance_runs_from_1_to_10(importance: int, expected: float) -> None:
    assert value_of(candidate(importance=importance), importance_weight=0.1) == pytest.approx(expected)


@pytest.mark.parametrize(("count", "expected"), [(0, 0.0), (9, math.log(10) / math.log(101)), (100, 1.0), (9_999, 1.0)])
def test_accesses_count_by_their_logarithm_up_to_100(count: int, expected: float) -> None:
    assert value_of(candidate(access_count=count), access_weight=0.1) == pytest.approx(expected)


def test_each_weighted_boost_is_reported_and_no_other() -> None:
    one = candidate(cosine=0.5, importance=10, access_count=100)
    [ranked] = rank([one], options(boosts=Boosts(importance_weight=0.25, access_weight=0.5)))
    assert ranked.boosts == (AppliedBoost("importance", 1.0, 0.25, 1.125), AppliedBoost("access", 1.0, 0.5, 1.25))
    assert ranked.score == 0.5 * 1.125 * 1.25


@given(pool=pools(), chosen=boosts)
def test_a_score_is_relevance_times_its_factors(pool: list[Candidate], chosen: Boosts) -> None:
    for ranked in rank(pool, options(boosts=chosen)):
        assert ranked.score == pytest.approx(ranked.relevance * math.prod(one.factor for one in ranked.boosts))


@given(pool=pools(), chosen=boosts)
def test_factors_are_bounded_by_their_weights(pool: list[Candidate], chosen: Boosts) -> None:
    for ranked in rank(pool, options(boosts=chosen)):
        for boost in ranked.boosts:
            assert 0.0 <= boost.value <= 1.0
            assert 1.0 - boost.weight / 2 <= boost.factor <= 1.0 + boost.weight / 2


@given(pool=pools(), chosen=boosts)
def test_what_is_not_relevant_is_lifted_by_nothing(pool: list[Candidate], chosen: Boosts) -> None:
    pool = [*pool, candidate(99, cosine=-0.5, importance=10, access_count=100)]
    found = {ranked.candidate.id: ranked for ranked in rank(pool, options(boosts=chosen))}
    assert found[pool[-1].id].score == 0.0
    assert all((ranked.score > 0.0) == (ranked.relevance > 0.0) for ranked in found.values())


def newer(one: Candidate, by: int) -> Candidate:
    return replace(
        one,
        created_at=one.created_at + timedelta(hours=by),
        updated_at=one.updated_at + timedelta(hours=by),
        last_accessed_at=one.last_accessed_at and one.last_accessed_at + timedelta(hours=by),
    )


def more_important(one: Candidate, by: int) -> Candidate:
    return replace(one, importance=min(10, one.importance + by))


def more_accessed(one: Candidate, by: int) -> Candidate:
    return replace(one, access_count=one.access_count + by)


def more_similar(one: Candidate, by: int) -> Candidate:
    return replace(one, cosine=(one.cosine or 0.0) + by / 1_000)


single = st.builds(
    candidate,
    cosine=shares,
    created_at=moments,
    updated_at=moments,
    last_accessed_at=st.one_of(st.none(), moments),
    importance=st.integers(1, 10),
    access_count=st.integers(0, 300),
)


@pytest.mark.parametrize("better", [newer, more_important, more_accessed, more_similar])
@given(one=single, by=st.integers(1, 200), chosen=boosts)
def test_more_of_what_is_rewarded_never_lowers_the_score(
    better: Callable[[Candidate, int], Candidate], one: Candidate, by: int, chosen: Boosts
) -> None:
    assert score_of(better(one, by), chosen) >= score_of(one, chosen)


@pytest.mark.parametrize(
    ("better", "chosen"),
    [
        (newer, Boosts(recency_weight=0.1)),
        (more_important, Boosts(importance_weight=0.1)),
        (more_accessed, Boosts(access_weight=0.1)),
    ],
)
def test_more_of_what_is_rewarded_raises_the_score(
    better: Callable[[Candidate, int], Candidate], chosen: Boosts
) -> None:
    one = candidate(cosine=0.5, created_at=NOW - timedelta(days=9))
    assert score_of(better(one, 3), chosen) > score_of(one, chosen)


@given(one=single, chosen=boosts, later=st.integers(0, 10_000))
def test_time_never_raises_a_score(one: Candidate, chosen: Boosts, later: int) -> None:
    assert score_of(one, chosen, as_of=NOW + timedelta(hours=later)) <= score_of(one, chosen)


@given(pool=pools())
def test_without_weights_results_are_ordered_by_relevance(pool: list[Candidate]) -> None:
    found: list[Ranked] = rank(pool, options(mode=Mode.DENSE))
    expected = sorted(pool, key=lambda one: (-max(0.0, one.cosine or 0.0), one.id.bytes))
    assert [ranked.candidate for ranked in found] == expected
    assert all(ranked.score == ranked.relevance and ranked.boosts == () for ranked in found)


def test_neutral_boosts_say_so() -> None:
    assert Boosts(half_life_s=1.0, clock=Clock.UPDATED).neutral
    assert not Boosts(recency_weight=0.1).neutral
    assert not Boosts(importance_weight=0.1).neutral
    assert not Boosts(access_weight=0.1).neutral
