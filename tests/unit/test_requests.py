"""Reading whole requests: filters, and what an update means."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from db.filters import Filter
from db.memory import View
from db.update import UNCHANGED, Changes
from memory_service.messages import requests
from memory_service.messages.fields import FieldReader
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


def test_filters(fields: FieldReader) -> None:
    assert requests.memory_filter(fields, pb.MemoryFilter(), show_deleted=False) == Filter()
    message = pb.MemoryFilter(
        conversation_id="c",
        min_importance=2,
        max_importance=9,
        metadata_contains=to_struct({"a": 1}),
        created_after=timestamp(NOW),
        created_before=timestamp(NOW + timedelta(days=1)),
    )
    assert requests.memory_filter(fields, message, show_deleted=True) == Filter(
        conversation_id="c",
        min_importance=2,
        max_importance=9,
        metadata_contains={"a": 1},
        created_after=NOW,
        created_before=NOW + timedelta(days=1),
        show_deleted=True,
    )
    assert noted(fields) == {}


def test_bad_filters_are_named(fields: FieldReader) -> None:
    message = pb.MemoryFilter(
        conversation_id="\0",
        min_importance=0,
        max_importance=11,
        metadata_contains=to_struct({"a": "\0"}),
        created_after=Timestamp(seconds=2**60),
        created_before=Timestamp(nanos=-1),
        where=pb.Condition(),
    )
    requests.memory_filter(fields, message, show_deleted=False)
    assert noted(fields).keys() == {f"filter.{field.name}" for field in pb.MemoryFilter.DESCRIPTOR.fields}


def read_update(fields: FieldReader, mask: str | None, **changes: Any) -> requests.UpdateDraft:
    """Reads an update with these fields of the memory set; `mask` is None for none."""
    metadata_update = changes.pop("metadata_update", pb.METADATA_UPDATE_UNSPECIFIED)
    request = pb.UpdateVectorRequest(memory=pb.Memory(**changes), metadata_update=metadata_update)
    if mask is not None:
        request.update_mask.CopyFrom(FieldMask(paths=mask.split(",") if mask else []))
    return requests.update_draft(fields, request)


def test_update_without_a_mask_changes_what_is_set(fields: FieldReader) -> None:
    draft = read_update(fields, None, summary="s", importance=3, id="ignored", etag="ignored")
    assert draft.changes == Changes(summary="s", importance=3)
    assert not draft.content_changes
    assert not draft.embed_anew
    assert noted(fields) == {}


def test_mask_empties_what_is_not_set(fields: FieldReader) -> None:
    draft = read_update(fields, "summary,metadata,importance,conversation_id", content="left alone")
    assert draft.changes == Changes(summary="", metadata={}, importance=5, conversation_id=None)
    assert noted(fields) == {}


def test_star_is_every_field_and_replaces_metadata(fields: FieldReader) -> None:
    draft = read_update(fields, "*", content="new", metadata=to_struct({"a": 1}))
    assert draft.changes == Changes(
        content="new",
        summary="",
        metadata={"a": 1},
        merge_metadata=False,
        importance=5,
        conversation_id=None,
        language="english",
    )
    assert (draft.content_changes, draft.embed_anew) == (True, True)
    assert noted(fields) == {}


@pytest.mark.parametrize(
    ("how", "merges"),
    [
        (pb.METADATA_UPDATE_UNSPECIFIED, True),
        (pb.METADATA_UPDATE_MERGE, True),
        (pb.METADATA_UPDATE_REPLACE, False),
    ],
)
def test_metadata_is_merged_unless_told_otherwise(
    fields: FieldReader, how: pb.MetadataUpdate.ValueType, *, merges: bool
) -> None:
    draft = read_update(fields, "metadata", metadata=to_struct({"a": None}), metadata_update=how)
    assert draft.changes == Changes(metadata={"a": None}, merge_metadata=merges)


@pytest.mark.parametrize(
    ("mask", "changes", "content_changes", "embed_anew", "brings"),
    [
        ("content", {"content": "new"}, True, False, False),
        ("content,embedding", {"content": "new", "embedding": VECTOR}, False, False, True),
        ("content,embedding", {"content": "new"}, True, True, False),
        ("embedding", {"embedding": VECTOR}, False, False, True),
        ("embedding", {}, False, True, False),
        ("summary", {"embedding": VECTOR, "summary": "s"}, False, False, False),
        (None, {"content": "new", "embedding": VECTOR}, False, False, True),
        (None, {"content": "new"}, True, False, False),
    ],
)
def test_when_an_update_embeds(
    fields: FieldReader,
    *,
    mask: str | None,
    changes: dict[str, Any],
    content_changes: bool,
    embed_anew: bool,
    brings: bool,
) -> None:
    draft = read_update(fields, mask, **changes)
    assert noted(fields) == {}
    assert (draft.content_changes, draft.embed_anew) == (content_changes, embed_anew)
    assert (draft.changes.embedding is not UNCHANGED) is brings
    assert draft.changes.embedding_model == ("caller" if brings else UNCHANGED)


@pytest.mark.parametrize(
    ("mask", "changes", "found"),
    [
        (None, {}, {"update_mask"}),
        (None, {"id": ID}, {"update_mask"}),
        ("", {"content": "x"}, {"update_mask"}),
        ("id,etag", {"content": "x"}, {"update_mask"}),
        ("sumary,content", {"content": "x"}, {"update_mask.paths[0]"}),
        ("content,memory.summary,metadata.a", {"content": "x"}, {"update_mask.paths[1]", "update_mask.paths[2]"}),
        ("content", {}, {"memory.content"}),
        ("content", {"content": "\0x"}, {"memory.content"}),
        ("importance", {"importance": 11}, {"memory.importance"}),
        ("embedding", {"embedding": SHORT}, {"memory.embedding"}),
        (
            "metadata",
            {"metadata": to_struct({"a": "\0"}), "metadata_update": 7},
            {"memory.metadata", "metadata_update"},
        ),
        (
            "summary,conversation_id",
            {"summary": "\0", "conversation_id": "\0"},
            {"memory.summary", "memory.conversation_id"},
        ),
    ],
)
def test_bad_updates_are_named(fields: FieldReader, mask: str | None, changes: dict[str, Any], found: set[str]) -> None:
    read_update(fields, mask, **changes)
    assert noted(fields).keys() == found


@pytest.mark.parametrize(
    ("mask", "changes", "field"),
    [("content", {"content": "new"}, "memory.content"), ("embedding", {}, "memory.embedding")],
)
def test_without_an_embedder_nothing_is_embedded_anew(
    fields_without_embedder: FieldReader, mask: str, changes: dict[str, Any], field: str
) -> None:
    read_update(fields_without_embedder, mask, **changes)
    [violation] = fields_without_embedder.violations.found
    assert (violation.field, violation.reason) == (field, pb.ERROR_REASON_EMBEDDER_DISABLED)


def test_emptied_content_beside_an_embedding(fields_without_embedder: FieldReader) -> None:
    draft = read_update(fields_without_embedder, "content,embedding", embedding=VECTOR)
    assert draft.changes.content == ""
    assert noted(fields_without_embedder) == {}


def test_views_and_encodings(fields: FieldReader) -> None:
    assert {requests.VIEWS[value] for value in pb.MemoryView.values()} == set(View)
    floats, half = pb.VECTOR_ENCODING_FLOATS, pb.VECTOR_ENCODING_F16_LE
    assert requests.encoding(fields, pb.VECTOR_ENCODING_UNSPECIFIED, default=half) == half
    assert requests.encoding(fields, floats, default=half) == floats
    assert noted(fields) == {}
    requests.encoding(fields, 9, default=half)  # type: ignore[arg-type]  # a value of a later contract
    assert noted(fields).keys() == {"embedding_encoding"}
