"""InsertVector: what is stored, and what the reply says of it."""

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import grpc
import numpy as np
import pytest
from numpy.typing import ArrayLike

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import failure, send
from tests.api.conftest import ReadContents
from tests.api.messages import axis, f16, f32, floats, get, insert, new_memory, stats, timestamp, values_of

Encode = Callable[[ArrayLike], pb.Vector]

VALUES = [0.5, -1.25, 3.0, 0.0, 2.0, -0.5, 1.0, 4.0]


def test_everything_sent_is_stored_and_returned(stub: MemoryServiceStub, user_id: str) -> None:
    metadata = {"lang": "en", "tags": ["a", "b"], "nested": {"deep": {"n": 1.5}}, "yes": True, "none": None}

    inserted = insert(
        stub,
        user_id,
        "Ada plays the cello",
        summary="cello",
        metadata=metadata,
        conversation_id="c-1",
        importance=8,
        embedding=floats(VALUES),
    )

    assert (inserted.user_id, inserted.conversation_id) == (user_id, "c-1")
    assert (inserted.content, inserted.summary, inserted.importance) == ("Ada plays the cello", "cello", 8)
    assert dict(inserted.metadata.items())["none"] is None
    assert inserted.embedding_model == "caller"
    assert inserted.etag
    assert not inserted.HasField("embedding")
    assert not inserted.HasField("deleted_at")
    assert not inserted.HasField("purge_at")
    assert not inserted.HasField("last_accessed_at")
    assert inserted.access_count == 0
    assert get(stub, user_id, inserted.id) == inserted


def test_the_server_makes_ids_that_sort_by_time(stub: MemoryServiceStub, user_id: str) -> None:
    ids = [uuid.UUID(insert(stub, user_id).id) for _ in range(5)]

    assert {memory_id.version for memory_id in ids} == {7}
    assert ids == sorted(ids)


def test_an_id_of_the_callers_own_is_kept_in_lower_case(stub: MemoryServiceStub, user_id: str) -> None:
    own = uuid.uuid4()

    assert insert(stub, user_id, id=str(own).upper()).id == str(own)
    assert get(stub, user_id, str(own).upper()).id == str(own)


def test_an_id_that_is_taken_is_refused(stub: MemoryServiceStub, user_id: str, contents: ReadContents) -> None:
    first = insert(stub, user_id, "first")
    before = contents()

    refused = failure(lambda: insert(stub, user_id, "second", id=first.id, conversation_id="new"))

    assert (refused.code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "MEMORY_EXISTS")
    assert list(refused.violations) == ["memory.id"]
    assert contents() == before


def test_an_id_stays_taken_while_its_memory_can_be_restored(stub: MemoryServiceStub, user_id: str) -> None:
    memory = insert(stub, user_id)
    send(stub, pb.DeleteVectorRequest(user_id=user_id, id=memory.id))

    assert failure(lambda: insert(stub, user_id, id=memory.id)).reason == "MEMORY_EXISTS"

    send(stub, pb.DeleteVectorRequest(user_id=user_id, id=memory.id, hard=True))
    assert insert(stub, user_id, "again", id=memory.id).content == "again"


@pytest.mark.parametrize("encode", [floats, f32, f16])
def test_an_embedding_comes_back_at_its_original_length(stub: MemoryServiceStub, user_id: str, encode: Encode) -> None:
    memory = insert(stub, user_id, embedding=encode(VALUES))

    full = get(stub, user_id, memory.id, view=pb.MEMORY_VIEW_FULL)

    np.testing.assert_allclose(values_of(full.embedding), VALUES, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("length", [1e-20, 1e-3, 1e20])
def test_lengths_far_from_one_survive(stub: MemoryServiceStub, user_id: str, length: float) -> None:
    memory = insert(stub, user_id, embedding=floats(np.array(VALUES) * length))

    full = get(stub, user_id, memory.id, view=pb.MEMORY_VIEW_FULL)

    np.testing.assert_allclose(np.array(values_of(full.embedding)) / length, VALUES, rtol=2e-3, atol=2e-3)


def test_content_may_be_empty_when_an_embedding_is_given(stub: MemoryServiceStub, user_id: str) -> None:
    memory = insert(stub, user_id)

    assert (memory.content, memory.summary, memory.conversation_id) == ("", "", "")
    assert memory.importance == 5
    assert not memory.metadata.fields


@pytest.mark.parametrize("importance", [1, 10])
def test_importance_spans_one_to_ten(stub: MemoryServiceStub, user_id: str, importance: int) -> None:
    assert insert(stub, user_id, importance=importance).importance == importance


def test_created_at_is_now_unless_given(stub: MemoryServiceStub, user_id: str) -> None:
    before = datetime.now(UTC)
    memory = insert(stub, user_id)

    assert before <= memory.created_at.ToDatetime(UTC) <= datetime.now(UTC)
    assert memory.updated_at == memory.created_at


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(datetime(1, 1, 1, tzinfo=UTC), id="year 1"),
        pytest.param(datetime(1815, 12, 10, 11, 30, 0, 123_456, tzinfo=UTC), id="microseconds"),
        pytest.param(datetime.now(UTC).replace(microsecond=0) + timedelta(hours=23), id="tomorrow"),
    ],
)
def test_history_keeps_its_own_time(stub: MemoryServiceStub, user_id: str, moment: datetime) -> None:
    memory = insert(stub, user_id, created_at=timestamp(moment))

    assert memory.created_at.ToDatetime(UTC) == moment
    assert get(stub, user_id, memory.id).created_at.ToDatetime(UTC) == moment


@pytest.mark.parametrize(
    "text",
    [
        "naïve café",
        "日本語のメモ",
        "👩‍🚀 family \u202e rtl",
        "tab\tnew\nline\r",
        "'; DROP TABLE x; --",
        "%s %(a)s $1 \\",
    ],
)
def test_any_text_comes_back_unchanged(stub: MemoryServiceStub, user_id: str, text: str) -> None:
    memory = insert(stub, user_id, text, summary=text, conversation_id=text[:255], metadata={text: text})

    stored = get(stub, user_id, memory.id)

    assert (stored.content, stored.summary, stored.conversation_id) == (text, text, text)
    assert stored.metadata[text] == text


def test_the_longest_ids_fit_the_indexes(stub: MemoryServiceStub) -> None:
    # 255 characters of 4 bytes each: 1,020 bytes, twice in one B-tree entry of at most 2,704.
    user_id, conversation_id = "\U0001f600" * 255, "\U0001f601" * 255

    insert(stub, user_id, conversation_id=conversation_id)

    assert stats(stub, user_id).conversations[0].conversation_id == conversation_id


def test_the_largest_memory_is_stored_whole(stub: MemoryServiceStub, user_id: str) -> None:
    content, summary = "é" * 32_768, "s" * 16_384
    metadata = {"k": "v" * (16_384 - len('{"k":""}'))}

    memory = insert(stub, user_id, content, summary=summary, metadata=metadata)

    stored = get(stub, user_id, memory.id)
    assert (stored.content, stored.summary) == (content, summary)
    assert stored.metadata["k"] == metadata["k"]


def test_numbers_in_metadata_keep_their_value(stub: MemoryServiceStub, user_id: str) -> None:
    metadata = {"integer": 3, "large": 2.0**53, "negative": -0.5, "small": 5e-324, "huge": 1.7976931348623157e308}

    memory = insert(stub, user_id, metadata=metadata)

    assert dict(get(stub, user_id, memory.id).metadata.items()) == metadata


def test_users_and_conversations_appear_on_first_use(stub: MemoryServiceStub, user_id: str) -> None:
    assert stats(stub, user_id) == pb.GetStatsResponse()

    for conversation_id in ("a", "b", "a"):
        insert(stub, user_id, conversation_id=conversation_id)

    assert {entry.conversation_id: entry.live_count for entry in stats(stub, user_id).conversations} == {"a": 2, "b": 1}


def test_a_new_user_may_begin_with_many_calls_at_once(stub: MemoryServiceStub, user_id: str) -> None:
    with ThreadPoolExecutor(8) as threads:
        ids = list(threads.map(lambda i: insert(stub, user_id, conversation_id=f"c{i % 3}").id, range(24)))

    assert len(set(ids)) == 24
    assert {entry.live_count for entry in stats(stub, user_id).conversations} == {8}


def test_unknown_fields_are_ignored(stub: MemoryServiceStub, user_id: str) -> None:
    request = pb.InsertVectorRequest(user_id=user_id, memory=new_memory("from the future", embedding=axis(2)))
    newer = pb.InsertVectorRequest.FromString(request.SerializeToString() + b"\xf2\x3f\x03new")

    assert send(stub, newer).memory.content == "from the future"
