"""Stores a judged set in the running service and asks its questions, through the generated stubs."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from evaluation.judged import Document, JudgedSet, Question
from evaluation.metrics import DEPTH
from evaluation.variants import Variant
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub

DEADLINE_S = 60.0
STORED_AT_A_TIME = 250
WARM_UP_QUESTIONS = 20


class ForeignResult(Exception):
    """A search returned a memory that was not stored for its user."""


@dataclass(slots=True)
class Asked:
    """What came of one variant: each question's ranking (ids of documents, best first), and how long calls took."""

    rankings: dict[int, list[str]] = field(default_factory=dict)
    latencies_s: list[float] = field(default_factory=list)

    def percentile_ms(self, percent: float) -> float:
        """Returns a percentile of the calls' latencies."""
        return float(np.percentile(self.latencies_s, percent)) * 1e3


class Library:
    """A judged set as it is stored: knows which memory is which document."""

    def __init__(self, stub: MemoryServiceStub, judged: JudgedSet) -> None:
        """Stores the documents, in their order."""
        self._stub = stub
        self._documents = {user: self._store(user, documents) for user, documents in judged.by_user().items()}

    def _store(self, user: str, documents: Sequence[Document]) -> Mapping[str, str]:
        names: dict[str, str] = {}
        for some in _chunks(documents):
            request = pb.BatchInsertVectorsRequest(user_id=user, memories=[_memory(document) for document in some])
            reply = self._stub.BatchInsertVectors(request, timeout=DEADLINE_S)
            names |= {result.id: document.id for result, document in zip(reply.results, some, strict=True)}
        return names

    def search(self, question: Question, variant: Variant) -> list[str]:
        """Returns the documents found, best first.

        Raises:
            ForeignResult: One of them is not of the user who asks.
        """
        return self._named(
            question.user, self._stub.SearchSimilar(self._request(question, variant), timeout=DEADLINE_S)
        )

    def ask(
        self, questions: Sequence[Question], variants: Sequence[Variant], *, warm_up: int = WARM_UP_QUESTIONS
    ) -> dict[str, Asked]:
        """Asks every question by every variant, one call at a time; the variants take turns at going first.

        The first `warm_up` questions are asked once before, without being timed.

        Raises:
            ForeignResult: A user was given what belongs to another.
        """
        for question in questions[:warm_up]:
            for variant in variants:
                self.search(question, variant)
        asked = {variant.name: Asked() for variant in variants}
        for turn, question in enumerate(questions):
            first = turn % len(variants)
            for variant in (*variants[first:], *variants[:first]):
                request = self._request(question, variant)
                began = time.perf_counter()
                response = self._stub.SearchSimilar(request, timeout=DEADLINE_S)
                asked[variant.name].latencies_s.append(time.perf_counter() - began)
                asked[variant.name].rankings[question.number] = self._named(question.user, response)
        return asked

    def _request(self, question: Question, variant: Variant) -> pb.SearchSimilarRequest:
        request = pb.SearchSimilarRequest()
        request.CopyFrom(variant.options)
        request.user_id, request.text, request.limit = question.user, question.text, DEPTH
        request.skip_access_recording = True  # so that no answer depends on those before it
        return request

    def _named(self, user: str, response: pb.SearchSimilarResponse) -> list[str]:
        names = self._documents[user]
        ids = [result.memory.id for result in response.results]
        if foreign := [found for found in ids if found not in names]:
            raise ForeignResult(f"a search of {user} returned {foreign[0]}, which is not among its memories")
        return [names[found] for found in ids]


def _memory(document: Document) -> pb.NewMemory:
    memory = pb.NewMemory(content=document.text, conversation_id=document.conversation, importance=document.importance)
    if document.created_at is not None:
        memory.created_at.FromDatetime(document.created_at)
    return memory


def _chunks(documents: Sequence[Document]) -> Iterator[list[Document]]:
    rest = iter(documents)
    while some := list(islice(rest, STORED_AT_A_TIME)):
        yield some
