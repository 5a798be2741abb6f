"""Metadata: what a Struct becomes, what comes back, and what is refused."""

import json
import math
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.struct_pb2 import ListValue, NullValue, Struct, Value
from hypothesis import given
from hypothesis import strategies as st

from memory_service.limits import Limits
from memory_service.messages.metadata import MAX_EXACT_INTEGER, InvalidMetadata, encoded_size, from_struct
from memory_service.v1 import memory_pb2 as pb
from tests.structs import to_struct

ROOMY = Limits(
    max_metadata_bytes=10**9,
    max_metadata_depth=99,
    deleted_retention=timedelta(),
    request_id_retention=timedelta(),
    max_call_duration=timedelta(),
)

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=4)
values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=20,
)


def nested(levels: int, *, lists: bool = False) -> dict[str, Any]:
    """Returns metadata of so many levels, itself the first."""
    inner: Any = {} if not lists else []
    for _ in range(levels - 2):
        inner = [inner] if lists else {"a": inner}
    return {} if levels == 1 else {"a": inner}


@given(st.dictionaries(texts, values, max_size=4))
def test_what_goes_in_comes_out(metadata: dict[str, Any]) -> None:
    struct = to_struct(metadata)
    again = from_struct(struct, ROOMY)
    assert again == metadata
    assert from_struct(to_struct(again), ROOMY) == again
    # As the database keeps it: JSON.
    assert json.loads(json.dumps(again)) == metadata


@pytest.mark.parametrize(
    ("number", "stored"),
    [
        (1.0, 1),
        (-0.0, 0),
        (1.5, 1.5),
        (float(MAX_EXACT_INTEGER), 2**53),
        (-float(MAX_EXACT_INTEGER), -(2**53)),
        (2.0**53 + 2, 2.0**53 + 2),
        (1e300, 1e300),
    ],
)
def test_whole_numbers_become_integers(limits: Limits, number: float, stored: float) -> None:
    found = from_struct(to_struct({"n": number}), limits)["n"]
    assert found == stored
    assert type(found) is type(stored)


def test_every_kind_of_value(limits: Limits) -> None:
    struct = Struct(
        fields={
            "unset": Value(),
            "null": Value(null_value=NullValue.NULL_VALUE),
            "bool": Value(bool_value=False),
            "list": Value(list_value=ListValue(values=[Value(), Value(number_value=1)])),
            "struct": Value(struct_value=Struct()),
            "": Value(string_value=""),
        }
    )
    assert from_struct(struct, limits) == {
        "unset": None,
        "null": None,
        "bool": False,
        "list": [None, 1],
        "struct": {},
        "": "",
    }


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_has_not(limits: Limits, number: float) -> None:
    with pytest.raises(InvalidMetadata, match="NaN or infinity"):
        from_struct(to_struct({"a": [{"b": number}]}), limits)


@pytest.mark.parametrize("metadata", [{"a": "\0"}, {"\0": 1}, {"a": [["x\0y"]]}, {"a": {"\0b": 1}}], ids=str)
def test_nul_is_refused(limits: Limits, metadata: dict[str, Any]) -> None:
    with pytest.raises(InvalidMetadata, match="NUL"):
        from_struct(to_struct(metadata), limits)


@pytest.mark.parametrize("lists", [False, True])
def test_depth_has_a_limit(limits: Limits, *, lists: bool) -> None:
    deepest = nested(32, lists=lists)
    assert from_struct(to_struct(deepest), limits) == deepest
    with pytest.raises(InvalidMetadata, match="nested deeper than the"):
        from_struct(to_struct(nested(33, lists=lists)), limits)


@pytest.mark.parametrize("lists", [False, True])
def test_deepest_metadata_survives_the_wire(*, lists: bool) -> None:
    # protobuf refuses messages nested over 100 levels, and each of ours takes up to three.
    memory = pb.NewMemory(metadata=to_struct(nested(32, lists=lists)))
    batch = pb.BatchInsertVectorsRequest(memories=[memory])
    assert pb.BatchInsertVectorsRequest.FromString(batch.SerializeToString()) == batch
    search = pb.SearchSimilarRequest(filter=pb.MemoryFilter(metadata_contains=memory.metadata))
    assert pb.SearchSimilarRequest.FromString(search.SerializeToString()) == search


def test_size_is_that_of_compact_json(limits: Limits) -> None:
    assert encoded_size({}) == 2
    assert encoded_size({"a": [1, "é", None]}) == len('{"a":[1,"é",null]}'.encode())
    room = limits.max_metadata_bytes - len('{"a":""}')
    assert from_struct(to_struct({"a": "x" * room}), limits) == {"a": "x" * room}
    with pytest.raises(InvalidMetadata, match=r"has 16385 bytes as JSON, at most 16384 are allowed"):
        from_struct(to_struct({"a": "x" * (room + 1)}), limits)
    with pytest.raises(InvalidMetadata, match="bytes as JSON"):
        from_struct(to_struct({"a": "é" * (room // 2 + 1)}), limits)
