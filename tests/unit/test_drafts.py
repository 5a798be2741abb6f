"""Memories to store, as requests bring them: each field, every fault, and what completing them adds."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from db.cancellation import Call
from db.vectors import Embedding, normalize
from memory_service import completing
from memory_service.messages import drafts
from memory_service.messages.fields import FieldReader, TextToEmbed
from memory_service.messages.violations import InvalidArgument
from memory_service.v1 import memory_pb2 as pb
from tests.structs import to_struct
from tests.unit.noted import noted

NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
ID = "0190f7a8-0000-7000-8000-00000000000a"
VECTOR = pb.Vector(floats=pb.FloatArray(values=[0, 3, 0, 4]))
SHORT = pb.Vector(floats=pb.FloatArray(values=[1]))


def timestamp(time: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(time)
    return message


def test_memory_with_every_field(fields: FieldReader) -> None:
    created_at = NOW - timedelta(days=3)
    message = pb.NewMemory(
        id=ID,
        conversation_id="c",
        content="text",
        summary="s",
        metadata=to_struct({"a": 1}),
        embedding=VECTOR,
        importance=9,
        created_at=timestamp(created_at),
    )
    draft = drafts.read_one(fields, "memory", message, now=NOW)
    assert noted(fields) == {}
    assert isinstance(draft.source, Embedding)
    memory = draft.complete(new_id=UUID(int=1), embedding=draft.source, model="caller")
    assert (memory.id, memory.conversation_id, memory.content, memory.summary) == (UUID(ID), "c", "text", "s")
    assert (memory.metadata, memory.importance, memory.created_at) == ({"a": 1}, 9, created_at)
    assert memory.embedding is draft.source
    assert (draft.source.norm, memory.embedding_model) == (5, "caller")


def test_defaults(fields: FieldReader) -> None:
    draft = drafts.read_one(fields, "memory", pb.NewMemory(content="text"), now=NOW)
    assert noted(fields) == {}
    assert draft.source == TextToEmbed(text="text", path="memory.content")
    assert (draft.id, draft.conversation_id, draft.importance, draft.created_at) == (None, None, 5, NOW)
    memory = draft.complete(new_id=UUID(int=1), embedding=normalize(np.ones(4)), model="m")
    assert (memory.id, memory.embedding_model) == (UUID(int=1), "m")


def test_without_an_embedding_a_memory_keeps_what_is_to_be_embedded(fields: FieldReader) -> None:
    messages = [
        pb.NewMemory(content="text", embed_text="other"),
        pb.NewMemory(content="text"),
        pb.NewMemory(content="text", embed_text="text"),
        pb.NewMemory(content="text", embedding=VECTOR),
    ]
    read = [drafts.read_one(fields, "memory", message, now=NOW) for message in messages]
    memories = completing.complete(read, None, Call(), now=NOW, embed_async=True)
    assert noted(fields) == {}
    assert [memory.embed_text for memory in memories] == ["other", None, None, None]
    assert [memory.embedding is None for memory in memories] == [True, True, True, False]
    assert memories[3].embedding_model == "caller"


def test_embed_async_needs_an_embedder(fields: FieldReader, fields_without_embedder: FieldReader) -> None:
    assert fields.embed_async(value=True)
    assert not fields_without_embedder.embed_async(value=False)
    assert noted(fields) == noted(fields_without_embedder) == {}
    fields_without_embedder.embed_async(value=True)
    assert "MEMORY_EMBEDDER=none" in noted(fields_without_embedder)["embed_async"]


def test_embed_text_stands_in_for_the_content(fields: FieldReader) -> None:
    draft = drafts.read_one(fields, "memory", pb.NewMemory(content="text", embed_text="other"), now=NOW)
    assert (draft.content, draft.source) == ("text", TextToEmbed(text="other", path="memory.embed_text"))
    draft = drafts.read_one(fields, "memory", pb.NewMemory(embed_text="other"), now=NOW)
    assert draft.content == ""
    assert noted(fields) == {}


def test_content_may_be_empty_beside_an_embedding(fields_without_embedder: FieldReader) -> None:
    draft = drafts.read_one(fields_without_embedder, "memory", pb.NewMemory(embedding=VECTOR), now=NOW)
    assert draft.content == ""
    assert noted(fields_without_embedder) == {}


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.NewMemory(), "memories[3].content"),
        (pb.NewMemory(content=" \n"), "memories[3].content"),
        (pb.NewMemory(content="x" * 65_537), "memories[3].content"),
        (pb.NewMemory(content="\0x"), "memories[3].content"),
        (pb.NewMemory(content="x", embed_text="\0"), "memories[3].embed_text"),
        (pb.NewMemory(content="x", embed_text="x" * 65_537), "memories[3].embed_text"),
        (pb.NewMemory(content="x", embed_text="y", embedding=VECTOR), "memories[3].embed_text"),
        (pb.NewMemory(content="x", embedding=SHORT), "memories[3].embedding"),
        (pb.NewMemory(content="x", embedding=pb.Vector()), "memories[3].embedding"),
        (pb.NewMemory(content="x", summary="x" * 16_385), "memories[3].summary"),
        (pb.NewMemory(content="x", metadata=to_struct({"a": float("nan")})), "memories[3].metadata"),
        (pb.NewMemory(content="x", importance=0), "memories[3].importance"),
        (pb.NewMemory(content="x", id="1"), "memories[3].id"),
        (pb.NewMemory(content="x", conversation_id="x" * 256), "memories[3].conversation_id"),
        (pb.NewMemory(content="x", created_at=Timestamp(nanos=-1)), "memories[3].created_at"),
        (
            pb.NewMemory(content="x", created_at=timestamp(NOW + timedelta(days=1, microseconds=1))),
            "memories[3].created_at",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_bad_field_is_named(fields: FieldReader, message: pb.NewMemory, field: str) -> None:
    drafts.read_one(fields, "memories[3]", message, now=NOW)
    assert noted(fields).keys() == {field}


def test_a_day_ahead_is_not_the_future(fields: FieldReader) -> None:
    tomorrow = NOW + timedelta(days=1)
    message = pb.NewMemory(content="x", created_at=timestamp(tomorrow))
    assert drafts.read_one(fields, "memory", message, now=NOW).created_at == tomorrow
    assert noted(fields) == {}


def test_without_an_embedder_an_embedding_is_needed(fields_without_embedder: FieldReader) -> None:
    drafts.read_one(fields_without_embedder, "memory", pb.NewMemory(content="x"), now=NOW)
    [violation] = fields_without_embedder.violations.found
    assert (violation.field, violation.reason) == ("memory.content", pb.ERROR_REASON_EMBEDDER_DISABLED)


def test_all_that_is_wrong_is_noted(fields: FieldReader) -> None:
    message = pb.NewMemory(id="x", content="\0", importance=11, embedding=SHORT, embed_text="y")
    drafts.read_one(fields, "m", message, now=NOW)
    assert noted(fields).keys() == {"m.id", "m.content", "m.importance", "m.embedding", "m.embed_text"}


def test_a_batch_is_read_with_each_embedding_in_its_place(fields: FieldReader) -> None:
    messages = [
        pb.NewMemory(content="a", embedding=pb.Vector(f32_le=np.array([1, 0, 0, 0], "<f4").tobytes())),
        pb.NewMemory(content="b"),
        pb.NewMemory(content="c", embedding=pb.Vector(f16_le=np.array([0, 2, 0, 0], "<f2").tobytes())),
        pb.NewMemory(content="d", embedding=VECTOR),
    ]
    batch = drafts.read_batch(fields, messages, request_bytes=1, max_count=4, now=NOW)
    assert noted(fields) == {}
    assert [draft.source.norm if isinstance(draft.source, Embedding) else draft.source.text for draft in batch] == [
        1.0,
        "b",
        2.0,
        5.0,
    ]


def test_faults_of_a_batch_stand_in_its_order(fields: FieldReader) -> None:
    zero = pb.Vector(floats=pb.FloatArray(values=[0, 0, 0, 0]))
    messages = [
        pb.NewMemory(content="x", embedding=zero),
        pb.NewMemory(content="x", importance=11),
        pb.NewMemory(content="x", embedding=SHORT, id=ID),
        pb.NewMemory(content="x", id=ID.upper()),
    ]
    drafts.read_batch(fields, messages, request_bytes=1, max_count=4, now=NOW)
    assert [violation.field for violation in fields.violations.found] == [
        "memories[0].embedding",
        "memories[1].importance",
        "memories[2].embedding",
        "memories[3].id",
    ]
    assert fields.violations.facts == {}


@pytest.mark.parametrize(("count", "request_bytes"), [(0, 1), (3, 1), (1, 8 * 2**20 + 1)])
def test_a_batch_beyond_the_limits_is_not_read(fields: FieldReader, count: int, request_bytes: int) -> None:
    messages = [pb.NewMemory(id="bad")] * count
    with pytest.raises(InvalidArgument) as caught:
        drafts.read_batch(fields, messages, request_bytes=request_bytes, max_count=2, now=NOW)
    assert [violation.field for violation in caught.value.violations] == ["memories"]
