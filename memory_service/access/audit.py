"""The audit trail: who called what about whom, where from, and how it ended, as entries of the audit log.

Of requests and replies it takes the ids in fields of certain names, and nothing else. Callers do not wait for an entry
to be written, but administrators do: their calls are written down before they do anything.
"""

import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import cache
from typing import Any, Literal, Protocol
from uuid import UUID

import grpc
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from db.audit import AuditEntry
from memory_service.access import authorization
from memory_service.access.admission import AdmittedCall
from memory_service.access.principal import Role
from memory_service.access.token_buckets import TokenBuckets

AuditLevel = Literal["writes", "all"]
"""`all`: reads as well."""

MAX_CHARACTERS = 255

# Refusals cost little, and each a caller can cause as fast as it can ask: 470 bytes of the log a time. Of those in
# excess of a minute's worth at once and one a second, no entry is made.
REFUSALS = frozenset({grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.RESOURCE_EXHAUSTED})
REFUSALS_PER_S, REFUSALS_BURST_S = 1.0, 60.0
_KEY_ID = re.compile(r"[0-9a-f]{16}")

# The fields that name memories, and those whose messages do.
ID_FIELDS = ("id", "ids")
PART_FIELDS = ("memory", "memories", "results", "responses")


class Entries(Protocol):
    """Where entries go: `AuditBuffer`."""

    def add(self, entry: AuditEntry) -> None:
        """Takes an entry, to be written soon."""
        ...

    def write_now(self, entry: AuditEntry, *, timeout_s: float | None) -> None:
        """Writes an entry before it returns; raises a DatabaseError where that fails."""
        ...

    def leave_out(self) -> None:
        """Takes note of an entry that is not made."""
        ...


class Audit:
    """Makes entries of the calls that are to be remembered.

    These are writes and administrators' calls, with `all` also reads, of callers who have been recognized; and whatever
    was refused for want of permission. Who is not recognized leaves no entry: the log of the server has the refusal.
    Of refusals, each caller leaves so many entries and no more.
    """

    def __init__(
        self,
        entries: Entries,
        *,
        level: AuditLevel,
        clock: Callable[[], datetime],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begins with nothing; `clock` returns the time of entries, `monotonic` seconds."""
        self._entries = entries
        self._refusals = TokenBuckets(rate_per_s=REFUSALS_PER_S, burst_s=REFUSALS_BURST_S, clock=monotonic)
        self._least = Role.READER if level == "all" else Role.WRITER
        self._clock = clock

    def admitted(self, call: AdmittedCall) -> None:
        """Writes down that an administrator's call begins; raises a DatabaseError where that fails."""
        if _role(call.method) is Role.ADMIN:
            entry = self._entry(call, reply=None, code=None, reason=None)
            self._entries.write_now(entry, timeout_s=call.context.time_remaining())

    def streamed(self, call: AdmittedCall, reply: Any) -> None:
        """Takes note of a reply that acknowledges a part of what a stream is to do."""
        if _role(call.method) >= self._least:
            self._entries.add(self._entry(call, reply=reply, code=grpc.StatusCode.OK, reason=None))

    def ended(self, call: AdmittedCall, code: grpc.StatusCode, reason: str | None) -> None:
        """Takes note of the end of a call."""
        was_denied = code is grpc.StatusCode.PERMISSION_DENIED
        if was_denied or (call.last_request is not None and _role(call.method) >= self._least):
            if code in REFUSALS and self._refusals.take(call.principal.subject, 1) > 0:
                self._entries.leave_out()
                return
            self._entries.add(self._entry(call, reply=call.reply, code=code, reason=reason))

    def _entry(
        self, call: AdmittedCall, *, reply: Message | None, code: grpc.StatusCode | None, reason: str | None
    ) -> AuditEntry:
        request: Message | None = call.last_request
        # Streams are read ahead: their last request may be one that nobody has looked at yet, about anybody.
        user_id = getattr(request, "user_id", "") if code is grpc.StatusCode.PERMISSION_DENIED else call.user_id
        ids = memory_ids(reply)
        if not ids and not call.is_stream:  # what a stream has done stands in the entries of its replies
            ids = memory_ids(request)
        count, key_id = len(ids), None
        if _role(call.method) is Role.ADMIN:
            count, key_id = _memory_count(request, reply), _key_id(request, reply)
        return AuditEntry(
            at=self._clock(),
            id=UUID(int=random.getrandbits(128)),  # `secrets` would ask the kernel
            subject=_safe(call.principal.subject),
            method=call.method.rpartition("/")[2],
            user_id=_safe(user_id) or None,
            memory_ids=ids,
            memory_count=count,
            key_id=key_id,
            request_id=call.request_id,
            peer=_safe(call.context.peer()),
            code=None if code is None else code.name,
            reason=reason,
        )


@cache
def _role(method: str) -> Role:
    return authorization.RULES.get(method, authorization.ADMINISTRATION).role


def memory_ids(message: Message | None) -> tuple[UUID, ...]:
    """Returns the ids of the memories that a request or reply names; what is no UUID is left out."""
    if message is None:
        return ()
    found = []
    for text in _id_texts(message):
        try:
            found.append(UUID(text))
        except ValueError:
            continue
    return tuple(found)


def _id_texts(message: Any) -> Iterator[str]:
    for name, is_part, is_repeated in _named_fields(message.DESCRIPTOR):
        value = getattr(message, name)
        values: Iterable[Any] = value if is_repeated else (value,)
        if not is_part:
            yield from values
        else:
            for part in values:
                yield from _id_texts(part)


@cache
def _named_fields(descriptor: Descriptor) -> tuple[tuple[str, bool, bool], ...]:
    """Returns the name of each field to look at, whether it is a message, and whether there are many."""
    found = []
    for field in descriptor.fields:
        is_part = field.message_type is not None
        if field.name in (PART_FIELDS if is_part else ID_FIELDS):
            found.append((field.name, is_part, field.is_repeated))
    return tuple(found)


def _memory_count(request: Any, reply: Any) -> int:
    """Returns how many memories an administrator's call erased."""
    if hasattr(reply, "contents"):
        return 0 if request.dry_run else int(reply.contents.memory_count)
    return int(getattr(reply, "memory_count", 0))


def _key_id(request: Any, reply: Any) -> str | None:
    """Returns the API key that an administrator's call was about."""
    if hasattr(reply, "key"):
        return str(reply.key.id)
    return key_id_in(getattr(request, "key_id", ""))


def key_id_in(text: str) -> str | None:
    """Returns the id of a key; None for what is none, which may be a whole key with its secret given by mistake."""
    return text if _KEY_ID.fullmatch(text) else None


def _safe(text: str) -> str:
    """Returns a text that PostgreSQL can store."""
    if text.isascii() and text.isprintable():
        return text[:MAX_CHARACTERS]
    storable = text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
    return storable[:MAX_CHARACTERS]
