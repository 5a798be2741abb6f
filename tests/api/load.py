"""Clients at work: each writes for a user of its own, repeats what it is told to, and remembers what was confirmed."""

import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, cast

import grpc

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import failure_of
from tests.api.messages import axis, new_memory

# After these a client cannot always know whether its call was carried out, but may repeat it under its request_id.
REPEATABLE = {"DATABASE_UNAVAILABLE", "OVERLOADED"}
LIMIT_S = 30.0
PAUSE_S = 0.02


class ServerGone(Exception):
    """The server takes no calls any more."""


@dataclass(slots=True)
class Client:
    """One user's client: inserts, batches, updates, deletes and searches in turn."""

    stub: MemoryServiceStub
    user_id: str = field(default_factory=lambda: f"client-{uuid.uuid4().hex[:12]}")
    confirmed: dict[str, str] = field(default_factory=dict)
    """Summaries by id, of what the server has confirmed to be stored."""
    erased: set[str] = field(default_factory=set)
    """Ids that the server has confirmed to be erased."""
    refused: list[str] = field(default_factory=list)
    """Reasons that calls were refused for, and the call then repeated."""

    def run(self, stop: threading.Event) -> None:
        """Works until told to stop, or until nobody listens at the server's address any more."""
        turn = 0
        while not stop.is_set():
            try:
                self._take_turn(turn)
            except ServerGone:
                return
            turn += 1

    def _take_turn(self, turn: int) -> None:
        ids = list(self.confirmed)
        match turn % 6:
            case 0 | 1:
                self._insert()
            case 2:
                self._insert_batch()
            case 3:
                self._update(ids[turn % len(ids)], f"turn {turn}")
            case 4:
                self._erase(ids[turn % len(ids)])
            case _:
                self._search()

    def _insert(self) -> None:
        memory = new_memory("x" * 500, summary="new", embedding=axis(len(self.confirmed) % 8))
        stored = self._send(pb.InsertVectorRequest(user_id=self.user_id, memory=memory)).memory
        self.confirmed[stored.id] = stored.summary

    def _insert_batch(self) -> None:
        memories = [new_memory("x" * 500, summary="of a batch")] * 5
        reply = self._send(pb.BatchInsertVectorsRequest(user_id=self.user_id, memories=memories))
        self.confirmed.update({result.id: "of a batch" for result in reply.results})

    def _update(self, memory_id: str, summary: str) -> None:
        memory = pb.Memory(summary=summary)
        updated = self._send(pb.UpdateVectorRequest(user_id=self.user_id, id=memory_id, memory=memory)).memory
        self.confirmed[memory_id] = updated.summary

    def _erase(self, memory_id: str) -> None:
        self._send(pb.DeleteVectorRequest(user_id=self.user_id, id=memory_id, hard=True))
        del self.confirmed[memory_id]
        self.erased.add(memory_id)

    def _search(self) -> None:
        found = self._send(pb.SearchSimilarRequest(user_id=self.user_id, embedding=axis(0), limit=5)).results
        assert {result.memory.id for result in found} <= set(self.confirmed)

    def _send(self, request: Any) -> Any:
        """Returns the reply, however often it takes."""
        if "request_id" in request.DESCRIPTOR.fields_by_name:
            request.request_id = str(uuid.uuid4())
        rpc = type(request).__name__.removesuffix("Request")
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            try:
                return getattr(self.stub, rpc)(request, timeout=LIMIT_S)
            except grpc.RpcError as error:
                if _is_gone(error):
                    raise ServerGone from error
                self.refused.append(failure_of(error).reason)
                if self.refused[-1] not in REPEATABLE:
                    raise
                time.sleep(PAUSE_S)
        raise TimeoutError(f"{rpc} was not carried out in time: {self.refused[-3:]}")


def _is_gone(error: grpc.RpcError) -> bool:
    """Tells whether gRPC itself found nobody to connect to, or was told to go elsewhere.

    A call that arrives in the instant in which a server stops is answered CANCELLED by gRPC, and never begun.
    """
    call = cast("grpc.Call", error)
    has_details = any(key == "grpc-status-details-bin" for key, _ in call.trailing_metadata() or ())
    return call.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED} and not has_details
