"""`duplicates` of InsertVector, BatchInsertVectors and ImportVectors: what happens, and what the caller is told."""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from uuid import uuid4

import grpc
import pytest

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import TIMEOUT_S, failure, send
from tests.api.conftest import ReadContents
from tests.api.import_stream import ImportStream
from tests.api.messages import axis, floats, get, insert, new_memory, stats

SKIP = pb.Duplicates(policy=pb.DUPLICATE_POLICY_SKIP)
REINFORCE = pb.Duplicates(policy=pb.DUPLICATE_POLICY_REINFORCE)
SUPERSEDE = pb.Duplicates(policy=pb.DUPLICATE_POLICY_SUPERSEDE)
STORED, SKIPPED = pb.INSERT_OUTCOME_STORED, pb.INSERT_OUTCOME_SKIPPED
REINFORCED, SUPERSEDED = pb.INSERT_OUTCOME_REINFORCED, pb.INSERT_OUTCOME_SUPERSEDED


def bring(
    stub: MemoryServiceStub, user_id: str, policy: pb.Duplicates | None, content: str, **fields: Any
) -> pb.InsertVectorResponse:
    memory = new_memory(content, **fields)
    request = pb.InsertVectorRequest(user_id=user_id, memory=memory, duplicates=policy)
    return stub.InsertVector(request, timeout=TIMEOUT_S)


def bring_all(
    stub: MemoryServiceStub, user_id: str, policy: pb.Duplicates, *memories: pb.NewMemory
) -> list[pb.InsertResult]:
    request = pb.BatchInsertVectorsRequest(user_id=user_id, memories=memories, duplicates=policy)
    return list(stub.BatchInsertVectors(request, timeout=TIMEOUT_S).results)


@pytest.mark.parametrize("policy", [None, pb.Duplicates(), pb.Duplicates(policy=pb.DUPLICATE_POLICY_ALLOW)], ids=str)
def test_duplicates_are_allowed_unless_asked(
    stub: MemoryServiceStub, user_id: str, policy: pb.Duplicates | None
) -> None:
    replies = [bring(stub, user_id, policy, "same") for _ in range(2)]
    assert [reply.outcome for reply in replies] == [STORED, STORED]
    assert not replies[1].HasField("duplicate")
    assert [result.outcome for result in bring_all(stub, user_id, policy or SKIP, new_memory("other"))] == [STORED]
    assert stats(stub, user_id).live_count == 3


def test_skip_returns_the_memory_there_was(stub: MemoryServiceStub, user_id: str) -> None:
    old = insert(stub, user_id, "same", summary="first", metadata={"a": 1}, importance=3)
    reply = bring(stub, user_id, SKIP, "same", summary="second", importance=9)
    assert (reply.outcome, reply.memory) == (SKIPPED, old)
    assert reply.duplicate == pb.Duplicate(id=old.id, similarity=1.0, same_content=True)
    assert stats(stub, user_id).live_count == 1


def test_reinforce_returns_the_memory_as_it_is_now(stub: MemoryServiceStub, user_id: str) -> None:
    old = insert(stub, user_id, "same", importance=3)
    reply = bring(stub, user_id, REINFORCE, "same", importance=9)
    assert (reply.outcome, reply.memory.id, reply.memory.importance) == (REINFORCED, old.id, 9)
    assert reply.memory.access_count == 1
    assert reply.memory.HasField("last_accessed_at")
    assert reply.memory == get(stub, user_id, old.id)
    assert reply.memory.etag != old.etag


def test_supersede_returns_the_new_memory_and_restoring_undoes_it(stub: MemoryServiceStub, user_id: str) -> None:
    old = insert(stub, user_id, "same")
    reply = bring(stub, user_id, SUPERSEDE, "same", summary="new")
    assert reply.outcome == SUPERSEDED
    assert reply.memory == get(stub, user_id, reply.memory.id)
    assert reply.duplicate.id == old.id
    gone = get(stub, user_id, old.id)
    assert gone.HasField("deleted_at")
    assert (gone.purge_at.seconds - gone.deleted_at.seconds) == 30 * 86_400
    assert gone.superseded_by == reply.memory.id
    restored = send(stub, pb.RestoreVectorRequest(user_id=user_id, id=old.id)).memory
    assert restored.superseded_by == ""
    assert stats(stub, user_id).live_count == 2


def test_similar_memories_are_duplicates_where_asked(stub: MemoryServiceStub, user_id: str) -> None:
    old = insert(stub, user_id, "a cat", embedding=axis(0))
    near = pb.Duplicates(policy=pb.DUPLICATE_POLICY_SKIP, min_similarity=0.8)
    assert bring(stub, user_id, SKIP, "one cat", embedding=axis(0)).outcome == STORED
    far = bring(stub, user_id, near, "a dog", embedding=floats([3, 4, 0, 0, 0, 0, 0, 0]))
    assert far.outcome == STORED
    reply = bring(stub, f"{user_id}-2", near, "a cat", embedding=axis(0))
    assert reply.outcome == STORED
    reply = bring(stub, user_id, near, "that cat", embedding=floats([0, 0, 0, 1, 0, 0, 0, 0]))
    assert reply.outcome == STORED
    reply = bring(stub, user_id, near, "which cat", embedding=floats([0.2, 0, 0, 1, 0, 0, 0, 0]))
    assert (reply.outcome, reply.memory.content) == (SKIPPED, "that cat")
    assert reply.duplicate.similarity == pytest.approx(1 / math.sqrt(1.04), abs=1e-3)
    assert not reply.duplicate.same_content
    assert reply.duplicate.id != old.id


def test_batch_tells_of_each_memory(stub: MemoryServiceStub, user_id: str) -> None:
    old = insert(stub, user_id, "old")
    results = bring_all(stub, user_id, SKIP, *[new_memory(content) for content in ("a", "old", "a", "b")])
    assert [result.outcome for result in results] == [STORED, SKIPPED, SKIPPED, STORED]
    assert [result.HasField("duplicate") for result in results] == [False, True, True, False]
    assert (results[1].id, results[1].etag, results[1].created_at) == (old.id, old.etag, old.created_at)
    assert results[2].id == results[0].id == results[2].duplicate.id
    assert stats(stub, user_id).live_count == 3


@pytest.mark.parametrize("policy", [SKIP, REINFORCE, SUPERSEDE], ids=lambda policy: str(policy.policy))
def test_a_repeated_call_gets_the_first_reply(stub: MemoryServiceStub, user_id: str, policy: pb.Duplicates) -> None:
    old = insert(stub, user_id, "same")
    one = pb.InsertVectorRequest(user_id=user_id, memory=new_memory("same"), request_id=str(uuid4()), duplicates=policy)
    many = pb.BatchInsertVectorsRequest(
        user_id=user_id, memories=[new_memory("same")], request_id=str(uuid4()), duplicates=policy
    )
    for request in (one, many):
        first = send(stub, request)
        before = stats(stub, user_id)
        assert send(stub, request) == first
        assert stats(stub, user_id) == before
    if policy is REINFORCE:
        assert get(stub, user_id, old.id).access_count == 2


def test_calls_at_once_store_one(stub: MemoryServiceStub, user_id: str) -> None:
    with ThreadPoolExecutor(8) as threads:
        replies = list(threads.map(lambda _: bring(stub, user_id, SKIP, "same", conversation_id="c"), range(16)))
    assert sorted(reply.outcome for reply in replies) == [STORED] + [SKIPPED] * 15
    assert len({reply.memory.id for reply in replies}) == 1
    assert stats(stub, user_id).live_count == 1


def test_a_taken_id_is_refused_first(stub: MemoryServiceStub, user_id: str) -> None:
    old = insert(stub, user_id, "same")
    refused = failure(lambda: bring(stub, user_id, SKIP, "same", id=old.id))
    assert (refused.code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "MEMORY_EXISTS")
    refused = failure(lambda: bring_all(stub, user_id, SKIP, new_memory("same"), new_memory("same", id=old.id)))
    assert list(refused.violations) == ["memories[1].id"]


def test_import_tells_of_each_memory_also_when_resumed(stub: MemoryServiceStub, user_id: str) -> None:
    old = insert(stub, user_id, "old")
    chunks = [[new_memory(content) for content in contents] for contents in (("a", "old"), ("b", "a", "b"))]
    with ImportStream(stub, user_id) as stream:
        for chunk in chunks:
            stream.send(chunk, duplicates=SKIP)
        first, second = stream.rest()
    assert list(first.outcomes) == [STORED, SKIPPED]
    assert list(second.outcomes) == [STORED, SKIPPED, SKIPPED]
    assert list(second.ids) == [second.ids[0], first.ids[0], second.ids[0]]
    assert first.ids[1] == old.id
    assert second.acknowledged_count == 5
    with ImportStream(stub, user_id, import_id=stream.import_id) as again:
        for chunk in chunks:
            again.send(chunk, duplicates=SKIP)
        repeated = again.rest()
    for reply, before in zip(repeated, (first, second), strict=True):
        assert reply.already_stored
        assert (list(reply.ids), list(reply.outcomes)) == (list(before.ids), list(before.outcomes))
    assert stats(stub, user_id).live_count == 3


def test_import_without_a_policy_tells_no_outcomes(stub: MemoryServiceStub, user_id: str) -> None:
    with ImportStream(stub, user_id) as stream:
        assert not stream.store([new_memory("same"), new_memory("same")]).outcomes
    assert stats(stub, user_id).live_count == 2


def test_import_may_supersede_and_reinforce(stub: MemoryServiceStub, user_id: str) -> None:
    memories = [new_memory("same"), new_memory("same", importance=8)]
    for policy, outcomes in ((REINFORCE, [STORED, REINFORCED]), (SUPERSEDE, [SUPERSEDED, SUPERSEDED])):
        with ImportStream(stub, user_id) as stream:
            stream.send(memories, duplicates=policy)
            [reply] = stream.rest()
        assert list(reply.outcomes) == outcomes
    assert stats(stub, user_id).live_count == 1
    assert get(stub, user_id, reply.ids[0]).superseded_by == reply.ids[1]


def test_a_policy_is_that_of_the_whole_import(stub: MemoryServiceStub, user_id: str) -> None:
    with ImportStream(stub, user_id) as stream:
        stream.send([new_memory("a")], duplicates=SKIP)
        assert list(stream.acknowledgement().outcomes) == [STORED]
        stream.send([new_memory("a")], duplicates=SUPERSEDE)
        assert "differs" in stream.failure().violations["duplicates"]


def near(policy: pb.DuplicatePolicy.ValueType, min_similarity: float) -> pb.Duplicates:
    return pb.Duplicates(policy=policy, min_similarity=min_similarity)


BAD = {
    "unknown policy": (pb.Duplicates(policy=99), False, "duplicates.policy"),  # type: ignore[arg-type]  # what is refused
    "zero": (near(pb.DUPLICATE_POLICY_SKIP, 0), False, "duplicates.min_similarity"),
    "negative": (near(pb.DUPLICATE_POLICY_SKIP, -0.5), False, "duplicates.min_similarity"),
    "above 1": (near(pb.DUPLICATE_POLICY_SKIP, 1.0000001), False, "duplicates.min_similarity"),
    "NaN": (near(pb.DUPLICATE_POLICY_SKIP, math.nan), False, "duplicates.min_similarity"),
    "infinite": (near(pb.DUPLICATE_POLICY_SKIP, math.inf), False, "duplicates.min_similarity"),
    "without a policy": (pb.Duplicates(min_similarity=0.9), False, "duplicates.min_similarity"),
    "of allowed ones": (near(pb.DUPLICATE_POLICY_ALLOW, 0.9), False, "duplicates.min_similarity"),
    "of what is embedded later": (near(pb.DUPLICATE_POLICY_SKIP, 0.9), True, "duplicates.min_similarity"),
}


@pytest.mark.parametrize(("policy", "embed_async", "field"), BAD.values(), ids=BAD)
def test_bad_policies_are_refused(
    stub: MemoryServiceStub,
    user_id: str,
    contents: ReadContents,
    policy: pb.Duplicates,
    *,
    embed_async: bool,
    field: str,
) -> None:
    before = contents()
    fields: dict[str, Any] = {"user_id": user_id, "duplicates": policy, "embed_async": embed_async}
    requests: list[Any] = [
        pb.InsertVectorRequest(memory=new_memory("a"), **fields),
        pb.BatchInsertVectorsRequest(memories=[new_memory("a")], **fields),
    ]
    refusals = [failure(partial(send, stub, request)) for request in requests]
    with ImportStream(stub, user_id) as stream:
        stream.send([new_memory("a")], duplicates=policy, embed_async=embed_async)
        refusals.append(stream.failure())
    for refused in refusals:
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert field in refused.violations
    assert contents() == before
