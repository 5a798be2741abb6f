"""Diversity: how results are kept from repeating one another.

Everything here is by place: candidates are numbered from 0, best first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memory_service.ranking.fusion import Floats

# What float32 may lose: of equal vectors, every third pair of 3 dimensions is otherwise just below 1.
TOLERANCE = 1e-6


class Directions:
    """The embeddings of candidates, for comparing them by cosine; one without embedding is like nobody, itself even."""

    def __init__(self, embeddings: Sequence[NDArray[np.float32] | None]) -> None:
        """Takes vectors of shape (dimensions,), of any length but 0; float16 has left unit vectors 0.05 % off."""
        dimensions = next((len(one) for one in embeddings if one is not None), 0)
        self._vectors = np.zeros((len(embeddings), dimensions), dtype=np.float32)
        for place, embedding in enumerate(embeddings):
            if embedding is not None:
                self._vectors[place] = embedding
        squares = np.vecdot(self._vectors, self._vectors)
        self._inverse_norms = np.zeros_like(squares)
        np.divide(1.0, np.sqrt(squares), out=self._inverse_norms, where=squares > 0.0)

    def __len__(self) -> int:
        return len(self._vectors)

    def to(self, place: int, *, start: int = 0) -> NDArray[np.float32]:
        """Returns the cosine similarities to one of all from `start` on, shape (candidates - start,)."""
        # Not `@`: it wakes OpenBLAS's threads, which on two busy cores took 4 to 15 ms where this takes 0.7 (4,000
        # vectors of 1,536 dimensions).
        similarities: NDArray[np.float32] = np.vecdot(self._vectors[start:], self._vectors[place])
        similarities *= self._inverse_norms[start:] * self._inverse_norms[place]
        return np.clip(similarities, -1.0, 1.0)


def collapse(directions: Directions, similarity: float, *, enough: int) -> dict[int, list[int]]:
    """Keeps the best of similar candidates: walks best first, and leaves out what is similar to one kept.

    Args:
        directions: The candidates, best first.
        similarity: The cosine similarity, above 0, from which on two are similar.
        enough: Stops when so many are kept.

    Returns:
        The places of those kept, and of those left out in favour of each; all best first.
    """
    undecided = np.ones(len(directions), dtype=bool)
    kept: dict[int, list[int]] = {}
    for place in range(len(directions)):
        if len(kept) == enough:
            break
        if undecided[place]:
            similar = directions.to(place, start=place + 1) >= similarity - TOLERANCE
            left_out = place + 1 + np.flatnonzero(similar & undecided[place + 1 :])
            undecided[left_out] = False
            kept[place] = left_out.tolist()
    return kept


@dataclass(frozen=True, slots=True)
class Pick:
    """A candidate chosen for a result."""

    place: int
    max_similarity: float | None
    """To those chosen before; None for the first."""


def maximal_marginal_relevance(
    directions: Directions, scores: Floats, mmr_lambda: float, *, places: Sequence[int], count: int
) -> list[Pick]:
    """Chooses up to `count` candidates, in the order of results (Carbonell and Goldstein 1998).

    Each next one has the largest lambda * score - (1 - lambda) * its largest similarity to those already chosen; of
    equals, the better candidate is taken. Similarity to what has not been chosen does not count, or twins would keep
    each other out.

    Args:
        directions: The candidates, best first.
        scores: Theirs, shape (candidates,).
        mmr_lambda: 1 is score alone, 0 difference alone.
        places: Those to choose from, best first.
        count: At least 1.
    """
    if not places:
        return []
    available = np.zeros(len(scores), dtype=bool)
    available[list(places)] = True
    similarities = np.full(len(scores), -np.inf)
    chosen = [Pick(places[0], None)]
    while len(chosen) < min(count, len(places)):
        last = chosen[-1].place
        available[last] = False
        np.maximum(similarities, directions.to(last), out=similarities)
        values = np.where(available, mmr_lambda * scores - (1.0 - mmr_lambda) * similarities, -np.inf)
        best = int(values.argmax())
        chosen.append(Pick(best, float(similarities[best])))
    return chosen
