"""DeleteVector and RestoreVector: soft, hard, back again, and purged when the time has come."""

import uuid
from datetime import UTC, timedelta
from typing import Any

import grpc
import pytest

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import failure, send
from tests.api.conftest import ReadContents
from tests.api.messages import axis, get, insert, stats
from tests.api.waiting import eventually
from tests.fix_server import StartServer


@pytest.fixture
def memory(stub: MemoryServiceStub, user_id: str) -> pb.Memory:
    """A memory with every field set."""
    return insert(stub, user_id, "content", summary="s", metadata={"k": "v"}, conversation_id="c", importance=7)


def delete(memory: pb.Memory, **fields: Any) -> pb.DeleteVectorRequest:
    return pb.DeleteVectorRequest(user_id=memory.user_id, id=memory.id, **fields)


def restore(memory: pb.Memory, *, etag: str = "") -> pb.RestoreVectorRequest:
    return pb.RestoreVectorRequest(user_id=memory.user_id, id=memory.id, etag=etag)


def found_by_search(stub: MemoryServiceStub, user_id: str, *, show_deleted: bool = False) -> list[str]:
    request = pb.SearchSimilarRequest(user_id=user_id, embedding=axis(0), show_deleted=show_deleted)
    return [result.memory.id for result in send(stub, request).results]


def listed(stub: MemoryServiceStub, user_id: str, *, show_deleted: bool = False) -> list[str]:
    request = pb.GetRecentRequest(user_id=user_id, show_deleted=show_deleted)
    return [memory.id for memory in send(stub, request).memories]


def test_a_soft_deleted_memory_is_hidden_at_once(stub: MemoryServiceStub, user_id: str, memory: pb.Memory) -> None:
    gone = send(stub, delete(memory)).memory

    assert gone.purge_at.ToDatetime(UTC) - gone.deleted_at.ToDatetime(UTC) == timedelta(days=30)
    assert (gone.content, gone.summary, len(gone.metadata.fields)) == ("", "", 0)
    assert (gone.id, gone.conversation_id, gone.importance) == (memory.id, "c", 7)
    assert found_by_search(stub, user_id) == listed(stub, user_id) == []
    assert found_by_search(stub, user_id, show_deleted=True) == [memory.id]
    assert listed(stub, user_id, show_deleted=True) == [memory.id]
    assert (stats(stub, user_id).live_count, stats(stub, user_id).deleted_count) == (0, 1)
    assert get(stub, user_id, memory.id).etag == gone.etag


def test_a_restored_memory_is_what_it_was(stub: MemoryServiceStub, user_id: str, memory: pb.Memory) -> None:
    send(stub, delete(memory))

    restored = send(stub, restore(memory)).memory

    assert get(stub, user_id, memory.id) == restored
    assert found_by_search(stub, user_id) == listed(stub, user_id) == [memory.id]
    for field in ("updated_at", "etag"):
        memory.ClearField(field)
        restored.ClearField(field)
    assert restored == memory


def test_a_hard_deleted_memory_is_gone(stub: MemoryServiceStub, user_id: str, memory: pb.Memory) -> None:
    gone = send(stub, delete(memory, hard=True)).memory

    assert gone.id == memory.id
    assert not gone.HasField("purge_at")
    assert failure(lambda: get(stub, user_id, memory.id)).reason == "MEMORY_NOT_FOUND"
    assert failure(lambda: send(stub, restore(memory))).reason == "MEMORY_NOT_FOUND"
    assert listed(stub, user_id, show_deleted=True) == []
    assert (stats(stub, user_id).live_count, stats(stub, user_id).stored_bytes) == (0, 0)


def test_a_soft_deleted_memory_can_be_erased(stub: MemoryServiceStub, user_id: str, memory: pb.Memory) -> None:
    send(stub, delete(memory))

    erased = send(stub, delete(memory, hard=True)).memory

    assert erased.HasField("deleted_at")
    assert listed(stub, user_id, show_deleted=True) == []


def test_deleting_twice_finds_nothing_the_second_time(
    stub: MemoryServiceStub, memory: pb.Memory, contents: ReadContents
) -> None:
    send(stub, delete(memory))
    before = contents()

    refused = failure(lambda: send(stub, delete(memory)))

    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "MEMORY_NOT_FOUND")
    assert send(stub, delete(memory, allow_missing=True)) == pb.DeleteVectorResponse()
    assert contents() == before


@pytest.mark.parametrize("hard", [False, True])
def test_what_never_was_can_be_deleted_if_missing_is_allowed(
    stub: MemoryServiceStub, user_id: str, contents: ReadContents, *, hard: bool
) -> None:
    before = contents()
    request = pb.DeleteVectorRequest(user_id=user_id, id=str(uuid.uuid4()), hard=hard)

    assert failure(lambda: send(stub, request)).code is grpc.StatusCode.NOT_FOUND
    request.allow_missing = True
    assert send(stub, request) == pb.DeleteVectorResponse()
    assert contents() == before


@pytest.mark.parametrize("hard", [False, True])
def test_a_stale_etag_keeps_the_memory(stub: MemoryServiceStub, user_id: str, memory: pb.Memory, *, hard: bool) -> None:
    refused = failure(lambda: send(stub, delete(memory, hard=hard, etag="stale", allow_missing=True)))

    assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    assert listed(stub, user_id) == [memory.id]
    assert send(stub, delete(memory, hard=hard, etag=memory.etag)).memory.id == memory.id


def test_restoring_a_live_memory_is_refused(stub: MemoryServiceStub, memory: pb.Memory) -> None:
    refused = failure(lambda: send(stub, restore(memory)))

    assert (refused.code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "MEMORY_NOT_DELETED")


def test_restoring_takes_an_etag(stub: MemoryServiceStub, memory: pb.Memory) -> None:
    gone = send(stub, delete(memory)).memory

    assert failure(lambda: send(stub, restore(memory, etag=memory.etag))).reason == "ETAG_MISMATCH"
    assert send(stub, restore(memory, etag=gone.etag)).memory.content == "content"


def test_an_erased_memory_takes_its_accesses_along(stub: MemoryServiceStub, user_id: str, memory: pb.Memory) -> None:
    get(stub, user_id, memory.id, skip_access_recording=False)
    eventually(lambda: stats(stub, user_id).total_accesses == 1)

    send(stub, delete(memory, hard=True))

    assert stats(stub, user_id).total_accesses == 0
    insert(stub, user_id, id=memory.id)
    assert get(stub, user_id, memory.id).access_count == 0


@pytest.fixture
def forgetful(start_server: StartServer) -> MemoryServiceStub:
    """The stub of a server that purges soft-deleted memories after 0.2 s."""
    return start_server(deleted_retention_days=0.2 / 86_400, purge_interval_s=0.2).stub


def test_a_deleted_memory_is_purged_when_its_time_has_come(forgetful: MemoryServiceStub, user_id: str) -> None:
    kept, gone = insert(forgetful, user_id, "kept"), insert(forgetful, user_id, "gone")
    send(forgetful, delete(gone))

    eventually(lambda: listed(forgetful, user_id, show_deleted=True) == [kept.id])

    assert failure(lambda: send(forgetful, restore(gone))).reason == "MEMORY_NOT_FOUND"
    assert get(forgetful, user_id, kept.id).content == "kept"
