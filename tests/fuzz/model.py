"""What the service is to do with one user's memories, as a model: operations, and the states that explain replies.

A reply either is explained by a state, and then says which state comes next, or it is not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import grpc

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import failure_of
from tests.api.messages import axis

TIMEOUT_S = 30.0
CALLER_EMBEDDING = axis(0)


@dataclass(frozen=True, slots=True)
class Stored:
    """A memory, live or soft-deleted."""

    etag: str
    importance: int
    deleted: bool = False


State = Mapping[str, Stored]
"""A user's memories by id."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a caller learned."""

    reason: str = ""
    """Of the error; empty for none."""
    memory: Stored | None = None
    memories: Mapping[str, Stored] = field(default_factory=dict)
    live_count: int = 0
    deleted_count: int = 0


class Operation(Protocol):
    """Something a client does."""

    def send(self, stub: MemoryServiceStub, user_id: str) -> Outcome:
        """Does it; raises grpc.RpcError."""
        ...

    def after(self, before: State, outcome: Outcome) -> State | None:
        """Returns the state after it, None where `before` does not explain the outcome."""
        ...


def perform(operation: Operation, stub: MemoryServiceStub, user_id: str) -> Outcome:
    """Does it, and returns also how it was refused."""
    try:
        return operation.send(stub, user_id)
    except grpc.RpcError as error:
        return Outcome(failure_of(error).reason)


def _stored(memory: pb.Memory) -> Stored:
    return Stored(memory.etag, memory.importance, memory.HasField("deleted_at"))


@dataclass(frozen=True, slots=True)
class Insert:
    """InsertVector under an id of the caller's."""

    id: str
    importance: int

    def send(self, stub: MemoryServiceStub, user_id: str) -> Outcome:
        """See Operation."""
        memory = pb.NewMemory(id=self.id, content="x", importance=self.importance, embedding=CALLER_EMBEDDING)
        reply = stub.InsertVector(pb.InsertVectorRequest(user_id=user_id, memory=memory), timeout=TIMEOUT_S)
        return Outcome(memory=_stored(reply.memory))

    def after(self, before: State, outcome: Outcome) -> State | None:
        """See Operation."""
        if self.id in before:
            return before if outcome == Outcome("MEMORY_EXISTS") else None
        memory = outcome.memory
        if outcome.reason or memory is None or memory != Stored(memory.etag, self.importance):
            return None
        return {**before, self.id: memory}


@dataclass(frozen=True, slots=True)
class _Change:
    """A change of one memory, which may demand an etag."""

    id: str
    etag: str

    def _refusal(self, before: State) -> str:
        """Returns the reason that any change is refused for, empty for none."""
        memory = before.get(self.id)
        if memory is None:
            return "MEMORY_NOT_FOUND"
        return "ETAG_MISMATCH" if self.etag not in {"", memory.etag} else ""

    def _changed(self, before: State, outcome: Outcome, **fields: Any) -> State | None:
        """Returns the state with the memory changed so, under an etag that it did not have before."""
        memory, old = outcome.memory, before[self.id]
        if memory is None or memory.etag == old.etag or memory != replace(old, etag=memory.etag, **fields):
            return None
        return {**before, self.id: memory}


@dataclass(frozen=True, slots=True)
class Update(_Change):
    """UpdateVector."""

    importance: int

    def send(self, stub: MemoryServiceStub, user_id: str) -> Outcome:
        """See Operation."""
        request = pb.UpdateVectorRequest(
            user_id=user_id, id=self.id, etag=self.etag, memory=pb.Memory(importance=self.importance)
        )
        return Outcome(memory=_stored(stub.UpdateVector(request, timeout=TIMEOUT_S).memory))

    def after(self, before: State, outcome: Outcome) -> State | None:
        """See Operation."""
        reason = self._refusal(before) or ("MEMORY_DELETED" if before[self.id].deleted else "")
        if reason or outcome.reason:
            return before if outcome == Outcome(reason) else None
        return self._changed(before, outcome, importance=self.importance)


@dataclass(frozen=True, slots=True)
class Delete(_Change):
    """DeleteVector."""

    hard: bool

    def send(self, stub: MemoryServiceStub, user_id: str) -> Outcome:
        """See Operation."""
        request = pb.DeleteVectorRequest(user_id=user_id, id=self.id, etag=self.etag, hard=self.hard)
        return Outcome(memory=_stored(stub.DeleteVector(request, timeout=TIMEOUT_S).memory))

    def after(self, before: State, outcome: Outcome) -> State | None:
        """See Operation."""
        reason = self._refusal(before)
        if not reason and not self.hard and before[self.id].deleted:
            reason = "MEMORY_NOT_FOUND"
        if reason or outcome.reason:
            return before if outcome == Outcome(reason) else None
        if not self.hard:
            return self._changed(before, outcome, deleted=True)
        if outcome.memory != before[self.id]:
            return None
        return {memory_id: memory for memory_id, memory in before.items() if memory_id != self.id}


@dataclass(frozen=True, slots=True)
class Restore(_Change):
    """RestoreVector."""

    def send(self, stub: MemoryServiceStub, user_id: str) -> Outcome:
        """See Operation."""
        request = pb.RestoreVectorRequest(user_id=user_id, id=self.id, etag=self.etag)
        return Outcome(memory=_stored(stub.RestoreVector(request, timeout=TIMEOUT_S).memory))

    def after(self, before: State, outcome: Outcome) -> State | None:
        """See Operation."""
        reason = self._refusal(before) or ("" if before[self.id].deleted else "MEMORY_NOT_DELETED")
        if reason or outcome.reason:
            return before if outcome == Outcome(reason) else None
        return self._changed(before, outcome, deleted=False)


@dataclass(frozen=True, slots=True)
class Get:
    """GetVector."""

    id: str

    def send(self, stub: MemoryServiceStub, user_id: str) -> Outcome:
        """See Operation."""
        request = pb.GetVectorRequest(user_id=user_id, id=self.id)
        return Outcome(memory=_stored(stub.GetVector(request, timeout=TIMEOUT_S).memory))

    def after(self, before: State, outcome: Outcome) -> State | None:
        """See Operation."""
        memory = before.get(self.id)
        expected = Outcome("MEMORY_NOT_FOUND") if memory is None else Outcome(memory=memory)
        return before if outcome == expected else None


def _live(state: State) -> dict[str, Stored]:
    return {memory_id: memory for memory_id, memory in state.items() if not memory.deleted}


@dataclass(frozen=True, slots=True)
class Search:
    """SearchSimilar for all live memories, or for those at least so important."""

    min_importance: int = 1

    def send(self, stub: MemoryServiceStub, user_id: str) -> Outcome:
        """See Operation."""
        request = pb.SearchSimilarRequest(user_id=user_id, embedding=CALLER_EMBEDDING, limit=1_000)
        request.filter.min_importance = self.min_importance
        found = stub.SearchSimilar(request, timeout=TIMEOUT_S).results
        return Outcome(memories={result.memory.id: _stored(result.memory) for result in found})

    def after(self, before: State, outcome: Outcome) -> State | None:
        """See Operation."""
        found = {id_: one for id_, one in _live(before).items() if one.importance >= self.min_importance}
        return before if outcome == Outcome(memories=found) else None


@dataclass(frozen=True, slots=True)
class Recent:
    """GetRecent of everything, or of what is live."""

    show_deleted: bool

    def send(self, stub: MemoryServiceStub, user_id: str) -> Outcome:
        """See Operation."""
        request = pb.GetRecentRequest(user_id=user_id, page_size=1_000, show_deleted=self.show_deleted)
        found = stub.GetRecent(request, timeout=TIMEOUT_S).memories
        return Outcome(memories={memory.id: _stored(memory) for memory in found})

    def after(self, before: State, outcome: Outcome) -> State | None:
        """See Operation."""
        expected = dict(before) if self.show_deleted else _live(before)
        return before if outcome == Outcome(memories=expected) else None


@dataclass(frozen=True, slots=True)
class Stats:
    """GetStats."""

    def send(self, stub: MemoryServiceStub, user_id: str) -> Outcome:
        """See Operation."""
        reply = stub.GetStats(pb.GetStatsRequest(user_id=user_id), timeout=TIMEOUT_S)
        return Outcome(live_count=reply.live_count, deleted_count=reply.deleted_count)

    def after(self, before: State, outcome: Outcome) -> State | None:
        """See Operation."""
        live = len(_live(before))
        expected = Outcome(live_count=live, deleted_count=len(before) - live)
        return before if outcome == expected else None
