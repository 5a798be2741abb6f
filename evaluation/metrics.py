"""How good one ranking is, against the graded judgments of its question.

A judgment is a gain above 0; whatever has none counts as irrelevant. All judgments count for what could have been
found, also those of documents that are not stored.
"""

import math
from collections.abc import Mapping, Sequence

DEPTH = 10


def ndcg(ranking: Sequence[str], gains: Mapping[str, float], *, depth: int = DEPTH) -> float:
    """Returns the normalized discounted cumulative gain at `depth` (Järvelin and Kekäläinen 2002), 0 to 1.

    The grade itself is the gain (not 2^grade - 1), the discount log2(rank + 1). The ideal is that of all judgments.
    A document that stands there twice counts once, at its better rank.

    Raises:
        ValueError: When nothing is relevant: no ranking could be better or worse.
    """
    ideal = _discounted(sorted(_positive(gains).values(), reverse=True)[:depth])
    first = {document: rank for rank, document in reversed(list(enumerate(ranking)))}
    seen_first = [first[document] == rank for rank, document in enumerate(ranking[:depth])]
    found = _discounted([gains.get(d, 0.0) if new else 0.0 for d, new in zip(ranking[:depth], seen_first, strict=True)])
    return found / ideal


def recall(ranking: Sequence[str], gains: Mapping[str, float], *, depth: int = DEPTH) -> float:
    """Returns which share of the relevant documents is among the first `depth`, 0 to 1.

    Raises:
        ValueError: When nothing is relevant.
    """
    relevant = _positive(gains).keys()
    return len(relevant & set(ranking[:depth])) / len(relevant)


def reciprocal_rank(ranking: Sequence[str], gains: Mapping[str, float], *, depth: int = DEPTH) -> float:
    """Returns 1 / rank of the first relevant document among the first `depth`, 0 where there is none.

    Raises:
        ValueError: When nothing is relevant.
    """
    relevant = _positive(gains)
    ranks = (rank for rank, document in enumerate(ranking[:depth], start=1) if document in relevant)
    return 1 / next(ranks, math.inf)


def _discounted(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


def _positive(gains: Mapping[str, float]) -> dict[str, float]:
    relevant = {document: gain for document, gain in gains.items() if gain > 0}
    if not relevant:
        raise ValueError("no document is judged relevant")
    return relevant
