"""GetStats: what one user has stored."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import send
from tests.api.messages import axis, get, insert, insert_all, new_memory, stats, timestamp
from tests.api.waiting import eventually

START = datetime(2024, 1, 1, tzinfo=UTC)


def at(minute: int) -> Any:
    return timestamp(START + timedelta(minutes=minute))


def delete(stub: MemoryServiceStub, user_id: str, memory_id: str, *, hard: bool = False) -> None:
    send(stub, pb.DeleteVectorRequest(user_id=user_id, id=memory_id, hard=hard))


def test_a_user_never_seen_has_zeros(stub: MemoryServiceStub, user_id: str) -> None:
    assert stats(stub, user_id) == pb.GetStatsResponse()


def test_totals_are_of_live_memories(stub: MemoryServiceStub, user_id: str) -> None:
    ids = insert_all(
        stub, user_id, [new_memory(importance=i + 1, created_at=at(i), conversation_id="c") for i in range(5)]
    )
    delete(stub, user_id, ids[0])
    delete(stub, user_id, ids[4])
    delete(stub, user_id, ids[3], hard=True)

    found = stats(stub, user_id)

    assert (found.live_count, found.deleted_count) == (2, 2)
    assert found.average_importance == pytest.approx((2 + 3) / 2)
    assert (found.oldest_created_at, found.newest_created_at) == (at(1), at(2))


def test_when_all_are_deleted_times_are_unset(stub: MemoryServiceStub, user_id: str) -> None:
    memory = insert(stub, user_id, conversation_id="c")
    delete(stub, user_id, memory.id)

    found = stats(stub, user_id)

    assert (found.live_count, found.deleted_count, found.average_importance) == (0, 1, 0.0)
    assert not found.HasField("oldest_created_at")
    assert not found.HasField("newest_created_at")
    assert found.conversation_count == 0
    assert [(entry.conversation_id, entry.deleted_count) for entry in found.conversations] == [("c", 1)]


def test_conversations_are_broken_down_most_recent_first(stub: MemoryServiceStub, user_id: str) -> None:
    memories = [("old", 1), ("busy", 2), ("busy", 9), ("", 5), ("gone", 7)]
    ids = insert_all(
        stub, user_id, [new_memory(conversation_id=name, created_at=at(minute)) for name, minute in memories]
    )
    delete(stub, user_id, ids[4])
    delete(stub, user_id, ids[1])

    found = stats(stub, user_id)

    assert [
        (entry.conversation_id, entry.live_count, entry.deleted_count, entry.newest_created_at)
        for entry in found.conversations
    ] == [("busy", 1, 1, at(9)), ("gone", 0, 1, at(7)), ("", 1, 0, at(5)), ("old", 1, 0, at(1))]
    assert found.conversation_count == 2


def test_the_breakdown_can_be_limited(stub: MemoryServiceStub, user_id: str) -> None:
    insert_all(stub, user_id, [new_memory(conversation_id=f"c{i:03}", created_at=at(i)) for i in range(120)])

    two = send(stub, pb.GetStatsRequest(user_id=user_id, conversation_limit=2))

    assert [entry.conversation_id for entry in two.conversations] == ["c119", "c118"]
    assert two.conversation_count == 120
    assert len(stats(stub, user_id).conversations) == 100
    assert len(send(stub, pb.GetStatsRequest(user_id=user_id, conversation_limit=1_000)).conversations) == 120


def test_bytes_are_of_text_metadata_and_embeddings_live_and_deleted(stub: MemoryServiceStub, user_id: str) -> None:
    embedding_bytes = 2 * 8
    insert(stub, user_id)
    empty = stats(stub, user_id).stored_bytes
    memory = insert(stub, user_id, "né", summary="sum", metadata={"k": "é"})

    found = stats(stub, user_id).stored_bytes

    assert embedding_bytes <= empty <= embedding_bytes + len("{}")
    assert found - 2 * empty == len("né".encode()) + len("sum") + len('{"k": "é"}'.encode()) - len("{}")
    delete(stub, user_id, memory.id)
    assert stats(stub, user_id).stored_bytes == found


def test_accesses_are_summed_over_live_memories(stub: MemoryServiceStub, user_id: str) -> None:
    memories = [insert(stub, user_id, embedding=axis(i)) for i in range(3)]
    for memory in memories:
        get(stub, user_id, memory.id, skip_access_recording=False)
    send(stub, pb.SearchSimilarRequest(user_id=user_id, embedding=axis(0), limit=2))
    eventually(lambda: stats(stub, user_id).total_accesses == 5)

    delete(stub, user_id, memories[2].id)

    # The deleted one was returned by the read, and by the search only if it was among the two nearest.
    counted = sum(get(stub, user_id, memory.id).access_count for memory in memories[:2])
    assert stats(stub, user_id).total_accesses == counted
