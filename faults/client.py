"""One caller in a closed loop: writes and reads for users of its own, repeats what was refused, and notes it all.

A call that is refused, or not answered in time, is repeated under the same request id until it is answered. As each
user has one caller, what a read must find is known exactly.
"""

import random
import struct
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
from google.rpc import error_details_pb2, status_pb2

from faults.journal import OK, Attempt, Journal, Kept, UserJournal
from harness import channel
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub

DIMENSIONS = 8
BATCH = 5
PAGE = 20
# Callers of a service in trouble do not wait for ever.
DEADLINE_S = 5.0
# Shorter than the RetryInfo that callers should obey: what is measured is when the service is back.
RETRY_PAUSE_S = 0.1
# Lets a machine of two cores breathe.
THINK_S = 0.01

# How often each kind of call is made.
MIX = {"insert": 30, "insert_batch": 5, "update": 17, "delete": 7, "restore": 4, "erase": 5, "search": 17, "recent": 15}

REPEATED = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}

# gRPC waits up to two minutes before it connects anew.
SOON_AGAIN = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 500),
)


class NotAnswered(Exception):
    """The call was given up: the caller was told to stop, or the answer was an error that no fault excuses."""


def open_channel(address: str) -> grpc.Channel:
    """Returns a channel that connects anew soon after its connection broke."""
    return channel.open_channel(address, *SOON_AGAIN)


@dataclass(slots=True)
class Client:
    """One caller."""

    stub: MemoryServiceStub
    user_ids: Sequence[str]
    seed: int
    texts: bool = False
    """Whether it leaves embedding to the server."""
    journal: Journal = field(default_factory=Journal)
    _stop: threading.Event = field(default_factory=threading.Event)
    _random: random.Random = field(init=False)
    _number: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311 - no secret
        self.journal.users = {user_id: UserJournal() for user_id in self.user_ids}

    def run(self) -> None:
        """Makes calls until told to stop."""
        kinds, weights = list(MIX), list(MIX.values())
        while not self._stop.is_set():
            user_id = self._random.choice(self.user_ids)
            (kind,) = self._random.choices(kinds, weights)
            try:
                getattr(self, f"_{kind}")(user_id, self.journal.users[user_id])
            except NotAnswered:
                continue
            self.journal.acknowledged[kind] += 1
            self._stop.wait(THINK_S)

    def stop(self) -> None:
        """Lets the call under way be the last one."""
        self._stop.set()

    def _insert(self, user_id: str, user: UserJournal) -> None:
        memory = self._new_memory(user_id)
        request = pb.InsertVectorRequest(user_id=user_id, memory=memory)
        reply = self._send(request, lambda: user.unsettled_contents.add(memory.content))
        self._require_own(user_id, [reply.memory])
        user.kept[reply.memory.id] = Kept(memory.content, "", reply.memory.etag)

    def _insert_batch(self, user_id: str, user: UserJournal) -> None:
        memories = [self._new_memory(user_id) for _ in range(BATCH)]
        contents = [memory.content for memory in memories]
        request = pb.BatchInsertVectorsRequest(user_id=user_id, memories=memories)
        reply = self._send(request, lambda: user.unsettled_contents.update(contents))
        for content, result in zip(contents, reply.results, strict=True):
            user.kept[result.id] = Kept(content, "", result.etag)

    def _update(self, user_id: str, user: UserJournal) -> None:
        if (memory_id := self._any_of(user)) is None:
            return
        kept, summary = user.kept[memory_id], f"{user_id} {self._next_number()}"
        request = pb.UpdateVectorRequest(
            user_id=user_id, id=memory_id, memory=pb.Memory(summary=summary), etag=kept.etag
        )
        reply = self._send(request, lambda: user.unsettled_ids.add(memory_id))
        self._require_own(user_id, [reply.memory])
        kept.summary, kept.etag, kept.changes = reply.memory.summary, reply.memory.etag, kept.changes + 1
        if reply.memory.summary != summary:
            self.journal.wrong_reads.append(f"an update of {memory_id} was answered with another one's result")

    def _delete(self, user_id: str, user: UserJournal) -> None:
        if (memory_id := self._any_of(user)) is None:
            return
        kept = user.kept[memory_id]
        request = pb.DeleteVectorRequest(user_id=user_id, id=memory_id, etag=kept.etag)
        reply = self._send(request, lambda: user.unsettled_ids.add(memory_id))
        kept.deleted, kept.etag, kept.changes = True, reply.memory.etag, kept.changes + 1

    def _restore(self, user_id: str, user: UserJournal) -> None:
        if (memory_id := self._any_of(user, deleted=True)) is None:
            return
        kept = user.kept[memory_id]
        request = pb.RestoreVectorRequest(user_id=user_id, id=memory_id, etag=kept.etag)
        reply = self._send(request, lambda: user.unsettled_ids.add(memory_id))
        self._require_own(user_id, [reply.memory])
        kept.deleted, kept.etag, kept.changes = False, reply.memory.etag, kept.changes + 1

    def _erase(self, user_id: str, user: UserJournal) -> None:
        if (memory_id := self._any_of(user)) is None:
            return
        request = pb.DeleteVectorRequest(user_id=user_id, id=memory_id, hard=True)
        self._send(request, lambda: user.unsettled_ids.add(memory_id))
        del user.kept[memory_id]
        user.erased.add(memory_id)

    def _search(self, user_id: str, user: UserJournal) -> None:
        request = pb.SearchSimilarRequest(user_id=user_id, limit=PAGE)
        if self.texts:
            request.text = f"number {self._random.randrange(10)}"
            request.mode = pb.SEARCH_MODE_DENSE
        else:
            request.embedding.CopyFrom(self._vector())
        reply = self._send(request)
        self._check_read(user_id, user, [result.memory for result in reply.results])

    def _recent(self, user_id: str, user: UserJournal) -> None:
        reply = self._send(pb.GetRecentRequest(user_id=user_id, page_size=PAGE))
        self._check_read(user_id, user, reply.memories)

    def _check_read(self, user_id: str, user: UserJournal, found: Sequence[pb.Memory]) -> None:
        self._require_own(user_id, found)
        if not user.settled:
            return
        live = user.live
        wrong = [memory.id for memory in found if memory.id not in live or memory.summary != live[memory.id].summary]
        if wrong or len(found) != min(PAGE, len(live)):
            self.journal.wrong_reads.append(f"{user_id} found {len(found)} of {len(live)}, {wrong} of them wrong")

    def _require_own(self, user_id: str, memories: Sequence[pb.Memory]) -> None:
        strangers = [m.id for m in memories if m.user_id != user_id or not m.content.startswith(f"{user_id} ")]
        if strangers:
            self.journal.strangers.append(f"{user_id} was shown {strangers}")

    def _any_of(self, user: UserJournal, *, deleted: bool = False) -> str | None:
        settled = [
            memory_id
            for memory_id, kept in user.kept.items()
            if kept.deleted is deleted and memory_id not in user.unsettled_ids
        ]
        return self._random.choice(settled) if settled else None

    def _new_memory(self, user_id: str) -> pb.NewMemory:
        content = f"{user_id} number {self._next_number()}"
        return pb.NewMemory(content=content, embedding=None if self.texts else self._vector())

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    def _vector(self) -> pb.Vector:
        values = [self._random.gauss(0, 1) for _ in range(DIMENSIONS)]
        return pb.Vector(f32_le=struct.pack(f"<{DIMENSIONS}f", *values))

    def _send(self, request: Any, unsettled: Callable[[], object] = lambda: None) -> Any:
        """Returns the reply, however many attempts it takes; `unsettled` is called where there was none."""
        if "request_id" in request.DESCRIPTOR.fields_by_name:
            request.request_id = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
        call = getattr(self.stub, type(request).__name__.removesuffix("Request"))
        while not self._stop.is_set():
            started_at = time.monotonic()
            try:
                reply = call(request, timeout=DEADLINE_S)
            except grpc.RpcError as error:
                refusal = describe(error)
                self.journal.attempts.append(Attempt(started_at, time.monotonic(), refusal))
                if not _may_be_repeated(error):
                    self.journal.unexpected.append(f"{type(request).__name__}: {refusal}")
                    break
                self._stop.wait(RETRY_PAUSE_S)
            else:
                self.journal.attempts.append(Attempt(started_at, time.monotonic(), OK))
                return reply
        unsettled()
        raise NotAnswered


def describe(error: grpc.RpcError) -> str:
    """Returns the status of a failed call and the reason the service gave, or gRPC's own words where it gave none."""
    call = cast("grpc.Call", error)
    reason = _reason(call)
    return f"{call.code().name} {reason}" if reason else f"{call.code().name} (gRPC)"


def _reason(call: grpc.Call) -> str | None:
    for key, value in call.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return str(info.reason)
    return None


def _may_be_repeated(error: grpc.RpcError) -> bool:
    call = cast("grpc.Call", error)
    if call.code() in REPEATED:
        return True
    # gRPC itself says CANCELLED of calls that arrive in the instant in which a server stops.
    reason = _reason(call)
    return (call.code() is grpc.StatusCode.CANCELLED and reason is None) or (
        call.code() is grpc.StatusCode.ABORTED and reason == "CONFLICT"
    )
