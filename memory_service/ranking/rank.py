"""The order of results: relevance, what conversations add, boosts, and then diversity among the best.

All of it happens to all candidates, and only then is the limit applied; nothing depends on the order they come in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from memory_service.ranking.boosts import AppliedBoost, BoostOfAll, boosts_of
from memory_service.ranking.candidate import Candidate
from memory_service.ranking.conversation import gain
from memory_service.ranking.diversity import Directions, Pick, collapse, maximal_marginal_relevance
from memory_service.ranking.fusion import Blend, Floats, blend
from memory_service.ranking.options import Diversity, RankingOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """A result, and how its score came about: score = relevance * the factors of its boosts."""

    candidate: Candidate
    score: float
    relevance: float
    dense: float | None
    """The dense side as it went into relevance, 0 to 1; None in mode LEXICAL."""
    lexical: float | None
    """The lexical side as it went into relevance, 0 to 1; None in mode DENSE."""
    conversation: float | None
    """The part of relevance that neighbours and conversation brought; None where they have no weight."""
    boosts: tuple[AppliedBoost, ...]
    """One for each that has a weight."""
    max_similarity: float | None
    """Cosine similarity to the most similar result before it; None for the first, and without mmr_lambda."""
    collapsed: tuple[UUID, ...]
    """Candidates left out in its favour, best first."""


def rank(candidates: Sequence[Candidate], options: RankingOptions) -> list[Ranked]:
    """Returns the results, best first, ties by id; at most `options.limit`.

    With mmr_lambda, they come in the order of their choice, not of their scores.
    """
    # By id, as PostgreSQL orders them: stable sorts keep ties so, and sums of floats come out the same every time.
    ordered = sorted(candidates, key=lambda candidate: candidate.id.int)
    scored = _scored(ordered, options)
    best = scored.order(options.min_score)
    if options.diversity.neutral:
        return [scored.result(place) for place in best[: options.limit].tolist()]
    return _diverse(scored, best, options.diversity, limit=options.limit)


@dataclass(frozen=True, slots=True, eq=False)
class _Scored:
    """All candidates with their scores, as arrays of shape (candidates,)."""

    candidates: list[Candidate]
    blend: Blend
    relevance: Floats
    gained: Floats | None
    boosts: list[BoostOfAll]
    scores: Floats

    def order(self, min_score: float | None) -> NDArray[np.intp]:
        """Returns the places of those scored at least `min_score`, best first."""
        order = np.argsort(-self.scores, kind="stable")
        return order if min_score is None else order[self.scores[order] >= min_score]

    def result(self, place: int, max_similarity: float | None = None, collapsed: Sequence[int] = ()) -> Ranked:
        """Returns one of them as a result."""
        return Ranked(
            candidate=self.candidates[place],
            score=float(self.scores[place]),
            relevance=float(self.relevance[place]),
            dense=_of(self.blend.dense, place),
            lexical=_of(self.blend.lexical, place),
            conversation=_of(self.gained, place),
            boosts=tuple(boost.applied(place) for boost in self.boosts),
            max_similarity=max_similarity,
            collapsed=tuple(self.candidates[other].id for other in collapsed),
        )


def _of(values: Floats | None, place: int) -> float | None:
    return None if values is None else float(values[place])


def _scored(ordered: list[Candidate], options: RankingOptions) -> _Scored:
    blended = blend(ordered, options.mode, options.fusion)
    relevance, gained = blended.relevance, None
    if not options.conversation.neutral:
        earned = gain(ordered, relevance, options.conversation)
        relevance, gained = earned.relevance, earned.gained
    boosts = boosts_of(ordered, options.boosts, as_of=options.as_of)
    scores = relevance.copy()
    for boost in boosts:
        scores *= boost.factors
    return _Scored(ordered, blended, relevance, gained, boosts, scores)


def _diverse(scored: _Scored, best: NDArray[np.intp], diversity: Diversity, *, limit: int) -> list[Ranked]:
    """Returns results that differ; `best` are places in `scored`, best first."""
    directions = Directions([scored.candidates[place].embedding for place in best])
    kept: dict[int, list[int]] = {place: [] for place in range(len(best))}
    if diversity.collapse_similarity is not None:
        # Maximal marginal relevance may choose any of those kept, so it has to know all.
        enough = limit if diversity.mmr_lambda is None else len(best)
        kept = collapse(directions, diversity.collapse_similarity, enough=enough)
    picks = [Pick(place, None) for place in list(kept)[:limit]]
    if diversity.mmr_lambda is not None:
        picks = maximal_marginal_relevance(
            directions, scored.scores[best], diversity.mmr_lambda, places=list(kept), count=limit
        )
    return [
        scored.result(int(best[pick.place]), pick.max_similarity, best[kept[pick.place]].tolist()) for pick in picks
    ]
