"""Reading single fields: what is right comes through, what is wrong is noted with what was received."""

from datetime import UTC, datetime
from uuid import UUID

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from db.vectors import normalize
from memory_service.messages.fields import FieldReader
from memory_service.v1 import memory_pb2 as pb
from tests.structs import to_struct
from tests.unit.noted import noted

UUID_TEXT = "0190f7a8-0000-7000-8000-00000000000a"


@pytest.mark.parametrize("value", ["u", "U" * 255, "\N{SNOWMAN}" * 255, " ", "a/b:c@d"])
def test_user_ids(fields: FieldReader, value: str) -> None:
    assert fields.user_id(value) == value
    assert noted(fields) == {}


@pytest.mark.parametrize(
    ("value", "description"),
    [
        ("", "is required"),
        ("x" * 256, "has 256 characters, at most 255 are allowed"),
        ("a\0b", "holds a NUL character, which PostgreSQL cannot store"),
    ],
)
def test_user_ids_refused(fields: FieldReader, value: str, description: str) -> None:
    fields.user_id(value)
    assert noted(fields) == {"user_id": description}


def test_conversation_ids(fields: FieldReader) -> None:
    assert fields.conversation_id("c", "") is None
    assert fields.conversation_id("c", "x" * 255) == "x" * 255
    assert noted(fields) == {}
    fields.conversation_id("c", "x" * 256)
    fields.conversation_id("d", "\0")
    assert noted(fields).keys() == {"c", "d"}


@pytest.mark.parametrize("value", [UUID_TEXT, UUID_TEXT.upper(), "00000000-0000-0000-0000-000000000000"])
def test_uuids(fields: FieldReader, value: str) -> None:
    assert fields.uuid("id", value) == UUID(value)
    assert fields.optional_uuid("id", value) == UUID(value)
    assert fields.optional_uuid("id", "") is None
    assert noted(fields) == {}


@pytest.mark.parametrize(
    "value",
    [
        UUID_TEXT.replace("-", ""),
        "{" + UUID_TEXT + "}",
        "urn:uuid:" + UUID_TEXT,
        UUID_TEXT + "\n",
        UUID_TEXT[:-1],
        UUID_TEXT[:-1] + "g",
        UUID_TEXT.replace("a", "\N{FULLWIDTH DIGIT ONE}"),
        "x",
    ],
)
def test_uuids_in_other_forms_are_refused(fields: FieldReader, value: str) -> None:
    fields.uuid("id", value)
    fields.optional_uuid("other", value)
    assert set(noted(fields).values()) == {"is not a UUID (8-4-4-4-12 hexadecimal digits)"}
    assert noted(fields).keys() == {"id", "other"}


def test_missing_uuid(fields: FieldReader) -> None:
    fields.uuid("id", "")
    assert noted(fields) == {"id": "is required"}


def test_texts_are_measured_in_utf8(fields: FieldReader) -> None:
    assert fields.text("t", "é" * 5, max_bytes=10) == "é" * 5
    assert fields.text("t", "", max_bytes=0) == ""
    assert noted(fields) == {}
    fields.text("t", "é" * 5, max_bytes=9)
    fields.text("n", "\0", max_bytes=9)
    assert noted(fields) == {
        "t": "has 10 bytes of UTF-8, at most 9 are allowed",
        "n": "holds a NUL character, which PostgreSQL cannot store",
    }


@pytest.mark.parametrize("blank", ["", " ", "\n\t \N{NO-BREAK SPACE}"])
def test_blank_text_has_nothing_to_embed(fields: FieldReader, blank: str) -> None:
    fields.text_to_embed("t", blank)
    assert noted(fields) == {"t": "has nothing to embed: it is empty or blank"}


def test_text_to_embed_is_of_limited_size(fields: FieldReader) -> None:
    assert fields.text_to_embed("t", "x" * 65_536) == "x" * 65_536
    assert noted(fields) == {}
    fields.text_to_embed("t", "x" * 65_537)
    assert noted(fields) == {"t": "has 65537 bytes of UTF-8, at most 65536 are allowed"}


def test_without_an_embedder_no_text_can_be_embedded(fields_without_embedder: FieldReader) -> None:
    fields_without_embedder.text_to_embed("t", "text")
    [violation] = fields_without_embedder.violations.found
    assert violation.reason == pb.ERROR_REASON_EMBEDDER_DISABLED
    assert "MEMORY_EMBEDDER=none" in violation.description


def test_metadata(fields: FieldReader) -> None:
    assert fields.metadata("m", to_struct({"a": 1})) == {"a": 1}
    assert noted(fields) == {}
    assert fields.metadata("m", to_struct({"a": "\0"})) == {}
    assert noted(fields) == {"m": "holds a NUL character, which PostgreSQL cannot store"}


def test_embeddings(fields: FieldReader) -> None:
    found = fields.embedding("e", pb.Vector(floats=pb.FloatArray(values=[0, 3, 0, 4])))
    assert found is not None
    assert found.norm == 5
    assert fields.embedding("e", pb.Vector(floats=pb.FloatArray(values=[1]))) is None
    assert noted(fields) == {"e": "has 1 dimensions, expected 4"}
    assert normalize(found.unit).unit.tolist() == found.unit.tolist()


@pytest.mark.parametrize("value", [1, 5, 10])
def test_importances(fields: FieldReader, value: int) -> None:
    assert fields.importance("i", value) == value
    assert noted(fields) == {}


@pytest.mark.parametrize("value", [0, 11, -1, -(2**31), 2**31 - 1])
def test_importances_refused(fields: FieldReader, value: int) -> None:
    fields.importance("i", value)
    assert noted(fields) == {"i": f"is {value}, expected 1 to 10"}


@given(seconds=st.integers(-(2**63), 2**63 - 1) | st.integers(-(2**36), 2**38), nanos=st.integers(-(2**31), 2**31 - 1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # what was noted is cleared
def test_times_are_read_or_refused(fields: FieldReader, seconds: int, nanos: int) -> None:
    fields.violations.found.clear()
    first, last = -62_135_596_800, 253_402_300_799
    possible = first <= seconds <= last and 0 <= nanos < 10**9
    found = fields.time("t", Timestamp(seconds=seconds, nanos=nanos))
    assert found.tzinfo is UTC
    if possible:
        assert noted(fields) == {}
        assert (found - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() == pytest.approx(seconds, abs=1)
    else:
        assert noted(fields).keys() == {"t"}
        assert str(seconds) in noted(fields)["t"]


def test_times_are_read_to_the_microsecond(fields: FieldReader) -> None:
    assert fields.time("t", Timestamp(seconds=1, nanos=2_999)) == datetime(1970, 1, 1, 0, 0, 1, 2, tzinfo=UTC)
    assert fields.time("t", Timestamp(seconds=-1, nanos=1_000)) == datetime(1969, 12, 31, 23, 59, 59, 1, tzinfo=UTC)
    assert noted(fields) == {}


def test_choices(fields: FieldReader) -> None:
    choices = {0: "zero", 1: "one"}
    assert fields.choice("c", 1, choices) == "one"
    assert noted(fields) == {}
    assert fields.choice("c", 7, choices) in choices.values()
    assert noted(fields) == {"c": "is 7, which this version of the contract does not define"}


@pytest.mark.parametrize(("value", "expected"), [(0, 10), (1, 1), (1_000, 1_000)])
def test_sizes(fields: FieldReader, value: int, expected: int) -> None:
    assert fields.size("limit", value, default=10, maximum=1_000) == expected
    assert noted(fields) == {}


@pytest.mark.parametrize("value", [-1, 1_001])
def test_sizes_refused(fields: FieldReader, value: int) -> None:
    fields.size("limit", value, default=10, maximum=1_000)
    assert noted(fields) == {"limit": f"is {value}, expected 1 to 1000"}
