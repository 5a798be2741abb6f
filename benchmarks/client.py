"""Asks the service through its generated stubs, as any caller would; embeddings travel as f32_le bytes."""

from dataclasses import dataclass

import grpc
import numpy as np
from numpy.typing import NDArray

from benchmarks.question import CONTENT, LIMIT, NONE, Answer, Question, Restriction
from harness.channel import open_channel
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub

DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class ServiceSource:
    """Where the service listens."""

    address: str

    def connect(self) -> "ServiceAsker":
        """Returns an asker with a connection of its own."""
        return ServiceAsker(open_channel(self.address))


class ServiceAsker:
    """One caller."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self.stub = MemoryServiceStub(channel)

    def ask(self, question: Question) -> Answer:
        """Calls SearchSimilar; builds the request from numpy and reads the ids of the reply."""
        response = self.stub.SearchSimilar(search_request(question), timeout=DEADLINE_S)
        return Answer([result.memory.id for result in response.results], plan_name(response))

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()


def insert_request(question: Question) -> pb.InsertVectorRequest:
    """Returns the request to store a question's vector among the user's memories."""
    return pb.InsertVectorRequest(
        user_id=question.user,
        memory=pb.NewMemory(content=CONTENT, embedding=to_vector(question.vector)),
    )


def to_vector(values: NDArray[np.float32]) -> pb.Vector:
    """Returns an embedding as it travels."""
    return pb.Vector(f32_le=values.astype("<f4").tobytes())


def plan_name(response: pb.SearchSimilarResponse) -> str:
    """Returns the plan that a reply names: EXACT, QUANTIZED or ANN."""
    return pb.SearchPlan.Name(response.plan).removeprefix("SEARCH_PLAN_")


def search_request(question: Question) -> pb.SearchSimilarRequest:
    """Returns the request for a question."""
    request = pb.SearchSimilarRequest(user_id=question.user, embedding=to_vector(question.vector), limit=LIMIT)
    if question.restriction != NONE:
        request.filter.CopyFrom(_filter(question.restriction))
    request.exact = question.knobs.exact
    if question.knobs.ef_search is not None:
        request.ef_search = question.knobs.ef_search
    if question.knobs.candidates is not None:
        request.candidates = question.knobs.candidates
    return request


def _filter(restriction: Restriction) -> pb.MemoryFilter:
    message = pb.MemoryFilter()
    if restriction.importance is not None:
        message.min_importance = message.max_importance = restriction.importance
    if restriction.tenth is not None:
        message.metadata_contains["tenth"] = restriction.tenth
    if restriction.hundredth is not None:
        message.metadata_contains["hundredth"] = restriction.hundredth
    if restriction.conversation is not None:
        message.conversation_id = f"conversation-{restriction.conversation:02d}"
    return message
