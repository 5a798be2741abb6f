"""What lifts a memory beside its nearness: recency, importance and accesses, bounded, explained, repeatable."""

from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import failure, send
from tests.api.messages import axis, floats, get, insert, insert_all, new_memory, timestamp
from tests.api.searches import check_scores, ids_of, search, without_timing
from tests.api.waiting import eventually
from tests.fix_server import StartServer

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NEAR = axis(0)
DAY = timedelta(days=1)


def toward(cosine: float, *, away: int = 1) -> pb.Vector:
    """Returns an embedding of this cosine to NEAR, the rest of it along another axis."""
    values = np.zeros(8)
    values[0], values[away] = cosine, np.sqrt(1.0 - cosine**2)
    return floats(values)


def ranking(**fields: Any) -> pb.Ranking:
    return pb.Ranking(**{"as_of": timestamp(NOW), **fields})


def boosts_of(result: pb.SearchResult) -> dict[str, tuple[Any, Any]]:
    """Returns value and weight of each boost."""
    return {boost.name: (boost.value, boost.weight) for boost in result.explanation.boosts}


def at(age: timedelta, **fields: Any) -> pb.NewMemory:
    return new_memory("the same", **{"embedding": NEAR, "created_at": timestamp(NOW - age), **fields})


def test_newer_memories_come_first(stub: MemoryServiceStub, user_id: str) -> None:
    ages = [timedelta(days=30), timedelta(days=60), timedelta(0), timedelta(days=-3), timedelta(days=3_000)]
    stored = insert_all(stub, user_id, [at(age) for age in ages])

    reply = search(stub, user_id, embedding=NEAR, ranking=ranking(recency_weight=0.4))

    assert (reply.formula, reply.mode) == ("dense-1", pb.SEARCH_MODE_DENSE)
    check_scores(reply)
    values = {result.memory.id: boosts_of(result)["recency"] for result in reply.results}
    for memory_id, value in zip(stored, [0.5, 0.25, 1.0, 1.0, 2.0**-100], strict=True):
        assert values[memory_id] == (pytest.approx(value), pytest.approx(0.4))
    # What is dated later than now is as new as can be.
    assert ids_of(reply)[:2] == sorted([stored[2], stored[3]])
    assert ids_of(reply)[2:] == [stored[0], stored[1], stored[4]]


def test_the_half_life_is_the_caller_s(stub: MemoryServiceStub, user_id: str) -> None:
    insert_all(stub, user_id, [at(timedelta(hours=2))])
    options = ranking(recency_weight=0.5, half_life=Duration(seconds=3_600))
    [result] = search(stub, user_id, embedding=NEAR, ranking=options).results
    assert boosts_of(result) == {"recency": (pytest.approx(0.25), 0.5)}


def test_age_counts_from_the_clock_named(stub: MemoryServiceStub, user_id: str) -> None:
    [old] = insert_all(stub, user_id, [at(timedelta(days=300))])
    stored_at = get(stub, user_id, old).updated_at.ToDatetime(UTC)
    send(stub, pb.GetVectorRequest(user_id=user_id, id=old))
    eventually(lambda: get(stub, user_id, old).access_count == 1)
    accessed_at = get(stub, user_id, old).last_accessed_at.ToDatetime(UTC)

    def recency(clock: pb.RecencyClock.ValueType) -> float:
        as_of = timestamp(stored_at + 30 * DAY)
        options = pb.Ranking(recency_weight=0.2, clock=clock, as_of=as_of)
        [result] = search(stub, user_id, embedding=NEAR, ranking=options).results
        return float(boosts_of(result)["recency"][0])

    def expected(since: datetime) -> float:
        return float(2.0 ** (-(stored_at + 30 * DAY - since) / (30 * DAY)))

    assert recency(pb.RECENCY_CLOCK_CREATED) == pytest.approx(expected(NOW - timedelta(days=300)))
    assert recency(pb.RECENCY_CLOCK_UPDATED) == pytest.approx(0.5)
    assert recency(pb.RECENCY_CLOCK_ACCESSED) == pytest.approx(expected(accessed_at))


def test_important_memories_come_first(stub: MemoryServiceStub, user_id: str) -> None:
    stored = insert_all(stub, user_id, [at(DAY, importance=importance) for importance in (1, 10, 5)])
    reply = search(stub, user_id, embedding=NEAR, ranking=ranking(importance_weight=0.5))
    assert ids_of(reply) == [stored[1], stored[2], stored[0]]
    check_scores(reply)
    assert [boosts_of(result)["importance"][0] for result in reply.results] == [1.0, pytest.approx(4 / 9), 0.0]


def test_memories_often_asked_for_come_first(stub: MemoryServiceStub, user_id: str) -> None:
    stored = insert_all(stub, user_id, [at(DAY), at(DAY)])
    often = max(stored)
    for _ in range(3):
        send(stub, pb.GetVectorRequest(user_id=user_id, id=often))
    eventually(lambda: get(stub, user_id, often).access_count == 3)
    reply = search(stub, user_id, embedding=NEAR, ranking=ranking(access_weight=0.3))
    assert ids_of(reply) == [often, min(stored)]
    check_scores(reply)
    values = [boosts_of(result)["access"][0] for result in reply.results]
    assert values == [pytest.approx(np.log(4) / np.log(101)), 0.0]


def test_boosts_come_before_the_limit(stub: MemoryServiceStub, user_id: str) -> None:
    # 60 memories are a little nearer than the one that matters more.
    insert_all(stub, user_id, [at(DAY, embedding=toward(0.95), importance=1) for _ in range(60)])
    [important] = insert_all(stub, user_id, [at(DAY, embedding=toward(0.9), importance=10)])
    reply = search(stub, user_id, embedding=NEAR, limit=1, ranking=ranking(importance_weight=0.2))
    assert ids_of(reply) == [important]


def test_no_boost_lifts_what_is_not_relevant(stub: MemoryServiceStub, user_id: str) -> None:
    [near] = insert_all(stub, user_id, [at(timedelta(days=5_000), importance=1, embedding=toward(0.9))])
    insert_all(stub, user_id, [at(timedelta(0), importance=10, embedding=toward(0.1))])
    everything = ranking(recency_weight=0.5, importance_weight=0.5, access_weight=0.5)
    reply = search(stub, user_id, embedding=NEAR, ranking=everything)
    assert ids_of(reply)[0] == near
    assert 0.0 < reply.results[1].score < reply.results[0].score


PRESETS = {
    pb.RANKING_PRESET_NONE: {},
    pb.RANKING_PRESET_BALANCED: {"recency": 0.2, "importance": 0.2, "access": 0.1},
    pb.RANKING_PRESET_GENERATIVE_AGENTS: {"recency": 0.5, "importance": 0.5},
    pb.RANKING_PRESET_RECENT: {"recency": 0.4},
}


@pytest.mark.parametrize("preset", PRESETS, ids=pb.RankingPreset.Name)
def test_presets_are_as_documented(stub: MemoryServiceStub, user_id: str, preset: pb.RankingPreset.ValueType) -> None:
    insert_all(stub, user_id, [at(DAY)])
    options = ranking(preset=preset)
    [result] = search(stub, user_id, embedding=NEAR, text="same", ranking=options).results
    assert {name: weight for name, (_, weight) in boosts_of(result).items()} == pytest.approx(PRESETS[preset])
    expected = {pb.RANKING_PRESET_GENERATIVE_AGENTS: 0.995**24, pb.RANKING_PRESET_RECENT: 0.5}
    if preset in expected:
        assert boosts_of(result)["recency"][0] == pytest.approx(expected[preset])


def test_what_is_set_replaces_the_preset_s_value(stub: MemoryServiceStub, user_id: str) -> None:
    insert_all(stub, user_id, [at(DAY)])
    options = ranking(preset=pb.RANKING_PRESET_BALANCED, recency_weight=0.0, access_weight=0.5)
    [result] = search(stub, user_id, embedding=NEAR, ranking=options).results
    weights = {name: weight for name, (_, weight) in boosts_of(result).items()}
    assert weights == pytest.approx({"importance": 0.2, "access": 0.5})


def test_the_same_moment_gives_the_same_answer(stub: MemoryServiceStub, user_id: str) -> None:
    insert_all(stub, user_id, [at(n * DAY, importance=1 + n % 10) for n in range(30)])
    options = ranking(preset=pb.RANKING_PRESET_BALANCED)
    replies = [search(stub, user_id, embedding=NEAR, text="same", ranking=options) for _ in range(3)]
    assert all(without_timing(reply) == without_timing(replies[0]) for reply in replies)


def test_age_counts_to_the_time_of_the_call(stub: MemoryServiceStub, user_id: str) -> None:
    insert(stub, user_id, embedding=NEAR)
    options = pb.Ranking(recency_weight=0.5, half_life=Duration(seconds=60))
    [result] = search(stub, user_id, embedding=NEAR, ranking=options).results
    assert 0.5 < boosts_of(result)["recency"][0] <= 1.0


@pytest.mark.parametrize("options", [None, pb.Ranking(), pb.Ranking(preset=pb.RANKING_PRESET_NONE)], ids=str)
def test_nearness_alone_is_scored_on_its_own_scale(
    stub: MemoryServiceStub, user_id: str, options: pb.Ranking | None
) -> None:
    insert(stub, user_id, embedding=toward(-0.5))
    reply = search(stub, user_id, embedding=NEAR, ranking=options)
    [result] = reply.results
    assert reply.formula == "cosine-1"
    assert result.score == pytest.approx(-0.5, abs=1e-3)
    explained = pb.Explanation(cosine=result.score, relevance=result.score, dense_rank=1)
    assert result.explanation == explained


@pytest.mark.parametrize(("metric", "formula"), [(pb.METRIC_L2, "l2-1"), (pb.METRIC_INNER_PRODUCT, "inner-product-1")])
def test_other_metrics_name_their_formula(
    stub: MemoryServiceStub, user_id: str, metric: pb.Metric.ValueType, formula: str
) -> None:
    insert(stub, user_id, embedding=NEAR)
    reply = search(stub, user_id, embedding=axis(0, 2.0), metric=metric)
    assert reply.formula == formula
    assert not reply.results[0].explanation.HasField("cosine")


def test_near_duplicates_collapse_into_the_best(stub: MemoryServiceStub, user_id: str) -> None:
    twins = insert_all(stub, user_id, [new_memory(embedding=toward(0.9)) for _ in range(3)])
    nearest = insert(stub, user_id, embedding=toward(0.92)).id
    other = insert(stub, user_id, embedding=toward(0.5, away=2)).id
    reply = search(stub, user_id, embedding=NEAR, diversity=pb.Diversity(collapse_similarity=0.99))
    assert ids_of(reply) == [nearest, other]
    assert list(reply.results[0].collapsed_ids) == sorted(twins)
    assert not reply.results[1].collapsed_ids


def test_results_that_differ_are_preferred(stub: MemoryServiceStub, user_id: str) -> None:
    first, twin = sorted(insert_all(stub, user_id, [new_memory(embedding=toward(0.9)) for _ in range(2)]))
    other = insert(stub, user_id, embedding=toward(0.7, away=2)).id
    reply = search(stub, user_id, embedding=NEAR, limit=2, diversity=pb.Diversity(mmr_lambda=0.5))
    assert ids_of(reply) == [first, other]
    assert not reply.results[0].explanation.HasField("max_similarity")
    assert reply.results[1].explanation.max_similarity == pytest.approx(0.63, abs=2e-3)
    alone = search(stub, user_id, embedding=NEAR, diversity=pb.Diversity(mmr_lambda=1.0))
    assert ids_of(alone) == [first, twin, other]


def test_diversity_in_every_mode(stub: MemoryServiceStub, user_id: str) -> None:
    insert_all(stub, user_id, [new_memory("harbour", embedding=NEAR) for _ in range(5)])
    insert(stub, user_id, "harbour", embedding=axis(3))
    diversity = pb.Diversity(collapse_similarity=0.9, mmr_lambda=0.5)
    for fields in ({"embedding": NEAR}, {"embedding": NEAR, "text": "harbour"}, {"text": "harbour"}):
        reply = search(stub, user_id, diversity=diversity, **fields)
        assert sorted(len(result.collapsed_ids) for result in reply.results) == [0, 4], fields
        check_scores(reply)


def test_like_a_memory_with_ranking(stub: MemoryServiceStub, user_id: str) -> None:
    stored = insert_all(stub, user_id, [at(DAY, importance=importance) for importance in (5, 1, 9)])
    reply = search(stub, user_id, memory_id=stored[0], ranking=ranking(importance_weight=0.2))
    assert ids_of(reply) == [stored[2], stored[1]]


def test_a_server_s_own_defaults(start_server: StartServer, user_id: str) -> None:
    stub = start_server(ranking="recent", dense_weight=0.25, language="german").stub
    info = send(stub, pb.GetServerInfoRequest())
    assert info.default_ranking == pb.Ranking(
        preset=pb.RANKING_PRESET_RECENT,
        recency_weight=0.4,
        half_life=Duration(seconds=86_400),
        clock=pb.RECENCY_CLOCK_CREATED,
        importance_weight=0.0,
        access_weight=0.0,
    )
    assert (info.default_dense_weight, info.default_language) == (0.25, "german")
    assert {"english", "german", "simple"} <= set(info.languages)

    memory = insert(stub, user_id, "Die Katzen", embedding=NEAR)
    assert memory.language == "german"
    [result] = search(stub, user_id, embedding=NEAR, text="Katze").results
    assert boosts_of(result)["recency"] == (pytest.approx(1.0, abs=1e-2), pytest.approx(0.4))
    assert result.explanation.relevance == pytest.approx(1.0, abs=1e-3)
    neutral = pb.Ranking(preset=pb.RANKING_PRESET_NONE)
    [result] = search(stub, user_id, embedding=axis(1), text="Katze", ranking=neutral).results
    assert not result.explanation.boosts
    assert result.score == pytest.approx(0.75, abs=1e-3)
    # Nothing is lifted in searches by meaning alone that do not ask for it.
    assert search(stub, user_id, embedding=NEAR).formula == "cosine-1"


TOO_LONG = Duration(seconds=200 * 365 * 86_400)
FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"ranking": pb.Ranking(recency_weight=0.51)}, "ranking.recency_weight"),
    ({"ranking": pb.Ranking(importance_weight=-0.1)}, "ranking.importance_weight"),
    ({"ranking": pb.Ranking(access_weight=float("nan"))}, "ranking.access_weight"),
    ({"ranking": pb.Ranking(half_life=Duration(nanos=1))}, "ranking.half_life"),
    ({"ranking": pb.Ranking(half_life=TOO_LONG)}, "ranking.half_life"),
    ({"ranking": pb.Ranking(half_life=Duration(seconds=5, nanos=-1))}, "ranking.half_life"),
    ({"ranking": pb.Ranking(preset=9)}, "ranking.preset"),  # type: ignore[arg-type]  # that is the point
    ({"ranking": pb.Ranking(clock=9)}, "ranking.clock"),  # type: ignore[arg-type]  # likewise
    ({"ranking": pb.Ranking(as_of=Timestamp(seconds=2**50))}, "ranking.as_of"),
    ({"ranking": pb.Ranking(recency_weight=0.1), "metric": pb.METRIC_L2}, "metric"),
    ({"ranking": pb.Ranking(recency_weight=0.1), "show_deleted": True}, "show_deleted"),
    ({"diversity": pb.Diversity(mmr_lambda=1.1)}, "diversity.mmr_lambda"),
    ({"diversity": pb.Diversity(mmr_lambda=float("nan"))}, "diversity.mmr_lambda"),
    ({"diversity": pb.Diversity(collapse_similarity=0.0)}, "diversity.collapse_similarity"),
    ({"diversity": pb.Diversity(collapse_similarity=1.01)}, "diversity.collapse_similarity"),
    ({"diversity": pb.Diversity(mmr_lambda=0.5), "metric": pb.METRIC_L2}, "metric"),
    ({"conversation": pb.ConversationOptions(neighbour_weight=1.1)}, "conversation.neighbour_weight"),
    ({"conversation": pb.ConversationOptions(conversation_weight=-0.1)}, "conversation.conversation_weight"),
    ({"conversation": pb.ConversationOptions(context=11)}, "conversation.context"),
    ({"conversation": pb.ConversationOptions(context=-1)}, "conversation.context"),
]


@pytest.mark.parametrize(
    ("fields", "wrong"), FAULTS, ids=[f"{number} {wrong}" for number, (_, wrong) in enumerate(FAULTS)]
)
def test_what_is_out_of_range_is_named(
    stub: MemoryServiceStub, user_id: str, fields: dict[str, Any], wrong: str
) -> None:
    refused = failure(lambda: search(stub, user_id, embedding=NEAR, **fields))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(refused.violations) == [wrong]
    batch = pb.BatchSearchSimilarRequest(user_id=user_id, searches=[pb.SearchSimilarRequest(embedding=NEAR, **fields)])
    assert list(failure(lambda: send(stub, batch)).violations) == [f"searches[0].{wrong}"]
