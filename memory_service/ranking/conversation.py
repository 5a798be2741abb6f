"""What a memory gains from its conversation: relevant memories stand together.

s' = norm(s + p * (s_before + s_after)) + q * norm(conversation), where norm divides by the largest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memory_service.ranking.candidate import Candidate
from memory_service.ranking.fusion import Floats
from memory_service.ranking.options import ConversationWeights

# A conversation is as good as its three best memories together. Of all, the longest would win; of the best alone, a
# chance hit would count as much as a conversation on the subject. Measured, it makes little difference: see
# docs/ranking.md.
BEST_OF_CONVERSATION = 3


@dataclass(frozen=True, slots=True, eq=False)
class Gain:
    """Relevance with what conversations add to it, both of shape (candidates,)."""

    relevance: Floats
    """The best is what it was before, so that relevance stays within 0 to 1 and `min_score` keeps its meaning."""
    gained: Floats
    """The part of it that came from neighbours and conversation."""


def gain(candidates: Sequence[Candidate], relevance: Floats, weights: ConversationWeights) -> Gain:
    """Returns relevance as neighbours and conversations change it; the order of those outside any stays."""
    from_neighbours = weights.neighbour * of_neighbours(candidates, relevance)
    largest = (relevance + from_neighbours).max(initial=0.0)
    # Both norms of the formula, times `largest`: the order is the same, and relevance keeps its scale.
    gained = from_neighbours + weights.conversation * largest * of_conversations(candidates, relevance)
    total = relevance + gained
    best = total.max(initial=0.0)
    before = relevance.max(initial=0.0)
    scale = before / best if best > 0.0 else 1.0
    return Gain(np.minimum(total * scale, before), gained * scale)  # rounding would make 1.0000000000000002 of 1


def of_neighbours(candidates: Sequence[Candidate], relevance: Floats) -> Floats:
    """Returns for each the relevance of the one before and the one after it, summed; 0 for those not among them."""
    places = {candidate.id: place for place, candidate in enumerate(candidates)}
    nobody = len(candidates)
    with_nobody = np.append(relevance, 0.0)
    before, after = (
        np.array([nobody if one is None else places.get(one, nobody) for one in neighbours], dtype=np.intp)
        for neighbours in ([one.previous_id for one in candidates], [one.next_id for one in candidates])
    )
    sums: Floats = with_nobody[before] + with_nobody[after]
    return sums


def of_conversations(candidates: Sequence[Candidate], relevance: Floats) -> Floats:
    """Returns for each the score of its conversation as a share of the best one's; 0 for those outside any."""
    names = {one.conversation_id for one in candidates if one.conversation_id is not None}
    numbers: dict[str | None, int] = {name: number for number, name in enumerate(sorted(names))}
    conversations = np.array([numbers.get(one.conversation_id, -1) for one in candidates], dtype=np.intp)
    scores = _best_together(conversations[conversations >= 0], relevance[conversations >= 0], len(numbers))
    best = scores.max(initial=0.0)
    shares = np.append(scores / best if best > 0.0 else scores, 0.0)
    return shares[conversations]


def _best_together(conversations: NDArray[np.intp], relevance: Floats, count: int) -> Floats:
    """Returns for each of `count` conversations the summed relevance of its best few memories."""
    order = np.lexsort((-relevance, conversations))
    conversations, relevance = conversations[order], relevance[order]
    firsts = np.searchsorted(conversations, np.arange(count))
    places = np.arange(len(conversations)) - firsts[conversations]
    counted = places < BEST_OF_CONVERSATION
    sums = np.bincount(conversations[counted], weights=relevance[counted], minlength=count)
    return sums.astype(np.float64)  # without any candidate, bincount returns integers
