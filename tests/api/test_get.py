"""GetVector: views, encodings, deleted memories, and the counting of accesses."""

import uuid

import grpc
import numpy as np
import pytest

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import failure, send
from tests.api.messages import f32, get, insert, stats, values_of
from tests.api.waiting import eventually

VALUES = [1.0, -2.0, 0.5, 0.25, 4.0, 8.0, -1.0, 3.0]


@pytest.fixture
def memory(stub: MemoryServiceStub, user_id: str) -> pb.Memory:
    """A memory with every field set."""
    return insert(
        stub,
        user_id,
        "content",
        summary="summary",
        metadata={"k": "v"},
        conversation_id="c",
        importance=7,
        embedding=f32(VALUES),
    )


@pytest.mark.parametrize("view", [pb.MEMORY_VIEW_UNSPECIFIED, pb.MEMORY_VIEW_BASIC])
def test_the_basic_view_leaves_out_the_embedding(
    stub: MemoryServiceStub, user_id: str, memory: pb.Memory, view: pb.MemoryView.ValueType
) -> None:
    found = get(stub, user_id, memory.id, view=view)

    assert found == memory
    assert not found.HasField("embedding")


def test_the_full_view_has_everything(stub: MemoryServiceStub, user_id: str, memory: pb.Memory) -> None:
    found = get(stub, user_id, memory.id, view=pb.MEMORY_VIEW_FULL)

    assert found.HasField("embedding")
    found.ClearField("embedding")
    assert found == memory


def test_the_head_view_has_neither_text_nor_metadata(stub: MemoryServiceStub, user_id: str, memory: pb.Memory) -> None:
    found = get(stub, user_id, memory.id, view=pb.MEMORY_VIEW_HEAD)

    for field in ("content", "summary", "metadata", "language", "embedding_state"):
        memory.ClearField(field)
    assert found == memory


@pytest.mark.parametrize(
    ("encoding", "kind"),
    [
        (pb.VECTOR_ENCODING_UNSPECIFIED, "floats"),
        (pb.VECTOR_ENCODING_FLOATS, "floats"),
        (pb.VECTOR_ENCODING_F32_LE, "f32_le"),
        (pb.VECTOR_ENCODING_F16_LE, "f16_le"),
    ],
)
def test_the_embedding_comes_in_the_encoding_asked_for(
    stub: MemoryServiceStub,
    user_id: str,
    memory: pb.Memory,
    encoding: pb.VectorEncoding.ValueType,
    kind: str,
) -> None:
    vector = get(stub, user_id, memory.id, view=pb.MEMORY_VIEW_FULL, embedding_encoding=encoding).embedding

    assert vector.WhichOneof("encoding") == kind
    np.testing.assert_allclose(values_of(vector), VALUES, rtol=2e-3, atol=4e-3)


def test_a_deleted_memory_can_be_read_and_says_so(stub: MemoryServiceStub, user_id: str, memory: pb.Memory) -> None:
    send(stub, pb.DeleteVectorRequest(user_id=user_id, id=memory.id))

    found = get(stub, user_id, memory.id)

    assert found.content == "content"
    assert found.HasField("deleted_at")
    assert found.HasField("purge_at")


def test_an_unknown_id_is_not_found(stub: MemoryServiceStub, user_id: str) -> None:
    insert(stub, user_id)

    missing = failure(lambda: get(stub, user_id, str(uuid.uuid4())))

    assert (missing.code, missing.reason) == (grpc.StatusCode.NOT_FOUND, "MEMORY_NOT_FOUND")


def test_an_unknown_user_has_no_memory(stub: MemoryServiceStub, user_id: str, memory: pb.Memory) -> None:
    assert user_id == memory.user_id

    missing = failure(lambda: get(stub, f"{user_id}-unknown", memory.id))

    assert (missing.code, missing.reason) == (grpc.StatusCode.NOT_FOUND, "MEMORY_NOT_FOUND")


def test_reads_are_counted_within_a_second_or_so(stub: MemoryServiceStub, user_id: str, memory: pb.Memory) -> None:
    for _ in range(3):
        get(stub, user_id, memory.id, skip_access_recording=False)

    eventually(lambda: get(stub, user_id, memory.id).access_count == 3)

    counted = get(stub, user_id, memory.id)
    assert counted.last_accessed_at.ToNanoseconds() >= memory.created_at.ToNanoseconds()
    assert (counted.etag, counted.updated_at) == (memory.etag, memory.updated_at)
    assert stats(stub, user_id).total_accesses == 3


def test_reads_that_ask_not_to_be_counted_are_not(stub: MemoryServiceStub, user_id: str, memory: pb.Memory) -> None:
    other = insert(stub, user_id)
    get(stub, user_id, memory.id)
    get(stub, user_id, other.id, skip_access_recording=False)

    # Accesses are written in the order they were made: once this one is there, the other would be.
    eventually(lambda: get(stub, user_id, other.id).access_count == 1)

    assert get(stub, user_id, memory.id).access_count == 0
    assert not get(stub, user_id, memory.id).HasField("last_accessed_at")
