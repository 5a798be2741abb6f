"""Searches that weigh more than nearness: sending them, and checking what their explanations say."""

import math
from typing import Any

import pytest

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import send


def search(stub: MemoryServiceStub, user_id: str, **fields: Any) -> pb.SearchSimilarResponse:
    """Searches, explained, without counting the results as accessed."""
    given = {"explain": True, "skip_access_recording": True, **fields}
    reply: pb.SearchSimilarResponse = send(stub, pb.SearchSimilarRequest(user_id=user_id, **given))
    return reply


def ids_of(reply: pb.SearchSimilarResponse) -> list[str]:
    """Returns the ids of the results, best first."""
    return [result.memory.id for result in reply.results]


def without_timing(reply: pb.SearchSimilarResponse) -> pb.SearchSimilarResponse:
    """Returns all of a reply that the same search has to repeat."""
    copy = pb.SearchSimilarResponse()
    copy.CopyFrom(reply)
    copy.ClearField("timing")
    return copy


def check_scores(reply: pb.SearchSimilarResponse) -> None:
    """Recomputes each score from its explanation, as the contract says it comes about."""
    for result in reply.results:
        explanation = result.explanation
        for boost in explanation.boosts:
            assert 0.0 <= boost.value <= 1.0
            assert boost.factor == pytest.approx(1.0 + boost.weight * (boost.value - 0.5))
        factors = math.prod(boost.factor for boost in explanation.boosts)
        assert result.score == pytest.approx(explanation.relevance * factors, rel=1e-9)
        assert 0.0 <= explanation.relevance <= 1.0


def check_convex(reply: pb.SearchSimilarResponse, dense_weight: float) -> None:
    """Checks relevances blended from both sides, where all results of a search are at hand."""
    check_scores(reply)
    best = max((result.explanation.bm25 for result in reply.results), default=0.0)
    for result in reply.results:
        one = result.explanation
        assert one.dense == pytest.approx(max(0.0, one.cosine))
        assert one.lexical == pytest.approx(one.bm25 / best if best else 0.0)
        assert one.relevance == pytest.approx(dense_weight * one.dense + (1.0 - dense_weight) * one.lexical)
