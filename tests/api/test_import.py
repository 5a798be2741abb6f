"""ImportVectors: what each chunk stores, and what a second attempt does."""

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import send
from tests.api.conftest import ReadContents
from tests.api.import_stream import ImportStream, count, import_all, some
from tests.api.messages import f16, f32, floats, get, new_memory, timestamp

DISTINCT = {"id", "etag", "updatedAt", "userId"}


def test_chunks_are_acknowledged_one_by_one(stub: MemoryServiceStub, user_id: str) -> None:
    with ImportStream(stub, user_id) as stream:
        first = stream.store(some(3))
        assert count(stub, user_id) == 3
        second = stream.store(some(2))
        assert stream.rest() == []
    assert (first.chunk, len(first.ids), first.already_stored, first.acknowledged_count) == (0, 3, False, 3)
    assert (second.chunk, len(second.ids), second.already_stored, second.acknowledged_count) == (1, 2, False, 5)
    assert len({*first.ids, *second.ids}) == 5


def test_a_stream_without_chunks_stores_nothing(stub: MemoryServiceStub, user_id: str, contents: ReadContents) -> None:
    before = contents()
    assert import_all(stub, user_id, []) == []
    assert contents() == before


@pytest.mark.parametrize("vector", [floats, f32, f16], ids=["floats", "f32_le", "f16_le"])
def test_imported_memories_are_as_inserted_ones(stub: MemoryServiceStub, user_id: str, vector: Any) -> None:
    given = new_memory(
        "Zürich \N{SNOWMAN} 雪 \N{SLEUTH OR SPY}",
        conversation_id="c-1",
        summary="short",
        metadata={"a": [1, 2.5, None, True, {"deep": ""}], "": {}},
        embedding=vector(np.arange(1, 9) / 4),
        importance=10,
        created_at=timestamp(datetime(1969, 7, 20, 20, 17, 40, 123_456, tzinfo=UTC)),
    )
    [reply] = import_all(stub, user_id, [[given, *some(2)]])
    inserted = send(stub, pb.InsertVectorRequest(user_id=user_id, memory=given)).memory

    one, other = (
        MessageToDict(get(stub, user_id, memory_id, view=pb.MEMORY_VIEW_FULL))
        for memory_id in (reply.ids[0], inserted.id)
    )
    assert {key: one[key] for key in one.keys() - DISTINCT} == {key: other[key] for key in other.keys() - DISTINCT}


def test_order_ids_and_defaults(stub: MemoryServiceStub, user_id: str) -> None:
    own = str(uuid4())
    chunk = [new_memory("a"), new_memory("b", id=own), new_memory("c", embedding=f32(np.arange(8)))]
    [reply] = import_all(stub, user_id, [chunk])

    assert reply.ids[1] == own
    stored = [get(stub, user_id, memory_id) for memory_id in reply.ids]
    assert [memory.content for memory in stored] == ["a", "b", "c"]
    assert [memory.importance for memory in stored] == [5, 5, 5]
    assert {memory.embedding_model for memory in stored} == {"caller"}
    assert stored[0].created_at == stored[0].updated_at


def test_ten_thousand_memories(stub: MemoryServiceStub, user_id: str) -> None:
    random = np.random.default_rng(11)
    vectors = random.normal(size=(10_000, 8)).astype(np.float32)
    memories = [new_memory(f"number {index}", embedding=f32(vector)) for index, vector in enumerate(vectors)]
    replies = import_all(stub, user_id, [memories[start : start + 1_000] for start in range(0, 10_000, 1_000)])

    assert [reply.acknowledged_count for reply in replies] == list(range(1_000, 11_000, 1_000))
    assert count(stub, user_id) == 10_000
    ids = [memory_id for reply in replies for memory_id in reply.ids]
    nearest = send(stub, pb.SearchSimilarRequest(user_id=user_id, embedding=f32(vectors[4_321]), limit=1)).results[0]
    assert (nearest.memory.id, nearest.memory.content) == (ids[4_321], "number 4321")


def test_a_repeated_import_stores_nothing_and_says_so(
    stub: MemoryServiceStub, user_id: str, contents: ReadContents
) -> None:
    import_id, chunks = str(uuid4()), [some(4), some(4, id="")]
    first = import_all(stub, user_id, chunks, import_id=import_id)
    before = contents()

    again = import_all(stub, user_id, chunks, import_id=import_id.upper())

    assert [reply.already_stored for reply in again] == [True, True]
    assert [list(reply.ids) for reply in again] == [list(reply.ids) for reply in first]
    assert again[-1].acknowledged_count == 8
    assert contents() == before


def test_an_import_is_resumed_from_any_chunk(stub: MemoryServiceStub, user_id: str) -> None:
    import_id, chunks = str(uuid4()), [some(3) for _ in range(5)]
    with ImportStream(stub, user_id, import_id=import_id) as broken:
        for chunk in chunks[:3]:
            broken.store(chunk)
        broken.call.cancel()

    with ImportStream(stub, user_id, import_id=import_id, first=2) as resumed:
        replies = [resumed.store(chunk) for chunk in chunks[2:]]
        assert resumed.rest() == []
    assert [reply.already_stored for reply in replies] == [True, False, False]
    assert count(stub, user_id) == 15


def test_numbers_may_leave_gaps(stub: MemoryServiceStub, user_id: str) -> None:
    with ImportStream(stub, user_id) as stream:
        for number in (5, 2**40, 2**63 - 1):
            stream.send(some(1), chunk=number)
            assert stream.acknowledgement().chunk == number


def test_the_same_import_id_of_another_user_is_another_import(
    stub: MemoryServiceStub, user_id: str, other_user_id: str
) -> None:
    import_id, chunks = str(uuid4()), [some(2)]
    [mine] = import_all(stub, user_id, chunks, import_id=import_id)
    [theirs] = import_all(stub, other_user_id, chunks, import_id=import_id)
    assert not theirs.already_stored
    assert set(mine.ids).isdisjoint(theirs.ids)
    assert (count(stub, user_id), count(stub, other_user_id)) == (2, 2)
