"""UpdateVector: masks, metadata merge and replace, etags. Embedding anew is in test_local_embedder.py."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import failure, failure_of, send
from tests.api.conftest import ReadContents
from tests.api.messages import axis, f32, get, insert, stats, struct, values_of


@pytest.fixture
def memory(stub: MemoryServiceStub, user_id: str) -> pb.Memory:
    """A memory with every field set."""
    return insert(
        stub,
        user_id,
        "content",
        summary="summary",
        metadata={"kept": 1, "nested": {"a": 1, "b": 2}},
        conversation_id="c",
        importance=7,
    )


def request(memory: pb.Memory, *paths: str, **fields: Any) -> pb.UpdateVectorRequest:
    """Returns the update of `memory` that sets `fields`, with a mask where paths are given."""
    if isinstance(fields.get("metadata"), dict):
        fields["metadata"] = struct(fields["metadata"])
    update = pb.UpdateVectorRequest(user_id=memory.user_id, id=memory.id, memory=pb.Memory(**fields))
    if paths:
        update.update_mask.CopyFrom(FieldMask(paths=paths))
    return update


def test_only_the_fields_of_the_mask_change(stub: MemoryServiceStub, memory: pb.Memory) -> None:
    sent = request(memory, "summary", "importance", summary="new", importance=2, conversation_id="ignored")

    updated = send(stub, sent).memory

    assert (updated.summary, updated.importance) == ("new", 2)
    assert updated.updated_at.ToNanoseconds() > memory.updated_at.ToNanoseconds()
    assert updated.etag != memory.etag
    assert get(stub, memory.user_id, memory.id) == updated
    for field in ("summary", "importance", "updated_at", "etag"):
        memory.ClearField(field)
        updated.ClearField(field)
    assert updated == memory


def test_without_a_mask_the_fields_that_are_set_change(stub: MemoryServiceStub, memory: pb.Memory) -> None:
    updated = send(stub, request(memory, summary="new", conversation_id="d")).memory

    assert (updated.summary, updated.conversation_id) == ("new", "d")
    assert (updated.content, updated.importance) == ("content", 7)


def test_a_field_of_the_mask_that_is_unset_becomes_empty(stub: MemoryServiceStub, memory: pb.Memory) -> None:
    updated = send(stub, request(memory, "summary", "conversation_id", "importance")).memory

    assert (updated.summary, updated.conversation_id, updated.importance) == ("", "", 5)


def test_a_star_replaces_everything(stub: MemoryServiceStub, memory: pb.Memory) -> None:
    updated = send(stub, request(memory, "*", content="new", embedding=axis(3))).memory

    assert (updated.content, updated.summary, updated.conversation_id) == ("new", "", "")
    assert updated.importance == 5
    assert not updated.metadata.fields
    assert updated.created_at == memory.created_at
    full = get(stub, memory.user_id, memory.id, view=pb.MEMORY_VIEW_FULL)
    np.testing.assert_array_equal(values_of(full.embedding), np.eye(8)[3])


def test_output_only_fields_are_ignored(stub: MemoryServiceStub, memory: pb.Memory) -> None:
    sent = request(memory, "summary", "etag", "created_at", "user_id", summary="new", etag="x", user_id="thief")
    sent.memory.created_at.GetCurrentTime()

    updated = send(stub, sent).memory

    assert updated.summary == "new"
    assert (updated.user_id, updated.created_at) == (memory.user_id, memory.created_at)
    assert updated.etag != "x"


def test_an_embedding_is_replaced_with_its_length(stub: MemoryServiceStub, memory: pb.Memory) -> None:
    values = [3.0, 0, 0, 0, 0, 0, 0, -4.0]

    updated = send(stub, request(memory, "embedding", "content", content="new", embedding=f32(values))).memory

    assert (updated.content, updated.embedding_model) == ("new", "caller")
    full = get(stub, memory.user_id, memory.id, view=pb.MEMORY_VIEW_FULL)
    np.testing.assert_allclose(values_of(full.embedding), values, rtol=2e-3)


@pytest.mark.parametrize("update", [pb.METADATA_UPDATE_UNSPECIFIED, pb.METADATA_UPDATE_MERGE])
def test_metadata_is_merged(stub: MemoryServiceStub, memory: pb.Memory, update: pb.MetadataUpdate.ValueType) -> None:
    sent = request(memory, "metadata", metadata={"nested": {"a": None, "c": [1, None]}, "new": {"x": None, "y": 2}})
    sent.metadata_update = update

    metadata = send(stub, sent).memory.metadata

    assert metadata == struct({"kept": 1, "nested": {"b": 2, "c": [1, None]}, "new": {"y": 2}})
    assert get(stub, memory.user_id, memory.id).metadata == metadata


def test_metadata_is_replaced(stub: MemoryServiceStub, memory: pb.Memory) -> None:
    sent = request(memory, "metadata", metadata={"only": None})
    sent.metadata_update = pb.METADATA_UPDATE_REPLACE

    assert send(stub, sent).memory.metadata == struct({"only": None})


def test_an_empty_struct_clears_metadata(stub: MemoryServiceStub, memory: pb.Memory) -> None:
    sent = request(memory, "metadata")
    sent.metadata_update = pb.METADATA_UPDATE_REPLACE

    assert not send(stub, sent).memory.metadata.fields


def test_metadata_that_grows_too_large_by_merging_is_refused(
    stub: MemoryServiceStub, memory: pb.Memory, contents: ReadContents
) -> None:
    send(stub, request(memory, metadata={"first": "x" * 10_000}))
    before = contents()

    refused = failure(lambda: send(stub, request(memory, metadata={"second": "x" * 10_000})))

    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "16384" in refused.violations["memory.metadata"]
    assert contents() == before


def test_a_current_etag_lets_the_update_through(stub: MemoryServiceStub, memory: pb.Memory) -> None:
    first = request(memory, summary="first")
    first.etag = memory.etag
    second = request(memory, summary="second")
    second.etag = send(stub, first).memory.etag

    assert send(stub, second).memory.summary == "second"


@pytest.mark.parametrize("etag", ["stale", "a\0b", "x" * 100_000, "é☃"])
def test_another_etag_aborts(stub: MemoryServiceStub, memory: pb.Memory, contents: ReadContents, etag: str) -> None:
    before = contents()
    sent = request(memory, summary="new")
    sent.etag = etag

    refused = failure(lambda: send(stub, sent))

    assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    assert contents() == before


def test_reading_does_not_change_the_etag_and_every_change_does(stub: MemoryServiceStub, memory: pb.Memory) -> None:
    etags = [memory.etag, get(stub, memory.user_id, memory.id).etag]
    etags.append(send(stub, request(memory, summary="same")).memory.etag)
    etags.append(send(stub, request(memory, summary="same")).memory.etag)
    etags.append(send(stub, pb.DeleteVectorRequest(user_id=memory.user_id, id=memory.id)).memory.etag)
    etags.append(send(stub, pb.RestoreVectorRequest(user_id=memory.user_id, id=memory.id)).memory.etag)

    assert etags[0] == etags[1]
    assert len(set(etags)) == 5


def test_a_deleted_memory_is_not_updated(stub: MemoryServiceStub, memory: pb.Memory, contents: ReadContents) -> None:
    send(stub, pb.DeleteVectorRequest(user_id=memory.user_id, id=memory.id))
    before = contents()

    refused = failure(lambda: send(stub, request(memory, summary="new")))

    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "MEMORY_DELETED")
    assert contents() == before


def test_an_unknown_memory_is_not_found(stub: MemoryServiceStub, memory: pb.Memory) -> None:
    send(stub, pb.DeleteVectorRequest(user_id=memory.user_id, id=memory.id, hard=True))

    refused = failure(lambda: send(stub, request(memory, summary="new")))

    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "MEMORY_NOT_FOUND")


def test_moving_to_a_new_conversation_is_counted_there(stub: MemoryServiceStub, memory: pb.Memory) -> None:
    send(stub, request(memory, conversation_id="elsewhere"))

    live = {entry.conversation_id: entry.live_count for entry in stats(stub, memory.user_id).conversations}
    assert live == {"elsewhere": 1}


def test_concurrent_merges_lose_no_key(stub: MemoryServiceStub, memory: pb.Memory) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda i: send(stub, request(memory, metadata={f"key {i}": i})), range(24)))

    metadata = get(stub, memory.user_id, memory.id).metadata
    assert {key for key in metadata if key.startswith("key")} == {f"key {i}" for i in range(24)}


def test_of_concurrent_updates_under_one_etag_one_is_carried_out(stub: MemoryServiceStub, memory: pb.Memory) -> None:
    def update(number: int) -> str:
        sent = request(memory, summary=f"{number}")
        sent.etag = memory.etag
        try:
            return str(send(stub, sent).memory.summary)
        except grpc.RpcError as error:
            return failure_of(error).reason

    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(update, range(8)))

    assert outcomes.count("ETAG_MISMATCH") == 7
    assert get(stub, memory.user_id, memory.id).summary in outcomes
