"""Conversations in searches: what stands around a result, and what a memory gains from its neighbours."""

from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import failure, send
from tests.api.messages import axis, get, insert, insert_all, new_memory, timestamp
from tests.api.searches import check_scores, ids_of, search, without_timing
from tests.api.waiting import eventually

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
NEAR, FAR = axis(0), axis(3)


def turn(number: int, content: str = "", **fields: Any) -> pb.NewMemory:
    """Returns the memory that stands at this place in a conversation."""
    created_at = timestamp(BEGIN + timedelta(minutes=number))
    given = {"embedding": FAR, "conversation_id": "c", "created_at": created_at}
    return new_memory(content or f"turn {number}", **{**given, **fields})


def converse(stub: MemoryServiceStub, user_id: str, near: int, count: int = 9, **fields: Any) -> list[str]:
    """Stores a conversation, one memory of which is near; returns the ids, oldest first."""
    turns = [turn(n, embedding=NEAR if n == near else FAR, **fields) for n in range(count)]
    return list(reversed(insert_all(stub, user_id, list(reversed(turns)))))


def context(reach: int, **weights: float) -> pb.ConversationOptions:
    return pb.ConversationOptions(context=reach, **weights)


def ids(memories: Any) -> list[str]:
    return [memory.id for memory in memories]


def test_what_was_said_before_and_after_comes_with_a_result(stub: MemoryServiceStub, user_id: str) -> None:
    stored = converse(stub, user_id, near=4)
    reply = search(stub, user_id, embedding=NEAR, limit=1, conversation=context(2))
    [result] = reply.results
    assert result.memory.id == stored[4]
    assert (ids(result.before), ids(result.after)) == (stored[2:4], stored[5:7])
    assert result.before[0] == get(stub, user_id, stored[2])
    # Context alone leaves scores as they are.
    assert reply.formula == "cosine-1"
    assert result.score == pytest.approx(1.0, abs=1e-3)


def test_context_ends_where_the_conversation_does(stub: MemoryServiceStub, user_id: str) -> None:
    stored = converse(stub, user_id, near=0, count=3)
    [result] = search(stub, user_id, embedding=NEAR, limit=1, conversation=context(10)).results
    assert (ids(result.before), ids(result.after)) == ([], stored[1:])


def test_without_a_conversation_there_is_no_context(stub: MemoryServiceStub, user_id: str) -> None:
    insert_all(stub, user_id, [new_memory("a", embedding=NEAR), new_memory("b", embedding=FAR)])
    for result in search(stub, user_id, embedding=NEAR, conversation=context(2)).results:
        assert not result.before
        assert not result.after


@pytest.mark.parametrize("fields", [{"text": "turn 4", "embedding": NEAR}, {"text": '"turn 4"'}], ids=["both", "words"])
def test_context_in_the_other_modes(stub: MemoryServiceStub, user_id: str, fields: dict[str, Any]) -> None:
    stored = converse(stub, user_id, near=4)
    [result] = search(stub, user_id, limit=1, conversation=context(1), **fields).results
    assert (ids(result.before), result.memory.id, ids(result.after)) == ([stored[3]], stored[4], [stored[5]])


def test_context_is_of_the_same_user_and_conversation(
    stub: MemoryServiceStub, user_id: str, other_user_id: str
) -> None:
    converse(stub, other_user_id, near=4)
    converse(stub, user_id, near=99, conversation_id="another")
    stored = converse(stub, user_id, near=0, count=2)
    [result] = search(stub, user_id, embedding=NEAR, limit=1, conversation=context(10)).results
    assert (ids(result.before), ids(result.after)) == ([], [stored[1]])
    weighed = search(
        stub, user_id, embedding=NEAR, limit=100, conversation=context(5, neighbour_weight=1.0, conversation_weight=1.0)
    )
    seen = [*ids_of(weighed), *(one.id for result in weighed.results for one in (*result.before, *result.after))]
    assert {get(stub, user_id, one).user_id for one in seen} == {user_id}


def test_deleted_memories_are_no_context(stub: MemoryServiceStub, user_id: str) -> None:
    stored = converse(stub, user_id, near=4)
    send(stub, pb.DeleteVectorRequest(user_id=user_id, id=stored[3]))
    [result] = search(stub, user_id, embedding=NEAR, limit=1, conversation=context(2)).results
    assert ids(result.before) == [stored[1], stored[2]]


def test_the_filter_is_for_results_not_for_their_context(stub: MemoryServiceStub, user_id: str) -> None:
    turns = [turn(n, embedding=NEAR, importance=9 if n == 2 else 1) for n in range(5)]
    stored = insert_all(stub, user_id, turns)
    filter_ = pb.MemoryFilter(min_importance=5)
    reply = search(stub, user_id, embedding=NEAR, filter=filter_, conversation=context(1, neighbour_weight=0.5))
    [result] = reply.results
    assert (ids(result.before), result.memory.id, ids(result.after)) == ([stored[1]], stored[2], [stored[3]])


@pytest.mark.parametrize("view", [pb.MEMORY_VIEW_HEAD, pb.MEMORY_VIEW_BASIC, pb.MEMORY_VIEW_FULL])
def test_context_is_told_in_the_view_asked_for(
    stub: MemoryServiceStub, user_id: str, view: pb.MemoryView.ValueType
) -> None:
    converse(stub, user_id, near=4)
    [result] = search(stub, user_id, embedding=NEAR, limit=1, view=view, conversation=context(1)).results
    for memory in (*result.before, *result.after):
        assert bool(memory.content) == (view != pb.MEMORY_VIEW_HEAD)
        assert memory.HasField("embedding") == (view == pb.MEMORY_VIEW_FULL)


def test_context_has_to_fit_the_reply(stub: MemoryServiceStub, user_id: str) -> None:
    for n in range(70):
        memory = turn(n, "x" * 65_536, embedding=NEAR if n % 14 == 7 else FAR)
        send(stub, pb.InsertVectorRequest(user_id=user_id, memory=memory))
    refused = failure(lambda: search(stub, user_id, embedding=NEAR, limit=5, conversation=context(6)))
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "REPLY_TOO_LARGE")
    head = search(stub, user_id, embedding=NEAR, limit=5, conversation=context(6), view=pb.MEMORY_VIEW_HEAD)
    assert sum(len(result.before) + len(result.after) for result in head.results) == 60


def test_embeddings_of_context_count_toward_the_reply(stub: MemoryServiceStub, user_id: str) -> None:
    fields: dict[str, Any] = {"embedding": NEAR, "view": pb.MEMORY_VIEW_FULL}
    assert search(stub, user_id, limit=1_000, conversation=context(10), **fields).results == []


def test_neighbours_lend_of_their_relevance(stub: MemoryServiceStub, user_id: str) -> None:
    stored = converse(stub, user_id, near=4)
    reply = search(stub, user_id, embedding=NEAR, conversation=pb.ConversationOptions(neighbour_weight=0.2))
    check_scores(reply)
    assert ids_of(reply)[0] == stored[4]
    assert set(ids_of(reply)[1:3]) == {stored[3], stored[5]}
    scores = {result.memory.id: result.score for result in reply.results}
    assert scores[stored[3]] == pytest.approx(0.2, abs=1e-3)
    assert scores[stored[6]] == pytest.approx(0.0, abs=1e-3)
    gains = {result.memory.id: result.explanation.conversation for result in reply.results}
    assert gains[stored[3]] == pytest.approx(0.2, abs=1e-3)


def test_neighbours_come_in_though_neither_side_finds_them(stub: MemoryServiceStub, user_id: str) -> None:
    # More memories match than are candidates: only as a neighbour does the answer get in.
    insert_all(stub, user_id, [new_memory(f"harbour {n}", embedding=axis(1)) for n in range(130)])
    question, answer = insert_all(stub, user_id, [turn(0, "which harbour?", embedding=axis(1)), turn(1, "that one")])
    options = pb.ConversationOptions(neighbour_weight=0.5, conversation_weight=1.0)
    reply = search(stub, user_id, text='"which harbour"', limit=2, conversation=options)
    assert ids_of(reply) == [question, answer]
    assert reply.results[1].explanation.bm25 == 0
    assert reply.results[1].explanation.conversation > 0
    check_scores(reply)


def test_a_neighbour_is_judged_by_words_and_meaning_too(stub: MemoryServiceStub, user_id: str) -> None:
    insert_all(stub, user_id, [new_memory("harbour", embedding=axis(1)) for _ in range(130)])
    long = "harbour and a great many other things that make this the longest memory of them all"
    near = [turn(0, "cello", embedding=NEAR), turn(1, long, embedding=FAR)]
    stored = insert_all(stub, user_id, near)
    options = pb.ConversationOptions(neighbour_weight=0.5)
    reply = search(stub, user_id, embedding=NEAR, text="harbour cello", limit=20, conversation=options)
    [neighbour] = [result for result in reply.results if result.memory.id == stored[1]]
    assert neighbour.explanation.bm25 > 0
    assert neighbour.explanation.HasField("cosine")
    assert not neighbour.explanation.HasField("dense_rank")
    assert not neighbour.explanation.HasField("lexical_rank")


def test_a_good_conversation_lifts_its_memories(stub: MemoryServiceStub, user_id: str) -> None:
    insert_all(stub, user_id, [turn(n, "harbour ice", embedding=axis(1), conversation_id="good") for n in range(3)])
    member = insert(stub, user_id, "harbour", embedding=axis(1), conversation_id="good").id
    alone = insert(stub, user_id, "harbour", embedding=axis(1), conversation_id="other").id
    options = pb.ConversationOptions(conversation_weight=0.7)
    reply = search(stub, user_id, text="harbour ice", conversation=options)
    check_scores(reply)
    scores = {result.memory.id: result.score for result in reply.results}
    assert scores[member] > scores[alone]


def test_conversations_weigh_the_same_every_time(stub: MemoryServiceStub, user_id: str) -> None:
    converse(stub, user_id, near=4, count=30)
    options = context(1, neighbour_weight=0.2, conversation_weight=0.7)
    fields: dict[str, Any] = {"embedding": NEAR, "text": "turn 7", "conversation": options, "limit": 8}
    replies = [search(stub, user_id, **fields) for _ in range(3)]
    assert all(without_timing(reply) == without_timing(replies[0]) for reply in replies)


def test_a_memory_searched_from_does_not_come_back_as_a_neighbour(stub: MemoryServiceStub, user_id: str) -> None:
    stored = converse(stub, user_id, near=4)
    options = context(1, neighbour_weight=1.0)
    reply = search(stub, user_id, memory_id=stored[4], conversation=options, limit=100)
    assert stored[4] not in ids_of(reply)
    # It is what stood there, all the same.
    [after] = [result for result in reply.results if result.memory.id == stored[5]]
    assert ids(after.before) == [stored[4]]


def test_context_does_not_count_as_accesses(stub: MemoryServiceStub, user_id: str) -> None:
    stored = converse(stub, user_id, near=4)
    search(stub, user_id, embedding=NEAR, limit=1, conversation=context(2), skip_access_recording=False)
    eventually(lambda: get(stub, user_id, stored[4]).access_count == 1)
    assert get(stub, user_id, stored[3]).access_count == 0
