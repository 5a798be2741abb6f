"""Diversity: the greedy choice and the collapse against naive ones, and what they do with twins."""

from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_service.ranking.candidate import Candidate
from memory_service.ranking.options import Diversity
from memory_service.ranking.rank import Ranked, rank
from tests.unit.sample_candidates import candidate, options, pools, signs

lambdas = st.integers(0, 8).map(lambda number: number / 8)
similarities = st.integers(1, 8).map(lambda number: number / 8)
limits = st.integers(1, 14)

EAST, NORTH = signs(0), signs(0b11111111)  # at a right angle


def similarity(one: Candidate, other: Candidate) -> float:
    if one.embedding is None or other.embedding is None:
        return 0.0
    return float(np.dot(one.embedding, other.embedding))


def by_score(pool: list[Candidate]) -> list[Candidate]:
    return [ranked.candidate for ranked in rank(pool, options())]


def score(one: Candidate) -> float:
    return max(0.0, one.cosine or 0.0)


def naive_mmr(pool: list[Candidate], mmr_lambda: float, limit: int) -> list[Candidate]:
    left, chosen = by_score(pool), list[Candidate]()

    def value(one: Candidate) -> float:
        nearest = max((similarity(one, other) for other in chosen), default=0.0)
        return mmr_lambda * score(one) - (1 - mmr_lambda) * nearest

    while left and len(chosen) < limit:
        # Of equals, `max` takes the first: the one with the better score. So the first of all is the best.
        chosen.append(max(left, key=value) if chosen else left[0])
        left.remove(chosen[-1])
    return chosen


def naive_collapse(pool: list[Candidate], threshold: float) -> dict[UUID, tuple[UUID, ...]]:
    kept: dict[UUID, list[UUID]] = {}
    owners: list[Candidate] = []
    for one in by_score(pool):
        owner = next((other for other in owners if similarity(one, other) >= threshold), None)
        if owner is None:
            owners.append(one)
            kept[one.id] = []
        else:
            kept[owner.id].append(one.id)
    return {owner: tuple(found) for owner, found in kept.items()}


def diverse(pool: list[Candidate], diversity: Diversity, *, limit: int = 100) -> list[Ranked]:
    return rank(pool, options(diversity=diversity, limit=limit))


def numbers(results: list[Ranked]) -> list[int]:
    return [ranked.candidate.id.int for ranked in results]


@given(pool=pools(), mmr_lambda=lambdas, limit=limits)
def test_mmr_agrees_with_the_naive_greedy_choice(pool: list[Candidate], mmr_lambda: float, limit: int) -> None:
    found = diverse(pool, Diversity(mmr_lambda=mmr_lambda), limit=limit)
    assert [ranked.candidate for ranked in found] == naive_mmr(pool, mmr_lambda, limit)


@given(pool=pools(), mmr_lambda=lambdas)
def test_the_similarity_reported_is_to_the_results_before(pool: list[Candidate], mmr_lambda: float) -> None:
    found = diverse(pool, Diversity(mmr_lambda=mmr_lambda))
    chosen = [ranked.candidate for ranked in found]
    for place, ranked in enumerate(found):
        expected = max((similarity(ranked.candidate, other) for other in chosen[:place]), default=None)
        assert ranked.max_similarity == expected


@given(pool=pools(), limit=limits)
def test_lambda_1_is_score_alone(pool: list[Candidate], limit: int) -> None:
    found = diverse(pool, Diversity(mmr_lambda=1.0), limit=limit)
    assert [ranked.candidate for ranked in found] == by_score(pool)[:limit]


def test_of_twins_only_the_second_is_punished() -> None:
    pool = [
        candidate(1, cosine=0.75, embedding=EAST),
        candidate(2, cosine=0.75, embedding=EAST),
        candidate(3, cosine=0.25, embedding=NORTH),
    ]
    assert numbers(diverse(pool, Diversity(mmr_lambda=0.5))) == [1, 3, 2]
    assert numbers(diverse(pool, Diversity(mmr_lambda=0.875))) == [1, 2, 3]


@given(pool=pools(), threshold=similarities)
def test_collapse_agrees_with_the_naive_walk(pool: list[Candidate], threshold: float) -> None:
    found = diverse(pool, Diversity(collapse_similarity=threshold))
    assert {ranked.candidate.id: ranked.collapsed for ranked in found} == naive_collapse(pool, threshold)


@given(pool=pools(), threshold=similarities, mmr_lambda=st.one_of(st.none(), lambdas))
def test_collapse_keeps_the_best_and_loses_nobody(
    pool: list[Candidate], threshold: float, mmr_lambda: float | None
) -> None:
    found = diverse(pool, Diversity(collapse_similarity=threshold, mmr_lambda=mmr_lambda))
    every = [one for ranked in found for one in (ranked.candidate.id, *ranked.collapsed)]
    assert sorted(every) == sorted(one.id for one in pool)
    place = {one.id: place for place, one in enumerate(by_score(pool))}
    for ranked in found:
        places = [place[one] for one in (ranked.candidate.id, *ranked.collapsed)]
        assert places == sorted(places)


@given(pool=pools(), threshold=similarities, limit=limits)
def test_the_limit_counts_what_is_kept(pool: list[Candidate], threshold: float, limit: int) -> None:
    diversity = Diversity(collapse_similarity=threshold)
    assert diverse(pool, diversity, limit=limit) == diverse(pool, diversity)[:limit]


@given(pool=pools(), threshold=similarities, mmr_lambda=lambdas, limit=limits)
def test_mmr_chooses_among_what_collapse_keeps(
    pool: list[Candidate], threshold: float, mmr_lambda: float, limit: int
) -> None:
    kept = naive_collapse(pool, threshold)
    expected = naive_mmr([one for one in pool if one.id in kept], mmr_lambda, limit)
    found = diverse(pool, Diversity(collapse_similarity=threshold, mmr_lambda=mmr_lambda), limit=limit)
    assert [ranked.candidate for ranked in found] == expected
    assert [ranked.collapsed for ranked in found] == [kept[one.id] for one in expected]


def test_what_min_score_leaves_out_is_not_collapsed_either() -> None:
    pool = [candidate(number, cosine=cosine, embedding=EAST) for number, cosine in ((1, 0.75), (2, 0.5), (3, 0.25))]
    [found] = rank(pool, options(diversity=Diversity(collapse_similarity=0.5), min_score=0.5))
    assert found.collapsed == (UUID(int=2),)


@pytest.mark.parametrize("dimensions", [3, 16, 1_536])
def test_equal_embeddings_collapse_at_a_similarity_of_1_although_stored_in_half_precision(dimensions: int) -> None:
    for embedding in np.random.default_rng(0).normal(size=(40, dimensions)):
        stored = (embedding / np.linalg.norm(embedding)).astype(np.float16).astype(np.float32)
        pool = [candidate(number, cosine=0.5, embedding=stored.copy()) for number in (1, 2)]
        [found] = diverse(pool, Diversity(collapse_similarity=1.0))
        assert found.collapsed == (UUID(int=2),)


def test_without_any_embedding_results_keep_their_order() -> None:
    pool = [candidate(number, cosine=0.25 * number) for number in (1, 2, 3)]
    found = diverse(pool, Diversity(mmr_lambda=0.5, collapse_similarity=0.125))
    assert numbers(found) == [3, 2, 1]
    assert [ranked.max_similarity for ranked in found] == [None, 0.0, 0.0]
