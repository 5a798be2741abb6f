"""BatchInsertVectors: all or none, in order, and the culprit is named."""

import uuid
from concurrent.futures import ThreadPoolExecutor

import grpc
import psycopg
import pytest

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import Failure, failure, failure_of, send
from tests.api.conftest import ReadContents
from tests.api.messages import axis, floats, get, insert, insert_all, new_memory, stats
from tests.api.waiting import eventually

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


def batch(user_id: str, *memories: pb.NewMemory) -> pb.BatchInsertVectorsRequest:
    return pb.BatchInsertVectorsRequest(user_id=user_id, memories=memories)


def test_results_follow_the_order_of_the_request(stub: MemoryServiceStub, user_id: str) -> None:
    memories = [new_memory(f"memory {i}", conversation_id=f"c{i % 3}", importance=1 + i % 10) for i in range(20)]

    reply = send(stub, batch(user_id, *memories))

    for memory, result in zip(memories, reply.results, strict=True):
        stored = get(stub, user_id, result.id)
        assert (stored.content, stored.conversation_id) == (memory.content, memory.conversation_id)
        assert stored.importance == memory.importance
        assert (stored.etag, stored.created_at) == (result.etag, result.created_at)


def test_ids_of_one_batch_sort_in_its_order(stub: MemoryServiceStub, user_id: str) -> None:
    ids = insert_all(stub, user_id, [new_memory() for _ in range(50)])

    assert ids == sorted(ids)


def test_a_batch_of_500_is_stored(stub: MemoryServiceStub, user_id: str) -> None:
    ids = insert_all(stub, user_id, [new_memory(f"memory {i}") for i in range(500)])

    assert len(set(ids)) == 500
    assert stats(stub, user_id).live_count == 500


def test_own_ids_and_made_ones_mix(stub: MemoryServiceStub, user_id: str) -> None:
    own = str(uuid.uuid4())

    ids = insert_all(stub, user_id, [new_memory("made"), new_memory("own", id=own)])

    assert ids[1] == own
    assert get(stub, user_id, own).content == "own"


BAD_MEMORIES = [
    pytest.param(new_memory(embedding=floats([1, 2, 3])), ("embedding", "DIMENSION_MISMATCH"), id="dimension"),
    pytest.param(new_memory(embedding=floats([0] * 8)), ("embedding", "INVALID_FIELD"), id="zero vector"),
    pytest.param(new_memory(importance=11), ("importance", "INVALID_FIELD"), id="importance"),
    pytest.param(new_memory("x" * 65_537), ("content", "INVALID_FIELD"), id="content"),
    pytest.param(new_memory("a\0b"), ("content", "INVALID_FIELD"), id="NUL"),
    pytest.param(new_memory(id="7"), ("id", "INVALID_FIELD"), id="id"),
    pytest.param(pb.NewMemory(content="text alone"), ("content", "EMBEDDER_DISABLED"), id="text alone"),
]


@pytest.mark.parametrize(("bad", "expected"), BAD_MEMORIES)
def test_one_bad_memory_refuses_the_batch_and_is_named(
    stub: MemoryServiceStub, user_id: str, contents: ReadContents, bad: pb.NewMemory, expected: tuple[str, str]
) -> None:
    before = contents()
    memories = [new_memory(f"good {i}") for i in range(5)]
    memories[3] = bad

    refused = failure(lambda: send(stub, batch(user_id, *memories)))

    field, reason = expected
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert list(refused.violations) == [f"memories[3].{field}"]
    assert contents() == before


def test_all_bad_memories_are_named_up_to_twenty(stub: MemoryServiceStub, user_id: str) -> None:
    refused = failure(lambda: send(stub, batch(user_id, *[new_memory(importance=0)] * 500)))

    assert list(refused.violations) == [f"memories[{i}].importance" for i in range(20)]


def test_an_id_twice_in_one_batch_is_refused(stub: MemoryServiceStub, user_id: str, contents: ReadContents) -> None:
    before, own = contents(), str(uuid.uuid4())

    refused = failure(lambda: send(stub, batch(user_id, new_memory(id=own), new_memory(), new_memory(id=own.upper()))))

    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "memories[0].id" in refused.violations["memories[2].id"]
    assert contents() == before


def test_an_id_taken_before_is_named(stub: MemoryServiceStub, user_id: str, contents: ReadContents) -> None:
    taken = insert(stub, user_id).id
    before = contents()

    refused = failure(lambda: send(stub, batch(user_id, new_memory(), new_memory(), new_memory(id=taken))))

    assert (refused.code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "MEMORY_EXISTS")
    assert list(refused.violations) == ["memories[2].id"]
    assert contents() == before


def test_batches_racing_for_one_id_store_one_of_them_and_name_the_id(stub: MemoryServiceStub, user_id: str) -> None:
    own = str(uuid.uuid4())
    insert(stub, user_id)  # otherwise the batches queue up behind the one that inserts the user

    def try_batch(number: int) -> Failure | None:
        others = [new_memory(f"{number}", embedding=axis(number)) for _ in range(60)]
        request = batch(user_id, *others[:59], new_memory(f"{number}", id=own), others[59])
        try:
            send(stub, request)
        except grpc.RpcError as error:
            return failure_of(error)
        return None

    with ThreadPoolExecutor(6) as threads:
        outcomes = list(threads.map(try_batch, range(6)))

    assert outcomes.count(None) == 1
    assert {tuple(outcome.violations) for outcome in outcomes if outcome} == {("memories[59].id",)}
    winner = get(stub, user_id, own).content
    assert outcomes[int(winner)] is None
    assert stats(stub, user_id).live_count == 62


def test_an_id_that_is_being_taken_meanwhile_is_named(
    stub: MemoryServiceStub, user_id: str, module_database_url: str
) -> None:
    stored, own = insert(stub, user_id).id, str(uuid.uuid4())
    request = batch(user_id, new_memory("not stored"), new_memory(id=own))

    with (
        psycopg.connect(module_database_url) as other,
        psycopg.connect(module_database_url, autocommit=True) as observer,
    ):
        other.execute("UPDATE memory_entries SET id = %s WHERE user_id = %s AND id = %s", [own, user_id, stored])
        call = stub.BatchInsertVectors.future(request)
        eventually(lambda: observer.execute(WAITING).fetchone() == (1,))
        other.commit()
        refused = failure(call.result)

    assert (refused.code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "MEMORY_EXISTS")
    assert list(refused.violations) == ["memories[1].id"]
    assert stats(stub, user_id).live_count == 1


def test_batches_that_share_conversations_do_not_deadlock(stub: MemoryServiceStub, user_id: str) -> None:
    names = [f"c{number}" for number in range(30)]

    def store(number: int) -> int:
        order = names if number % 2 else names[::-1]
        return len(insert_all(stub, user_id, [new_memory(conversation_id=name) for name in order]))

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(store, range(16))) == [30] * 16

    assert {entry.live_count for entry in stats(stub, user_id).conversations} == {16}
