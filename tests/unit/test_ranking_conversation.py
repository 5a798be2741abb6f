"""What memories gain from their conversation: the formula, who gains nothing, and which orders stay."""

import math
from collections import defaultdict

import pytest
from hypothesis import given

from memory_service.ranking.candidate import Candidate
from memory_service.ranking.conversation import BEST_OF_CONVERSATION
from memory_service.ranking.options import ConversationWeights, RankingOptions
from memory_service.ranking.rank import rank
from tests.unit.sample_candidates import candidate, conversation_weights, options, pools

NEIGHBOURS = ConversationWeights(neighbour=0.25)
CONVERSATIONS = ConversationWeights(conversation=0.5)


def scores(pool: list[Candidate], weights: ConversationWeights) -> dict[int, float]:
    return {one.candidate.id.int: one.score for one in rank(pool, options(conversation=weights))}


def chain(*cosines: float) -> list[Candidate]:
    """Returns the memories of one conversation, numbered from 1."""
    ids = [candidate(number).id for number in range(1, len(cosines) + 1)]
    around = [None, *ids, None]
    return [
        candidate(
            number, cosine=cosine, conversation_id="a", previous_id=around[number - 1], next_id=around[number + 1]
        )
        for number, cosine in enumerate(cosines, start=1)
    ]


def reference(pool: list[Candidate], weights: ConversationWeights) -> dict[int, float]:
    """Returns norm(s + p * neighbours) + q * norm(conversation) of each, with the best as good as it was."""
    own = {one.id: max(0.0, one.cosine or 0.0) for one in pool}
    smoothed = {
        one.id: own[one.id]
        + weights.neighbour * sum(own.get(other, 0.0) for other in (one.previous_id, one.next_id) if other)
        for one in pool
    }
    largest = max(smoothed.values(), default=0.0)
    if largest == 0.0:
        return {one.id.int: 0.0 for one in pool}
    members = defaultdict(list)
    for one in pool:
        if one.conversation_id is not None:
            members[one.conversation_id].append(own[one.id])
    together = {name: sum(sorted(found)[-BEST_OF_CONVERSATION:]) for name, found in members.items()}
    best = max(together.values(), default=0.0) or 1.0
    total = {
        one.id.int: smoothed[one.id] / largest
        + weights.conversation * together.get(one.conversation_id or "", 0.0) / best
        for one in pool
    }
    scale = max(own.values()) / max(total.values())
    return {number: value * scale for number, value in total.items()}


@given(pool=pools(), weights=conversation_weights)
def test_agrees_with_the_formula_in_plain_python(pool: list[Candidate], weights: ConversationWeights) -> None:
    assert scores(pool, weights) == pytest.approx(reference(pool, weights))


@given(pool=pools(), weights=conversation_weights)
def test_the_best_stays_as_good_as_it_was(pool: list[Candidate], weights: ConversationWeights) -> None:
    before = max(scores(pool, ConversationWeights()).values(), default=0.0)
    after = scores(pool, weights).values()
    assert max(after, default=0.0) == pytest.approx(before)
    assert all(0.0 <= score <= before for score in after)


@given(pool=pools(), weights=conversation_weights)
def test_those_outside_any_conversation_keep_their_order(pool: list[Candidate], weights: ConversationWeights) -> None:
    alone = {one.id for one in pool if (one.conversation_id, one.previous_id, one.next_id) == (None, None, None)}

    def order(ranking: RankingOptions) -> list[int]:
        return [one.candidate.id.int for one in rank(pool, ranking) if one.candidate.id in alone]

    assert order(options(conversation=weights)) == order(options())


@given(pool=pools(), weights=conversation_weights)
def test_the_gain_is_what_is_left_when_ones_own_share_is_taken(
    pool: list[Candidate], weights: ConversationWeights
) -> None:
    found = rank(pool, options(conversation=weights))
    if weights.neutral:
        assert all(one.conversation is None for one in found)
        return
    shares = set()
    for one in found:
        assert one.dense is not None
        assert one.conversation is not None
        assert 0.0 <= one.conversation <= one.relevance + math.ulp(1.0)
        if one.dense > 0.0:
            shares.add(round((one.relevance - one.conversation) / one.dense, 9))
    assert len(shares) <= 1, "everyone's own relevance counts alike"


def test_a_neighbour_of_the_best_overtakes_a_better_one() -> None:
    found = scores([*chain(1.0, 0.25, 0.0), candidate(9, cosine=0.375)], NEIGHBOURS)
    assert found[2] > found[9] > found[3]


def test_neighbours_pass_on_their_relevance_one_step_far() -> None:
    found = scores(chain(1.0, 0.0, 0.0), NEIGHBOURS)
    assert found == {1: 1.0, 2: 0.25, 3: 0.0}


def test_a_neighbour_that_is_no_candidate_adds_nothing() -> None:
    found = scores(chain(1.0, 0.5, 1.0)[1:2], NEIGHBOURS)
    assert found == {2: 0.5}


def test_a_conversation_on_the_subject_beats_a_chance_hit() -> None:
    subject = [candidate(number, cosine=0.5, conversation_id="subject") for number in (1, 2, 3)]
    chance = candidate(4, cosine=0.5625, conversation_id="chance")
    assert scores([*subject, chance], ConversationWeights())[4] > 0.5
    found = scores([*subject, chance], CONVERSATIONS)
    assert found[1] == found[2] == found[3] > found[4]


def test_a_conversation_is_not_better_for_being_longer() -> None:
    long = [candidate(number, cosine=0.25, conversation_id="long") for number in range(1, 31)]
    short = [candidate(number, cosine=0.5, conversation_id="short") for number in (31, 32, 33)]
    lone = [candidate(40, cosine=0.5)]
    found = scores([*long, *short, *lone], CONVERSATIONS)
    # The short one's own score is the best; the long one's is half of that.
    assert found[31] == 0.5
    assert found[1] == pytest.approx(0.5 * (0.25 + 0.5 * 0.5 * 0.5) / (0.5 + 0.5 * 0.5))
    assert found[40] == pytest.approx(0.5 * 0.5 / (0.5 + 0.5 * 0.5))


def test_nobody_gains_where_nobody_is_relevant() -> None:
    weights = ConversationWeights(neighbour=1.0, conversation=1.0)
    assert set(scores(chain(0.0, -0.5, 0.0), weights).values()) == {0.0}
