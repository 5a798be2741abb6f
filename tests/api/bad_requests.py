"""The requests no server should serve: what is wrong with each, and what its caller has to be told."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from memory_service.v1 import memory_pb2 as pb
from tests.api.messages import axis, f16, floats, new_memory, struct, timestamp

USER = "user-of-bad-requests"
ID = "01a1fd79-007b-70dd-85b2-53c3784ade11"
TOO_LATE = 253_402_300_800  # seconds of the year 10000
TOO_EARLY = -62_135_596_801  # the second before the year 1
EMPTY_VECTOR = pb.Vector()


@dataclass(frozen=True, slots=True)
class Bad:
    """A request with one fault."""

    name: str
    request: Any
    field: str
    """The path that BadRequest has to name."""
    words: tuple[str, ...] = ()
    """What the description has to hold, above all what was expected and what was received."""
    reason: str = "INVALID_FIELD"


def nested(levels: int) -> Struct:
    """Returns metadata of that many levels."""
    values: dict[str, Any] = {}
    for _ in range(levels - 1):
        values = {"k": values}
    return struct(values)


def with_value(position: int, value: float) -> pb.Vector:
    """Returns an embedding of ones but for one value."""
    values = np.ones(8, np.float32)
    values[position] = value
    return floats(values)


def bad_requests() -> Iterator[Bad]:
    """Yields all of them, for a server of 8 dimensions without an embedder."""
    yield from _everywhere()
    yield from _embeddings()
    yield from _memories()
    yield from _batches()
    yield from _updates()
    yield from _searches()
    yield from _lists()


VALID: dict[str, Any] = {
    "InsertVector": pb.InsertVectorRequest(memory=new_memory()),
    "BatchInsertVectors": pb.BatchInsertVectorsRequest(memories=[new_memory()]),
    "GetVector": pb.GetVectorRequest(id=ID),
    "UpdateVector": pb.UpdateVectorRequest(id=ID, memory=pb.Memory(summary="s")),
    "DeleteVector": pb.DeleteVectorRequest(id=ID),
    "RestoreVector": pb.RestoreVectorRequest(id=ID),
    "SearchSimilar": pb.SearchSimilarRequest(embedding=axis(0)),
    "GetRecent": pb.GetRecentRequest(),
    "GetStats": pb.GetStatsRequest(),
}
"""A request of each RPC, valid once it has a user_id."""


def _changed(rpc: str, **fields: Any) -> Any:
    request = type(VALID[rpc])()
    request.CopyFrom(VALID[rpc])
    request.MergeFrom(type(request)(**{"user_id": USER, **fields}))
    return request


def _everywhere() -> Iterator[Bad]:
    for rpc, request in VALID.items():
        yield Bad(f"{rpc} without a user", request, "user_id", ("required",))
        yield Bad(f"{rpc} of a long user", _changed(rpc, user_id="u" * 256), "user_id", ("256", "255"))
        if rpc in {"GetVector", "UpdateVector", "DeleteVector", "RestoreVector"}:
            nameless = _changed(rpc)
            nameless.ClearField("id")
            yield Bad(f"{rpc} without an id", nameless, "id", ("required",))
            for malformed in ("7", ID[:-1], ID.replace("-", ""), f"{{{ID}}}", f"{ID}\n", "g" + ID[1:]):
                yield Bad(f"{rpc} of id {malformed!r}", _changed(rpc, id=malformed), "id", ("UUID",))
        if "request_id" in request.DESCRIPTOR.fields_by_name:
            yield Bad(f"{rpc} with a bad request_id", _changed(rpc, request_id="again"), "request_id", ("UUID",))
        for enum in ("view", "embedding_encoding", "metric", "metadata_update"):
            if enum in request.DESCRIPTOR.fields_by_name:
                yield Bad(f"{rpc} with {enum} 99", _changed(rpc, **{enum: 99}), enum, ("99",))
                yield Bad(f"{rpc} with {enum} -1", _changed(rpc, **{enum: -1}), enum, ("-1",))


def _embeddings() -> Iterator[Bad]:
    halves = np.ones(8, "<f2")
    halves[7] = np.inf
    faults: list[tuple[str, pb.Vector, str, tuple[str, ...], str]] = [
        ("short", floats([1] * 7), "", ("7", "8"), "DIMENSION_MISMATCH"),
        ("long", floats([1] * 9), "", ("9", "8"), "DIMENSION_MISMATCH"),
        ("empty", floats([]), "", ("0", "8"), "DIMENSION_MISMATCH"),
        ("short in binary16", f16([1] * 4), "", ("4", "8"), "DIMENSION_MISMATCH"),
        ("NaN", with_value(3, math.nan), "", ("NaN", "3"), "INVALID_FIELD"),
        ("infinite", with_value(0, math.inf), "", ("infinite", "0"), "INVALID_FIELD"),
        ("negative infinite", with_value(5, -math.inf), "", ("infinite", "5"), "INVALID_FIELD"),
        ("infinite in binary16", pb.Vector(f16_le=halves.tobytes()), "", ("infinite", "7"), "INVALID_FIELD"),
        ("zero", floats([0] * 8), "", ("zero",), "INVALID_FIELD"),
        ("without an encoding", EMPTY_VECTOR, "", ("floats", "f32_le", "f16_le"), "INVALID_FIELD"),
        ("of 33 bytes", pb.Vector(f32_le=b"\0" * 33), ".f32_le", ("33", "4"), "INVALID_FIELD"),
        ("of 15 bytes", pb.Vector(f16_le=b"\0" * 15), ".f16_le", ("15", "2"), "INVALID_FIELD"),
    ]
    for name, vector, suffix, words, reason in faults:
        for rpc, path in (("InsertVector", "memory"), ("UpdateVector", "memory"), ("SearchSimilar", "")):
            request = _changed(rpc)
            holder = getattr(request, path) if path else request
            holder.embedding.CopyFrom(vector)
            holder.embedding.SetInParent()
            field = f"{path}.embedding{suffix}".removeprefix(".")
            yield Bad(f"{rpc} with an embedding {name}", request, field, words, reason)


def _memories() -> Iterator[Bad]:
    tomorrow = timestamp(datetime.now(UTC) + timedelta(days=1, hours=1))
    no_embedder = ("MEMORY_EMBEDDER",)
    faults: list[tuple[str, pb.NewMemory, str, tuple[str, ...]]] = [
        ("an id of no UUID", new_memory(id="7"), "id", ("UUID",)),
        ("a long conversation", new_memory(conversation_id="c" * 256), "conversation_id", ("256", "255")),
        ("a long content", new_memory("x" * 65_537), "content", ("65537", "65536")),
        ("a content long in bytes", new_memory("\u20ac" * 21_846), "content", ("65538", "65536")),
        ("a long summary", new_memory(summary="x" * 16_385), "summary", ("16385", "16384")),
        ("large metadata", new_memory(metadata={"k": "v" * 16_377}), "metadata", ("16385", "16384")),
        ("deep metadata", new_memory(metadata=nested(33)), "metadata", ("nested", "32")),
        (
            "deep lists in metadata",
            new_memory(metadata=struct({"k": _list_of_lists(32)})),
            "metadata",
            ("nested", "32"),
        ),
        ("NaN in metadata", new_memory(metadata={"k": math.nan}), "metadata", ("NaN",)),
        ("infinity in metadata", new_memory(metadata={"k": [math.inf]}), "metadata", ("infinity",)),
        ("importance 0", new_memory(importance=0), "importance", ("0", "1 to 10")),
        ("importance 11", new_memory(importance=11), "importance", ("11", "1 to 10")),
        ("importance below zero", new_memory(importance=-(2**31)), "importance", ("-2147483648", "1 to 10")),
        ("a time to come", new_memory(created_at=tomorrow), "created_at", ("day", "future")),
        ("the year 10000", new_memory(created_at=Timestamp(seconds=TOO_LATE)), "created_at", (f"{TOO_LATE}", "9999")),
        (
            "the year 0",
            new_memory(created_at=Timestamp(seconds=TOO_EARLY)),
            "created_at",
            (f"{TOO_EARLY}", "1 to 9999"),
        ),
        ("seconds beyond reason", new_memory(created_at=Timestamp(seconds=2**63 - 1)), "created_at", ("9999",)),
        ("negative nanoseconds", new_memory(created_at=Timestamp(nanos=-1)), "created_at", ("-1", "0 to 999999999")),
        ("too many nanoseconds", new_memory(created_at=Timestamp(nanos=10**9)), "created_at", ("1000000000",)),
        ("embedding and embed_text", new_memory("x", embed_text="y"), "embed_text", ("embedding",)),
    ]
    for name, memory, field, words in faults:
        yield Bad(f"InsertVector of {name}", _insert(memory), f"memory.{field}", words)
    for name, memory, field in (
        ("nothing", pb.NewMemory(), "content"),
        ("text alone", pb.NewMemory(content="text"), "content"),
        ("embed_text alone", pb.NewMemory(content="text", embed_text="other"), "embed_text"),
    ):
        yield Bad(f"InsertVector of {name}", _insert(memory), f"memory.{field}", no_embedder, "EMBEDDER_DISABLED")


def _insert(memory: pb.NewMemory) -> pb.InsertVectorRequest:
    return pb.InsertVectorRequest(user_id=USER, memory=memory)


def _list_of_lists(levels: int) -> list[Any]:
    values: list[Any] = []
    for _ in range(levels - 1):
        values = [values]
    return values


def _batches() -> Iterator[Bad]:
    # 130 contents of 64 KiB: more than 8 MiB together, less than the 16 MiB of a request.
    large = [new_memory("x" * 65_536)] * 130
    for name, memories, words in (
        ("nothing", [], ("0", "1 to 500")),
        ("501 memories", [new_memory()] * 501, ("501", "1 to 500")),
        ("more than 8 MiB", large, ("8388608",)),
    ):
        request = pb.BatchInsertVectorsRequest(user_id=USER, memories=memories)
        yield Bad(f"BatchInsertVectors of {name}", request, "memories", words)


def _updates() -> Iterator[Bad]:
    def update(*paths: str, **fields: Any) -> pb.UpdateVectorRequest:
        mask = FieldMask(paths=paths)
        return pb.UpdateVectorRequest(user_id=USER, id=ID, memory=pb.Memory(**fields), update_mask=mask)

    nothing = pb.UpdateVectorRequest(user_id=USER, id=ID)
    yield Bad("UpdateVector of nothing", nothing, "update_mask", ("content", "importance"))
    yield Bad("UpdateVector with an empty mask", update(summary="s"), "update_mask", ("content",))
    yield Bad("UpdateVector of output-only fields", update("etag", "id"), "update_mask", ("content",))
    for unknown in ("colour", "metadata.lang", "Summary", "", "memory.summary"):
        request = update("summary", unknown, summary="s")
        yield Bad(f"UpdateVector of path {unknown!r}", request, "update_mask.paths[1]", ("summary", "*"))
    for name, fields, words in (
        ("content", {"content": "x" * 65_537, "embedding": axis(0)}, ("65537", "65536")),
        ("summary", {"summary": "x" * 16_385}, ("16385", "16384")),
        ("metadata", {"metadata": struct({"k": "v" * 16_377})}, ("16385", "16384")),
        ("conversation_id", {"conversation_id": "c" * 256}, ("256", "255")),
        ("importance", {"importance": 11}, ("11", "1 to 10")),
    ):
        yield Bad(f"UpdateVector of a bad {name}", update(*fields, **fields), f"memory.{name}", words)
    for name, request in (
        ("content", update("content", content="text")),
        ("embedding", update("embedding")),
    ):
        field = f"memory.{name}"
        yield Bad(f"UpdateVector of {name} to embed", request, field, ("MEMORY_EMBEDDER",), "EMBEDDER_DISABLED")


def _searches() -> Iterator[Bad]:
    def search(**fields: Any) -> pb.SearchSimilarRequest:
        return pb.SearchSimilarRequest(user_id=USER, **fields)

    one_of = ("exactly one", "embedding, text and memory_id")
    both = ("embedding and text",)
    yield Bad("SearchSimilar for nothing", search(), "text", (*one_of, "none"))
    dense = pb.SEARCH_MODE_DENSE
    yield Bad("SearchSimilar for two", search(embedding=axis(0), text="x", mode=dense), "text", (*one_of, *both))
    yield Bad("SearchSimilar for three", search(embedding=axis(0), text="x", memory_id=ID), "memory_id", one_of)
    for mode in (dense, pb.SEARCH_MODE_HYBRID):
        name, request = f"SearchSimilar for a text in mode {mode}", search(text="x", mode=mode)
        yield Bad(name, request, "text", ("MEMORY_EMBEDDER",), "EMBEDDER_DISABLED")
    yield Bad("SearchSimilar near no UUID", search(memory_id="x"), "memory_id", ("UUID",))
    for limit in (-1, 1_001, 2**31 - 1):
        request = search(embedding=axis(0), limit=limit)
        yield Bad(f"SearchSimilar with limit {limit}", request, "limit", (str(limit), "1 to 1000"))
    yield Bad("SearchSimilar over NaN", search(embedding=axis(0), min_score=math.nan), "min_score", ("NaN",))


def _lists() -> Iterator[Bad]:
    too_late = Timestamp(seconds=TOO_LATE)
    faults: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
        ("conversation_id", {"conversation_id": "c" * 256}, ("256", "255")),
        ("min_importance", {"min_importance": 0}, ("0", "1 to 10")),
        ("max_importance", {"max_importance": 11}, ("11", "1 to 10")),
        ("metadata_contains", {"metadata_contains": struct({"k": "v" * 16_377})}, ("16385", "16384")),
        ("metadata_contains", {"metadata_contains": nested(33)}, ("nested", "32")),
        ("created_after", {"created_after": too_late}, ("9999",)),
        ("created_before", {"created_before": Timestamp(seconds=TOO_EARLY)}, ("9999",)),
    ]
    for rpc in ("SearchSimilar", "GetRecent"):
        for name, conditions, words in faults:
            request = _changed(rpc, filter=pb.MemoryFilter(**conditions))
            yield Bad(f"{rpc} filtered by a bad {name} ({words[0]})", request, f"filter.{name}", words)
    yield Bad("GetRecent of -1", pb.GetRecentRequest(user_id=USER, page_size=-1), "page_size", ("-1",))
    for limit in (-1, 1_001):
        request = pb.GetStatsRequest(user_id=USER, conversation_limit=limit)
        yield Bad(f"GetStats of {limit}", request, "conversation_limit", (str(limit), "1 to 1000"))
