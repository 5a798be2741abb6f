"""Candidates to rank: single ones by hand, and strategies for many that have much in common.

Numbers and embeddings are exact in binary, so that a reference computes the very same scores and ties are real.
"""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from memory_service.ranking.candidate import Candidate
from memory_service.ranking.options import (
    Boosts,
    Clock,
    ConversationWeights,
    Convex,
    Diversity,
    Mode,
    RankingOptions,
    Rrf,
)

NOW = datetime(2026, 3, 31, 12, tzinfo=UTC)
DIMENSIONS = 16


def candidate(number: int = 1, **facts: Any) -> Candidate:
    """Returns a candidate with id `number`, of middling importance and created now, unless told otherwise."""
    created_at = facts.pop("created_at", NOW)
    defaults: dict[str, Any] = {
        "updated_at": created_at,
        "last_accessed_at": None,
        "importance": 5,
        "access_count": 0,
    }
    return Candidate(id=UUID(int=number), created_at=created_at, **(defaults | facts))


def options(**changes: Any) -> RankingOptions:
    """Returns options that go by meaning alone, as of now and without a limit that matters."""
    defaults: dict[str, Any] = {"mode": Mode.DENSE, "fusion": Convex(0.5), "as_of": NOW, "limit": 1_000}
    return RankingOptions(**(defaults | changes))


def signs(pattern: int) -> NDArray[np.float32]:
    """Returns a unit vector of components ±1/4, after the bits of `pattern`; products of two are multiples of 1/8."""
    return np.array([0.25 if pattern >> bit & 1 else -0.25 for bit in range(DIMENSIONS)], dtype=np.float32)


shares = st.integers(0, 64).map(lambda number: number / 64)
cosines = st.integers(-64, 64).map(lambda number: number / 64)
bm25_scores = st.one_of(st.just(0.0), st.integers(1, 64).map(lambda number: number / 4))
# Few different bits, so that some are alike and some are equal.
embeddings = st.one_of(st.none(), st.integers(0, 31).map(lambda bits: signs(bits * 0b1010101010)))
moments = st.integers(-400, 10).map(lambda days: NOW + timedelta(days=days))
weights = st.integers(0, 32).map(lambda number: number / 64)


@st.composite
def pools(draw: st.DrawFn) -> list[Candidate]:
    """Draws up to 12 candidates, their ranks as a search would give them, in no particular order."""
    numbers = draw(st.lists(st.integers(0, 40), unique=True, max_size=12))
    ids = [None, *(UUID(int=number) for number in numbers)]
    drawn = [
        candidate(
            number,
            created_at=draw(moments),
            updated_at=draw(moments),
            last_accessed_at=draw(st.one_of(st.none(), moments)),
            importance=draw(st.integers(1, 10)),
            access_count=draw(st.integers(0, 300)),
            cosine=draw(st.one_of(st.none(), cosines)),
            bm25=draw(bm25_scores),
            dense_rank=draw(st.one_of(st.none(), st.integers(1, 20))),
            lexical_rank=draw(st.one_of(st.none(), st.integers(1, 20))),
            conversation_id=draw(st.sampled_from([None, "a", "b", "c"])),
            previous_id=draw(st.sampled_from(ids)),
            next_id=draw(st.sampled_from(ids)),
            embedding=draw(embeddings),
        )
        for number in numbers
    ]
    return draw(st.permutations(drawn))


modes = st.sampled_from(Mode)
fusions = st.one_of(st.builds(Convex, shares), st.builds(Rrf, st.sampled_from([1.0, 5.0, 60.0])))
boosts = st.builds(
    Boosts,
    recency_weight=weights,
    half_life_s=st.sampled_from([1.0, 3_600.0, 86_400.0, 2_592_000.0]),
    clock=st.sampled_from(Clock),
    importance_weight=weights,
    access_weight=weights,
)
conversation_weights = st.builds(ConversationWeights, neighbour=shares, conversation=shares)
diversities = st.builds(
    Diversity,
    mmr_lambda=st.one_of(st.none(), st.integers(0, 8).map(lambda number: number / 8)),
    collapse_similarity=st.one_of(st.none(), st.integers(1, 8).map(lambda number: number / 8)),
)
rankings = st.builds(
    options,
    mode=modes,
    fusion=fusions,
    boosts=boosts,
    conversation=conversation_weights,
    diversity=diversities,
    limit=st.integers(1, 15),
    min_score=st.one_of(st.none(), shares),
)
