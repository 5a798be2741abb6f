"""Page tokens: they lead where they were made for, and anything else is refused."""

import base64
from datetime import UTC, datetime
from uuid import UUID

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from db.recent import Position
from memory_service.messages import page_token
from memory_service.messages.page_token import InvalidPageToken
from memory_service.v1 import memory_pb2 as pb
from tests.structs import to_struct

FILTER = pb.MemoryFilter(
    conversation_id="c",
    min_importance=2,
    max_importance=8,
    metadata_contains=to_struct({"b": 1, "a": {"d": 2, "c": 3}}),
    created_after=Timestamp(seconds=1),
    created_before=Timestamp(seconds=2),
    where=pb.Condition(exists=pb.MetadataPath(keys=["b"])),
)
REQUEST = pb.GetRecentRequest(user_id="u", filter=FILTER, show_deleted=True, page_size=10)
POSITION = Position(datetime(2026, 5, 4, 3, 2, 1, 987_654, tzinfo=UTC), UUID(int=7))

positions = st.builds(Position, st.datetimes(timezones=st.just(UTC)), st.uuids())


@given(positions)
def test_round_trip(position: Position) -> None:
    token = page_token.encode(position, REQUEST)
    assert page_token.decode(token, REQUEST) == position
    assert token.isascii()
    assert token.replace("-", "").replace("_", "").isalnum(), "needs no quoting in a URL"


def test_view_size_and_encoding_may_change_from_page_to_page() -> None:
    token = page_token.encode(POSITION, REQUEST)
    other = pb.GetRecentRequest()
    other.CopyFrom(REQUEST)
    other.page_size = 99
    other.page_token = token
    other.view = pb.MEMORY_VIEW_FULL
    other.embedding_encoding = pb.VECTOR_ENCODING_F16_LE
    # Keys of metadata have no order, whatever order they come in.
    other.filter.metadata_contains.CopyFrom(to_struct({"a": {"c": 3, "d": 2}, "b": 1}))
    assert page_token.decode(token, other) == POSITION


@pytest.mark.parametrize(
    "change",
    [
        {"user_id": "u2"},
        {"user_id": ""},
        {"show_deleted": False},
        {"filter": pb.MemoryFilter()},
        {"filter": pb.MemoryFilter(conversation_id="c")},
    ],
    ids=str,
)
def test_other_arguments_are_refused(change: dict[str, object]) -> None:
    token = page_token.encode(POSITION, REQUEST)
    fields = {"user_id": "u", "filter": FILTER, "show_deleted": True} | change
    with pytest.raises(InvalidPageToken, match="belongs to a request with another user_id, filter or show_deleted"):
        page_token.decode(token, pb.GetRecentRequest(**fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [field.name for field in pb.MemoryFilter.DESCRIPTOR.fields])
def test_every_part_of_the_filter_counts(name: str) -> None:
    other = pb.GetRecentRequest()
    other.CopyFrom(REQUEST)
    other.filter.ClearField(name)  # type: ignore[arg-type]  # the names of the message itself
    with pytest.raises(InvalidPageToken):
        page_token.decode(page_token.encode(POSITION, REQUEST), other)


def test_unset_and_empty_filter_are_the_same() -> None:
    token = page_token.encode(POSITION, pb.GetRecentRequest(user_id="u"))
    assert page_token.decode(token, pb.GetRecentRequest(user_id="u", filter=pb.MemoryFilter())) == POSITION


@given(st.integers(0, 32), st.integers(1, 255))
def test_tampering_is_refused(byte: int, mask: int) -> None:
    data = bytearray(base64.urlsafe_b64decode(page_token.encode(POSITION, REQUEST)))
    data[byte] ^= mask
    token = base64.urlsafe_b64encode(data).decode()
    with pytest.raises(InvalidPageToken):
        page_token.decode(token, REQUEST)


@given(st.text(max_size=60) | st.binary(max_size=40).map(lambda data: base64.urlsafe_b64encode(data).decode()))
def test_foreign_tokens_are_refused(token: str) -> None:
    with pytest.raises(InvalidPageToken, match="is not a page token of this"):
        page_token.decode(token, REQUEST)


def test_parts_of_a_token_are_refused() -> None:
    token = page_token.encode(POSITION, REQUEST)
    for wrong in (token[:-1], token[1:], token + "A", token + "\n", token + token, " " + token):
        with pytest.raises(InvalidPageToken):
            page_token.decode(wrong, REQUEST)


def test_token_of_a_later_version_says_what_to_do() -> None:
    data = bytearray(base64.urlsafe_b64decode(page_token.encode(POSITION, REQUEST)))
    data[0] += 1
    with pytest.raises(InvalidPageToken, match="start from the first page"):
        page_token.decode(base64.urlsafe_b64encode(data).decode(), REQUEST)
