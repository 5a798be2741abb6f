"""GetRecent: order, pages that stay stable while others write, filters and views."""

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import send
from tests.api.messages import axis, f32, get, insert, insert_all, new_memory, struct, timestamp, values_of

START = datetime(2024, 1, 1, tzinfo=UTC)


def at(minute: int) -> Any:
    return timestamp(START + timedelta(minutes=minute))


def page(stub: MemoryServiceStub, user_id: str, **fields: Any) -> pb.GetRecentResponse:
    reply: pb.GetRecentResponse = send(stub, pb.GetRecentRequest(user_id=user_id, **fields))
    return reply


def ids_of(reply: pb.GetRecentResponse) -> list[str]:
    return [memory.id for memory in reply.memories]


def all_ids(stub: MemoryServiceStub, user_id: str, **fields: Any) -> list[str]:
    """Returns the ids on all pages, or on those that follow a page_token."""
    ids: list[str] = []
    token = fields.pop("page_token", "")
    while True:
        reply = page(stub, user_id, page_token=token, **fields)
        ids.extend(ids_of(reply))
        token = reply.next_page_token
        if not token:
            return ids


def test_the_newest_come_first_and_equal_times_by_id(stub: MemoryServiceStub, user_id: str) -> None:
    old, new = insert(stub, user_id, created_at=at(0)), insert(stub, user_id, created_at=at(9))
    same = insert_all(stub, user_id, [new_memory(created_at=at(5)) for _ in range(6)])

    reply = page(stub, user_id)

    assert ids_of(reply) == [new.id, *sorted(same, reverse=True), old.id]
    assert not reply.next_page_token


def test_memories_are_returned_as_get_returns_them(stub: MemoryServiceStub, user_id: str) -> None:
    memory = insert(stub, user_id, "content", summary="s", metadata={"k": 1}, conversation_id="c")

    assert list(page(stub, user_id).memories) == [get(stub, user_id, memory.id)] == [memory]


@pytest.mark.parametrize("page_size", [1, 3, 7, 20, 21, 1_000])
def test_pages_of_any_size_hold_everything_once(stub: MemoryServiceStub, user_id: str, page_size: int) -> None:
    ids = insert_all(stub, user_id, [new_memory(created_at=at(i // 3)) for i in range(20)])

    listed = all_ids(stub, user_id, page_size=page_size)

    order = sorted(range(20), key=lambda i: (i // 3, ids[i]), reverse=True)
    assert listed == [ids[i] for i in order]


def test_a_page_holds_fifty_unless_asked_otherwise(stub: MemoryServiceStub, user_id: str) -> None:
    insert_all(stub, user_id, [new_memory() for _ in range(51)])

    first = page(stub, user_id)

    assert len(first.memories) == 50
    assert len(page(stub, user_id, page_token=first.next_page_token).memories) == 1


def test_a_page_larger_than_allowed_is_served_with_the_largest(stub: MemoryServiceStub, user_id: str) -> None:
    for size in (500, 500, 1):
        insert_all(stub, user_id, [new_memory() for _ in range(size)])

    first = page(stub, user_id, page_size=2_000_000_000, view=pb.MEMORY_VIEW_HEAD)

    assert len(first.memories) == 1_000
    rest = page(stub, user_id, page_size=2_000_000_000, page_token=first.next_page_token)
    assert len(rest.memories) == 1
    assert not rest.next_page_token


def test_what_others_write_disturbs_no_page(stub: MemoryServiceStub, user_id: str) -> None:
    ids = insert_all(stub, user_id, [new_memory(created_at=at(i)) for i in range(9)])[::-1]
    first = page(stub, user_id, page_size=3)
    insert(stub, user_id, created_at=at(99))
    late = insert(stub, user_id, created_at=at(4)).id
    send(stub, pb.DeleteVectorRequest(user_id=user_id, id=ids[3]))

    rest = all_ids(stub, user_id, page_size=3, page_token=first.next_page_token)

    assert ids_of(first) == ids[:3]
    assert [memory_id for memory_id in rest if memory_id != late] == ids[4:]
    assert len(set(rest)) == len(rest)


def test_the_memory_a_page_ended_with_may_be_erased(stub: MemoryServiceStub, user_id: str) -> None:
    ids = insert_all(stub, user_id, [new_memory(created_at=at(i)) for i in range(4)])[::-1]
    first = page(stub, user_id, page_size=2)
    send(stub, pb.DeleteVectorRequest(user_id=user_id, id=ids[1], hard=True))

    assert ids_of(page(stub, user_id, page_size=2, page_token=first.next_page_token)) == ids[2:]


def test_pages_reach_back_to_the_year_one(stub: MemoryServiceStub, user_id: str) -> None:
    years = [datetime(year, 1, 1, 0, 0, 0, 1, UTC) for year in (1, 1900, 1970, 2000)]
    ids = insert_all(stub, user_id, [new_memory(created_at=timestamp(year)) for year in years])

    assert all_ids(stub, user_id, page_size=1) == ids[::-1]


def test_size_view_and_encoding_may_change_between_pages(stub: MemoryServiceStub, user_id: str) -> None:
    ids = insert_all(stub, user_id, [new_memory(created_at=at(i)) for i in range(5)])[::-1]
    first = page(stub, user_id, page_size=1)

    rest = page(
        stub,
        user_id,
        page_size=9,
        page_token=first.next_page_token,
        view=pb.MEMORY_VIEW_FULL,
        embedding_encoding=pb.VECTOR_ENCODING_F32_LE,
    )

    assert ids_of(rest) == ids[1:]
    assert {memory.embedding.WhichOneof("encoding") for memory in rest.memories} == {"f32_le"}


@pytest.fixture
def varied(stub: MemoryServiceStub, user_id: str) -> dict[str, str]:
    """Memories that differ in all that can be filtered by: names by id."""
    memories = {
        "plain": new_memory(created_at=at(0)),
        "chat": new_memory(created_at=at(10), conversation_id="chat", importance=9, metadata={"lang": "en", "n": 1}),
        "chat2": new_memory(created_at=at(20), conversation_id="chat", importance=2, metadata={"lang": "de"}),
        "work": new_memory(
            created_at=at(30), conversation_id="work", importance=9, metadata={"lang": "en", "deep": {"a": [1, 2]}}
        ),
    }
    return dict(zip(insert_all(stub, user_id, list(memories.values())), memories, strict=True))


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        pytest.param({"conversation_id": "chat"}, ["chat2", "chat"], id="conversation"),
        pytest.param({"conversation_id": "none such"}, [], id="unknown conversation"),
        pytest.param({"min_importance": 9}, ["work", "chat"], id="min_importance"),
        pytest.param({"max_importance": 5}, ["chat2", "plain"], id="max_importance"),
        pytest.param({"min_importance": 3, "max_importance": 8}, ["plain"], id="importance range"),
        pytest.param({"min_importance": 9, "max_importance": 1}, [], id="empty importance range"),
        pytest.param({"metadata_contains": struct({"lang": "en"})}, ["work", "chat"], id="metadata"),
        pytest.param({"metadata_contains": struct({"n": 1.0})}, ["chat"], id="metadata number"),
        pytest.param({"metadata_contains": struct({"deep": {"a": [2]}})}, ["work"], id="nested metadata"),
        pytest.param({"metadata_contains": struct({})}, ["work", "chat2", "chat", "plain"], id="empty metadata"),
        pytest.param({"created_after": at(10)}, ["work", "chat2", "chat"], id="created_after is inclusive"),
        pytest.param({"created_before": at(10)}, ["plain"], id="created_before is exclusive"),
        pytest.param({"created_after": at(5), "created_before": at(25)}, ["chat2", "chat"], id="time range"),
        pytest.param(
            {"conversation_id": "chat", "min_importance": 5, "metadata_contains": struct({"lang": "en"})},
            ["chat"],
            id="all at once",
        ),
    ],
)
def test_conditions_select(
    stub: MemoryServiceStub, user_id: str, varied: dict[str, str], conditions: dict[str, Any], expected: list[str]
) -> None:
    listed = all_ids(stub, user_id, page_size=1, filter=pb.MemoryFilter(**conditions))

    assert [varied[memory_id] for memory_id in listed] == expected


def test_deleted_memories_are_listed_on_request(stub: MemoryServiceStub, user_id: str) -> None:
    ids = insert_all(stub, user_id, [new_memory(created_at=at(i)) for i in range(3)])[::-1]
    send(stub, pb.DeleteVectorRequest(user_id=user_id, id=ids[1]))

    assert all_ids(stub, user_id, page_size=1) == [ids[0], ids[2]]
    assert all_ids(stub, user_id, page_size=1, show_deleted=True) == ids


def test_views_and_encodings(stub: MemoryServiceStub, user_id: str) -> None:
    insert(stub, user_id, "content", embedding=f32([2.0, 0, 0, 0, 0, 0, 0, 1.0]))

    head = page(stub, user_id, view=pb.MEMORY_VIEW_HEAD).memories[0]
    full = page(stub, user_id, view=pb.MEMORY_VIEW_FULL, embedding_encoding=pb.VECTOR_ENCODING_F16_LE).memories[0]

    assert (head.content, head.HasField("embedding")) == ("", False)
    assert full.embedding.WhichOneof("encoding") == "f16_le"
    np.testing.assert_allclose(values_of(full.embedding), [2.0, 0, 0, 0, 0, 0, 0, 1.0], rtol=2e-3)


def test_an_unknown_user_has_an_empty_page(stub: MemoryServiceStub, user_id: str) -> None:
    assert page(stub, user_id) == pb.GetRecentResponse()


def test_listing_is_not_an_access(stub: MemoryServiceStub, user_id: str) -> None:
    insert(stub, user_id, embedding=axis(1))
    page(stub, user_id)

    assert page(stub, user_id).memories[0].access_count == 0
