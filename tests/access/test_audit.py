"""The audit trail: which calls leave an entry, and how many of those that were refused."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import grpc
import pytest

from db.audit import AuditEntry
from memory_service.access import audit as of_audit
from memory_service.access.admission import Admission, AdmittedCall
from memory_service.access.audit import Audit
from memory_service.access.principal import EVERYONE, Principal, Role
from memory_service.v1 import memory_pb2 as pb
from tests.clock import SecondsClock

SERVICE = "/memory_service.v1.MemoryService/"
ADA, BOB = (Principal(subject=f"key:{name}", role=Role.WRITER, scope=EVERYONE) for name in ("ada", "bob"))


class Entries:
    """Keeps entries."""

    def __init__(self) -> None:
        self.made: list[AuditEntry] = []
        self.left_out = 0

    def add(self, entry: AuditEntry) -> None:
        """Takes an entry."""
        self.made.append(entry)

    def write_now(self, entry: AuditEntry, *, timeout_s: float | None) -> None:
        """Takes an entry."""
        del timeout_s
        self.made.append(entry)

    def leave_out(self) -> None:
        """Counts one that is not made."""
        self.left_out += 1


class Context:
    """What entries need of a call's context."""

    def peer(self) -> str:
        """Returns where the call comes from."""
        return "ipv4:192.0.2.7:52110"


@pytest.fixture
def entries() -> Entries:
    return Entries()


@pytest.fixture
def clock() -> SecondsClock:
    return SecondsClock()


@pytest.fixture
def trail(entries: Entries, clock: SecondsClock) -> Audit:
    return Audit(entries, level="writes", clock=lambda: datetime.now(UTC), monotonic=clock)


def end(trail: Audit, code: grpc.StatusCode, *, method: str = "InsertVector", caller: Principal = ADA) -> None:
    """Ends a call whose request had been read."""
    context: Any = Context()
    call = AdmittedCall(Admission(), SERVICE + method, context)
    call.principal = caller
    call.last_request = pb.InsertVectorRequest(user_id="u")
    trail.ended(call, code, None if code is grpc.StatusCode.OK else "SOME_REASON")


@pytest.mark.parametrize("code", [grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_refusals_cannot_flood_the_log(
    trail: Audit, entries: Entries, clock: SecondsClock, code: grpc.StatusCode
) -> None:
    burst = int(of_audit.REFUSALS_BURST_S * of_audit.REFUSALS_PER_S)
    for _ in range(1_000):
        end(trail, code)
    assert (len(entries.made), entries.left_out) == (burst, 1_000 - burst)
    # Others are not concerned, nor is what was not refused.
    end(trail, code, caller=BOB)
    end(trail, grpc.StatusCode.OK)
    end(trail, grpc.StatusCode.NOT_FOUND)
    assert [(entry.subject, entry.code) for entry in entries.made[burst:]] == [
        ("key:bob", code.name),
        ("key:ada", "OK"),
        ("key:ada", "NOT_FOUND"),
    ]
    clock.now += 1.0
    end(trail, code)
    end(trail, code)
    assert len(entries.made) == burst + 4


def test_a_read_leaves_an_entry_only_where_it_was_denied(trail: Audit, entries: Entries) -> None:
    for code in (grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.PERMISSION_DENIED):
        end(trail, code, method="GetVector")
    assert [entry.code for entry in entries.made] == ["PERMISSION_DENIED"]
    assert entries.left_out == 0


@pytest.mark.parametrize(
    ("code", "user_id"), [(grpc.StatusCode.INVALID_ARGUMENT, "ada"), (grpc.StatusCode.PERMISSION_DENIED, "bob")]
)
def test_what_a_stream_did_is_of_its_user_whatever_was_read_ahead(
    trail: Audit, entries: Entries, code: grpc.StatusCode, user_id: str
) -> None:
    context: Any = Context()
    call = AdmittedCall(Admission(audit=trail), SERVICE + "ImportVectors", context)
    for named in ("ada", "bob"):  # the second one will be refused: a stream is about one user
        call.check(pb.ImportVectorsRequest(user_id=named, memories=[pb.NewMemory(id=str(UUID(int=2)))]))
    call.streamed(pb.ImportVectorsResponse(ids=[str(UUID(int=1))]))
    call.end(code, "SOME_REASON")
    assert [(entry.user_id, entry.memory_ids, entry.code) for entry in entries.made] == [
        ("ada", (UUID(int=1),), "OK"),
        (user_id, (), code.name),
    ]
