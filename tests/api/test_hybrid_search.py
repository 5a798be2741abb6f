"""Searching by meaning and by words at once: what either side finds, judged by both."""

import grpc
import numpy as np
import psycopg
import pytest

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import failure, send
from tests.api.messages import axis, floats, get, insert, insert_all, new_memory
from tests.api.searches import check_convex, check_scores, ids_of, search, without_timing

NEAR = axis(0)


def toward(cosine: float) -> pb.Vector:
    """Returns an embedding of this cosine to NEAR."""
    values = np.zeros(8)
    values[:2] = cosine, np.sqrt(1.0 - cosine**2)
    return floats(values)


def forget_embedding(database_url: str, memory_id: str, *, error: str | None = None) -> None:
    """Makes a memory wait for its embedding, as those stored with embed_async do."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        statement = (
            b"UPDATE memory_entries SET embedding = NULL, embedding_norm = NULL, embedding_error = %s WHERE id = %s"
        )
        assert connection.execute(statement, [error, memory_id]).rowcount == 1


@pytest.mark.parametrize("mode", [pb.SEARCH_MODE_UNSPECIFIED, pb.SEARCH_MODE_HYBRID])
def test_a_text_beside_an_embedding_finds_by_both(
    stub: MemoryServiceStub, user_id: str, mode: pb.SearchMode.ValueType
) -> None:
    meant = insert(stub, user_id, "nothing of the kind", embedding=toward(0.9)).id
    worded = insert(stub, user_id, "the harbour master", embedding=axis(5)).id
    both = insert(stub, user_id, "harbours in winter", embedding=toward(0.8)).id
    neither = insert(stub, user_id, "a cello", embedding=axis(6)).id

    reply = search(stub, user_id, embedding=NEAR, text="harbour", mode=mode)

    assert (reply.mode, reply.formula, reply.plan) == (pb.SEARCH_MODE_HYBRID, "convex-1", pb.SEARCH_PLAN_EXACT)
    assert ids_of(reply)[0] == both
    assert set(ids_of(reply)[:3]) == {meant, worded, both}
    assert ids_of(reply)[3:] == [neither]
    check_convex(reply, 0.6)
    assert [(term.lexeme, term.document_frequency) for term in reply.terms] == [("harbour", 2)]
    assert not reply.maybe_incomplete


def test_what_only_words_find_is_never_lost(stub: MemoryServiceStub, user_id: str) -> None:
    # More memories near the embedding than either side brings as candidates.
    insert_all(stub, user_id, [new_memory(f"number {n}", embedding=toward(0.9)) for n in range(130)])
    worded = insert(stub, user_id, "the zeppelin", embedding=toward(-0.5)).id

    reply = search(stub, user_id, embedding=NEAR, text="zeppelin", limit=5, fusion=pb.Fusion(dense_weight=0.4))

    [first, *others] = reply.results
    assert first.memory.id == worded
    # It is judged by its meaning too, although the side that compares meaning did not bring it.
    assert first.explanation.cosine == pytest.approx(-0.5, abs=1e-3)
    assert not first.explanation.HasField("dense_rank")
    assert first.explanation.lexical_rank == 1
    assert len(others) == 4
    assert all(result.explanation.bm25 == 0 for result in others)
    assert reply.candidates_considered == 51


def test_what_only_meaning_finds_is_never_lost(stub: MemoryServiceStub, user_id: str) -> None:
    insert_all(stub, user_id, [new_memory(f"zeppelin {n}", embedding=axis(3)) for n in range(130)])
    meant = insert(stub, user_id, "an airship", embedding=NEAR).id
    reply = search(stub, user_id, embedding=NEAR, text="zeppelin", limit=5, fusion=pb.Fusion(dense_weight=0.6))
    assert ids_of(reply)[0] == meant
    assert len(reply.results) == 5


def test_the_near_are_judged_by_words_they_are_not_found_by(stub: MemoryServiceStub, user_id: str) -> None:
    # 130 shorter memories have the word more prominently.
    insert_all(stub, user_id, [new_memory("zeppelin", embedding=axis(3)) for _ in range(130)])
    long = insert(stub, user_id, "a zeppelin over the lake, and many other things besides", embedding=NEAR).id
    reply = search(stub, user_id, embedding=NEAR, text="zeppelin", limit=2)
    assert ids_of(reply)[0] == long
    explanation = reply.results[0].explanation
    assert explanation.bm25 > 0
    assert not explanation.HasField("lexical_rank")


@pytest.mark.parametrize("dense_weight", [0.0, 0.25, 1.0])
def test_the_blend_is_as_documented(stub: MemoryServiceStub, user_id: str, dense_weight: float) -> None:
    words = ["harbour", "harbour harbour freezes", "freezes", "nothing", "harbour master of the frozen harbour"]
    insert_all(stub, user_id, [new_memory(text, embedding=toward(n / 5 - 0.3)) for n, text in enumerate(words)])
    reply = search(stub, user_id, embedding=NEAR, text="harbour freezes", fusion=pb.Fusion(dense_weight=dense_weight))
    assert len(reply.results) == len(words)
    check_convex(reply, dense_weight)
    scores = [result.score for result in reply.results]
    assert scores == sorted(scores, reverse=True)


def test_reciprocal_ranks_are_as_documented(stub: MemoryServiceStub, user_id: str) -> None:
    words = ["harbour", "harbour harbour freezes", "freezes", "nothing"]
    insert_all(stub, user_id, [new_memory(text, embedding=toward(n / 5)) for n, text in enumerate(words)])
    reply = search(stub, user_id, embedding=NEAR, text="harbour freezes", fusion=pb.Fusion(rrf_k=60))
    assert reply.formula == "rrf-1"
    check_scores(reply)
    assert sorted(result.explanation.dense_rank for result in reply.results) == [1, 2, 3, 4]
    for result in reply.results:
        one = result.explanation
        ranks = [one.dense_rank] + ([one.lexical_rank] if one.HasField("lexical_rank") else [])
        assert one.relevance == pytest.approx(sum(61 / (60 + rank) for rank in ranks) / 2)


def test_equal_scores_are_ordered_by_id_and_answers_repeat(stub: MemoryServiceStub, user_id: str) -> None:
    stored = insert_all(stub, user_id, [new_memory("the same", embedding=NEAR) for _ in range(30)])
    replies = [search(stub, user_id, embedding=NEAR, text="same", limit=20) for _ in range(3)]
    assert ids_of(replies[0]) == sorted(stored)[:20]
    assert all(without_timing(reply) == without_timing(replies[0]) for reply in replies)


def test_filters_hold_on_both_sides(stub: MemoryServiceStub, user_id: str) -> None:
    wanted = {"importance": 9, "conversation_id": "c", "metadata": {"lang": "en"}}
    near = insert(stub, user_id, "a", embedding=NEAR, **wanted).id
    worded = insert(stub, user_id, "harbour", embedding=axis(3), **wanted).id
    for changed in ({"importance": 1}, {"conversation_id": "d"}, {"metadata": {"lang": "de"}}):
        insert(stub, user_id, "harbour", embedding=NEAR, **{**wanted, **changed})
    filter_ = pb.MemoryFilter(conversation_id="c", min_importance=5)
    filter_.metadata_contains.update({"lang": "en"})
    reply = search(stub, user_id, embedding=NEAR, text="harbour", filter=filter_)
    assert set(ids_of(reply)) == {near, worded}


def test_deleted_and_foreign_memories_are_not_found(stub: MemoryServiceStub, user_id: str, other_user_id: str) -> None:
    insert(stub, other_user_id, "harbour", embedding=NEAR)
    gone = insert(stub, user_id, "harbour", embedding=NEAR).id
    send(stub, pb.DeleteVectorRequest(user_id=user_id, id=gone))
    assert ids_of(search(stub, user_id, embedding=NEAR, text="harbour")) == []


def test_min_score_is_on_the_final_score(stub: MemoryServiceStub, user_id: str) -> None:
    both = insert(stub, user_id, "harbour", embedding=NEAR).id
    insert(stub, user_id, "harbour", embedding=axis(3))
    insert(stub, user_id, "else", embedding=NEAR)
    assert ids_of(search(stub, user_id, embedding=NEAR, text="harbour", min_score=0.65)) == [both]
    assert len(search(stub, user_id, embedding=NEAR, text="harbour", min_score=0.35).results) == 3


def test_a_memory_that_waits_for_its_embedding_is_found_by_words(
    stub: MemoryServiceStub, user_id: str, module_database_url: str
) -> None:
    waiting = insert(stub, user_id, "the harbour", embedding=NEAR).id
    ready = insert(stub, user_id, "a cello", embedding=NEAR).id
    forget_embedding(module_database_url, waiting)

    reply = search(stub, user_id, embedding=NEAR, text="harbour")
    assert set(ids_of(reply)) == {waiting, ready}
    [found] = [result for result in reply.results if result.memory.id == waiting]
    assert found.memory.embedding_state == pb.EMBEDDING_STATE_PENDING
    assert not found.explanation.HasField("cosine")
    assert found.explanation.dense == 0
    assert ids_of(search(stub, user_id, embedding=NEAR)) == [ready]
    assert not get(stub, user_id, waiting, view=pb.MEMORY_VIEW_FULL).HasField("embedding")


@pytest.mark.parametrize(
    ("error", "state"),
    [(None, pb.EMBEDDING_STATE_PENDING), ("too long", pb.EMBEDDING_STATE_FAILED)],
    ids=["pending", "failed"],
)
def test_nothing_is_near_a_memory_without_embedding(
    stub: MemoryServiceStub,
    user_id: str,
    module_database_url: str,
    error: str | None,
    state: pb.EmbeddingState.ValueType,
) -> None:
    waiting = insert(stub, user_id, "the harbour", embedding=NEAR).id
    forget_embedding(module_database_url, waiting, error=error)
    assert get(stub, user_id, waiting).embedding_state == state
    refused = failure(lambda: search(stub, user_id, memory_id=waiting))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "EMBEDDING_PENDING")
    assert ("try again later" if error is None else "update its content") in refused.message
    batch = pb.BatchSearchSimilarRequest(user_id=user_id, searches=[pb.SearchSimilarRequest(memory_id=waiting)])
    assert failure(lambda: send(stub, batch)).message.startswith("searches[0].memory_id: ")


def test_a_batch_answers_each_search_as_if_alone(stub: MemoryServiceStub, user_id: str) -> None:
    insert_all(
        stub,
        user_id,
        [new_memory(f"harbour {n}", embedding=toward(n / 10), importance=n + 1, conversation_id="c") for n in range(9)],
    )
    as_of = pb.Ranking(preset=pb.RANKING_PRESET_BALANCED)
    as_of.as_of.GetCurrentTime()
    searches = [
        pb.SearchSimilarRequest(embedding=NEAR),
        pb.SearchSimilarRequest(embedding=NEAR, text="harbour 3", explain=True),
        pb.SearchSimilarRequest(text="harbour 4", mode=pb.SEARCH_MODE_LEXICAL, explain=True),
        pb.SearchSimilarRequest(embedding=NEAR, ranking=as_of, explain=True, limit=3),
        pb.SearchSimilarRequest(
            embedding=NEAR, text="5", conversation=pb.ConversationOptions(neighbour_weight=0.2, context=2)
        ),
        pb.SearchSimilarRequest(embedding=NEAR, text="5", diversity=pb.Diversity(mmr_lambda=0.5)),
    ]
    for one in searches:
        one.skip_access_recording = True
    reply = send(stub, pb.BatchSearchSimilarRequest(user_id=user_id, searches=searches))
    for one, response in zip(searches, reply.responses, strict=True):
        one.user_id = user_id
        assert without_timing(response) == without_timing(send(stub, one))
        assert response.results


def test_what_is_explained_is_explained_only_on_request(stub: MemoryServiceStub, user_id: str) -> None:
    insert(stub, user_id, "harbour", embedding=NEAR)
    reply = search(stub, user_id, embedding=NEAR, text="harbour", explain=False)
    assert not reply.terms
    assert not reply.results[0].HasField("explanation")
    assert reply.formula == "convex-1"


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"embedding": NEAR, "mode": pb.SEARCH_MODE_HYBRID}, "text"),
        ({"embedding": NEAR, "mode": pb.SEARCH_MODE_LEXICAL}, "text"),
        ({"embedding": NEAR, "text": "x", "mode": pb.SEARCH_MODE_LEXICAL}, "embedding"),
        ({"embedding": NEAR, "text": "x", "mode": pb.SEARCH_MODE_DENSE}, "text"),
        ({"embedding": NEAR, "text": " \n"}, "text"),
        ({"embedding": NEAR, "text": "x", "mode": 9}, "mode"),
        ({"embedding": NEAR, "text": "x", "metric": pb.METRIC_L2}, "metric"),
        ({"embedding": NEAR, "text": "x", "show_deleted": True}, "show_deleted"),
        ({"text": "x", "show_deleted": True}, "show_deleted"),
        ({"embedding": NEAR, "text": "x", "fusion": pb.Fusion(dense_weight=1.5)}, "fusion.dense_weight"),
        ({"embedding": NEAR, "text": "x", "fusion": pb.Fusion(dense_weight=float("nan"))}, "fusion.dense_weight"),
        ({"embedding": NEAR, "text": "x", "fusion": pb.Fusion(rrf_k=0.5)}, "fusion.rrf_k"),
        ({"embedding": NEAR, "text": "x", "fusion": pb.Fusion(rrf_k=1_001)}, "fusion.rrf_k"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(
    stub: MemoryServiceStub, user_id: str, fields: dict[str, object], wrong: str
) -> None:
    refused = failure(lambda: search(stub, user_id, **fields))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert list(refused.violations) == [wrong]
