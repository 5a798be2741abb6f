"""Relevance: how nearness and words are put on one scale, and how they become one number.

Every function takes and returns float64 arrays of shape (candidates,).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memory_service.ranking.candidate import Candidate
from memory_service.ranking.options import Convex, Fusion, Mode, Rrf

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Blend:
    """Both sides as they went in, and what came of them; all 0 to 1."""

    relevance: Floats
    dense: Floats | None
    """None in mode LEXICAL."""
    lexical: Floats | None
    """None in mode DENSE."""


def blend(candidates: Sequence[Candidate], mode: Mode, fusion: Fusion) -> Blend:
    """Returns the relevance of each candidate."""
    match mode, fusion:
        case Mode.DENSE, _:
            dense = normalized_cosines(cosines(candidates))
            return Blend(dense, dense, None)
        case Mode.LEXICAL, _:
            lexical = normalized_bm25(bm25(candidates))
            return Blend(lexical, None, lexical)
        case Mode.HYBRID, Convex(weight):
            dense, lexical = normalized_cosines(cosines(candidates)), normalized_bm25(bm25(candidates))
            return Blend(weight * dense + (1.0 - weight) * lexical, dense, lexical)
        case Mode.HYBRID, Rrf(k):
            dense = reciprocal_ranks([candidate.dense_rank for candidate in candidates], k)
            lexical = reciprocal_ranks([candidate.lexical_rank for candidate in candidates], k)
            return Blend((dense + lexical) / 2.0, dense, lexical)


def cosines(candidates: Sequence[Candidate]) -> Floats:
    """Returns their cosine similarity to the query; 0, unrelated, where there is none."""
    return np.array([0.0 if one.cosine is None else one.cosine for one in candidates])


def bm25(candidates: Sequence[Candidate]) -> Floats:
    """Returns their BM25 scores."""
    return np.array([candidate.bm25 for candidate in candidates])


def normalized_cosines(values: Floats) -> Floats:
    """Returns cosine similarities from 0 on; what points the other way is as irrelevant as what is unrelated.

    Depends on no other candidate, so that values of different queries can be compared.
    """
    return np.clip(values, 0.0, 1.0)


def normalized_bm25(values: Floats) -> Floats:
    """Returns shares of the best candidate's BM25 score, since BM25 knows no upper bound (Bruch et al. 2023)."""
    best = values.max(initial=0.0)
    return values / best if best > 0.0 else np.zeros_like(values)


def reciprocal_ranks(ranks: Sequence[int | None], k: float) -> Floats:
    """Returns 1 / (k + rank) (Cormack et al. 2009), scaled so that rank 1 is 1; 0 for those without a rank."""
    return np.array([0.0 if rank is None else (k + 1.0) / (k + rank) for rank in ranks])
