"""The ways of searching that are compared, each as what its requests say beside user and text."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from memory_service.v1 import memory_pb2 as pb

NEIGHBOUR_WEIGHT = 0.2
CONVERSATION_WEIGHT = 0.7
MMR_LAMBDA = 0.7
USUAL_RRF_K = 60.0

DENSE_WEIGHTS = tuple(round(step / 10, 1) for step in range(11))
RRF_KS = (1.0, 5.0, 10.0, 20.0, 40.0, 60.0, 100.0)


@dataclass(frozen=True, slots=True)
class Variant:
    """One way of searching."""

    name: str
    options: pb.SearchSimilarRequest


DENSE = Variant("DENSE", pb.SearchSimilarRequest(mode=pb.SEARCH_MODE_DENSE))
LEXICAL = Variant("LEXICAL", pb.SearchSimilarRequest(mode=pb.SEARCH_MODE_LEXICAL))
HYBRID = Variant("HYBRID", pb.SearchSimilarRequest(mode=pb.SEARCH_MODE_HYBRID))


def modes() -> list[Variant]:
    """Returns the modes with the server's defaults, and reciprocal rank fusion as it is usually set."""
    return [DENSE, LEXICAL, HYBRID, by_rank(USUAL_RRF_K, name="HYBRID, RRF")]


def of_conversations(as_of: datetime) -> list[Variant]:
    """Returns HYBRID with what conversations give to go by; `as_of` is when the questions are asked."""
    ranking = pb.Ranking(preset=pb.RANKING_PRESET_BALANCED)
    ranking.as_of.FromDatetime(as_of)
    return [
        _hybrid(
            "HYBRID, conversation",
            conversation=pb.ConversationOptions(
                neighbour_weight=NEIGHBOUR_WEIGHT, conversation_weight=CONVERSATION_WEIGHT
            ),
        ),
        _hybrid("HYBRID, balanced ranking", ranking=ranking),
        _hybrid("HYBRID, MMR", diversity=pb.Diversity(mmr_lambda=MMR_LAMBDA)),
    ]


def by_weight(dense_weight: float) -> Variant:
    """Returns HYBRID by a convex blend with this weight of the dense side."""
    return _hybrid(f"dense_weight {dense_weight:g}", fusion=pb.Fusion(dense_weight=dense_weight))


def by_rank(k: float, *, name: str = "") -> Variant:
    """Returns HYBRID by reciprocal rank fusion with this k."""
    return _hybrid(name or f"rrf_k {k:g}", fusion=pb.Fusion(rrf_k=k))


def sweep() -> Sequence[Variant]:
    """Returns every weight and every k that is tried."""
    return [*map(by_weight, DENSE_WEIGHTS), *map(by_rank, RRF_KS)]


def _hybrid(
    name: str,
    *,
    fusion: pb.Fusion | None = None,
    ranking: pb.Ranking | None = None,
    conversation: pb.ConversationOptions | None = None,
    diversity: pb.Diversity | None = None,
) -> Variant:
    options = pb.SearchSimilarRequest(
        mode=pb.SEARCH_MODE_HYBRID, fusion=fusion, ranking=ranking, conversation=conversation, diversity=diversity
    )
    return Variant(name, options)
