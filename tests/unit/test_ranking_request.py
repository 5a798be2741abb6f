"""Reading how a search ranks, and what it goes by."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from db.lexical import Words
from memory_service.messages import ranking_request, search_request
from memory_service.messages.fields import FieldReader
from memory_service.messages.query_request import MODES, Query
from memory_service.messages.ranking_request import CLOCKS, PRESET_NAMES, RankingDefaults, RankingDraft
from memory_service.messages.search_request import SearchDraft
from memory_service.ranking.options import Boosts, Clock, ConversationWeights, Convex, Diversity, Mode, Rrf
from memory_service.ranking.presets import PRESETS
from memory_service.v1 import memory_pb2 as pb
from tests.unit.noted import noted

ID = "0190f7a8-0000-7000-8000-00000000000a"
VECTOR = pb.Vector(f16_le=b"\0\x3c" * 4)
DEFAULTS = RankingDefaults(preset="balanced", dense_weight=0.3)


def read(fields: FieldReader, defaults: RankingDefaults = DEFAULTS, **given: Any) -> SearchDraft:
    return search_request.read(fields, pb.SearchSimilarRequest(user_id="u", **given), defaults)


def ranking_of(fields: FieldReader, **given: Any) -> RankingDraft:
    return read(fields, **{"text": "q", **given}).ranking


QUERIES: list[tuple[dict[str, Any], bool, Mode, bool]] = [
    # What is given, whether the server has an embedder, the mode that follows, and whether the text is embedded.
    ({"text": "q"}, True, Mode.HYBRID, True),
    ({"text": "q"}, False, Mode.LEXICAL, False),
    ({"text": "q", "embedding": VECTOR}, True, Mode.HYBRID, False),
    ({"text": "q", "embedding": VECTOR}, False, Mode.HYBRID, False),
    ({"embedding": VECTOR}, True, Mode.DENSE, False),
    ({"memory_id": ID}, False, Mode.DENSE, False),
    ({"text": "q", "mode": pb.SEARCH_MODE_DENSE}, True, Mode.DENSE, True),
    ({"text": "q", "mode": pb.SEARCH_MODE_LEXICAL}, True, Mode.LEXICAL, False),
    ({"text": "q", "mode": pb.SEARCH_MODE_HYBRID}, True, Mode.HYBRID, True),
    ({"text": "q", "embedding": VECTOR, "mode": pb.SEARCH_MODE_HYBRID}, False, Mode.HYBRID, False),
]


@pytest.mark.parametrize(("given", "can_embed", "mode", "embeds"), QUERIES)
def test_the_mode_follows_from_the_query(
    fields: FieldReader, given: dict[str, Any], *, can_embed: bool, mode: Mode, embeds: bool
) -> None:
    reader = FieldReader(fields.limits, fields.dimensions, can_embed, fields.violations)
    draft = read(reader, **given)
    assert noted(fields) == {}
    assert draft.mode is mode
    assert draft.text_to_embed == ("q" if embeds else "")
    assert (draft.words is None) == (mode is Mode.DENSE)
    assert (draft.query.embedding is None) == ("embedding" not in given)
    assert draft.query.memory_id == (UUID(ID) if "memory_id" in given else None)


@pytest.mark.parametrize(
    ("given", "can_embed", "field"),
    [
        ({"text": "q", "mode": pb.SEARCH_MODE_DENSE}, False, "text"),
        ({"text": "q", "mode": pb.SEARCH_MODE_HYBRID}, False, "text"),
        ({"embedding": VECTOR, "mode": pb.SEARCH_MODE_HYBRID}, True, "text"),
        ({"memory_id": ID, "mode": pb.SEARCH_MODE_LEXICAL}, True, "text"),
        ({"text": "q", "memory_id": ID, "mode": pb.SEARCH_MODE_HYBRID}, True, "memory_id"),
        ({"text": "q", "embedding": VECTOR, "mode": pb.SEARCH_MODE_LEXICAL}, True, "embedding"),
        ({"text": " ", "mode": pb.SEARCH_MODE_LEXICAL}, True, "text"),
        ({"text": "\t", "embedding": VECTOR}, True, "text"),
        ({"text": "q", "mode": 77}, True, "mode"),
    ],
)
def test_queries_that_do_not_fit(fields: FieldReader, given: dict[str, Any], *, can_embed: bool, field: str) -> None:
    read(FieldReader(fields.limits, fields.dimensions, can_embed, fields.violations), **given)
    assert noted(fields).keys() == {field}


def test_nothing_to_look_for(fields: FieldReader) -> None:
    for mode in MODES:
        assert read(fields, mode=mode).query == Query()
        assert noted(fields).keys() == {"text"}
        fields.violations.found.clear()


def test_words_have_the_limits_and_language_of_the_server(fields: FieldReader) -> None:
    assert read(fields, text="q").words == Words(text="q", language="english", max_terms=32)
    options = pb.LexicalOptions(language="german", k1=0.0, b=1.0)
    expected = Words(text="q", language="german", k1=0.0, b=1.0, max_terms=32)
    assert read(fields, text="q", lexical=options).words == expected
    assert noted(fields) == {}


@pytest.mark.parametrize(
    ("given", "boosts"),
    [
        ({"text": "q"}, PRESETS["balanced"]),
        ({"text": "q", "mode": pb.SEARCH_MODE_LEXICAL}, PRESETS["balanced"]),
        ({"embedding": VECTOR}, Boosts()),
        ({"text": "q", "mode": pb.SEARCH_MODE_DENSE}, Boosts()),
        ({"text": "q", "ranking": pb.Ranking()}, Boosts()),
        ({"embedding": VECTOR, "ranking": pb.Ranking(preset=pb.RANKING_PRESET_RECENT)}, PRESETS["recent"]),
    ],
)
def test_the_default_ranking_is_for_texts(fields: FieldReader, given: dict[str, Any], boosts: Boosts) -> None:
    assert read(fields, **given).ranking.boosts == boosts
    assert noted(fields) == {}


def test_defaults(fields: FieldReader) -> None:
    assert ranking_of(fields) == RankingDraft(
        fusion=Convex(0.3),
        boosts=PRESETS["balanced"],
        conversation=ConversationWeights(),
        diversity=Diversity(),
        as_of=None,
        context=0,
    )


def test_every_field(fields: FieldReader) -> None:
    found = ranking_of(
        fields,
        fusion=pb.Fusion(rrf_k=60),
        ranking=pb.Ranking(
            preset=pb.RANKING_PRESET_RECENT,
            recency_weight=0.5,
            half_life=Duration(seconds=90, nanos=500_000_000),
            clock=pb.RECENCY_CLOCK_ACCESSED,
            importance_weight=0.1,
            access_weight=0.0,
            as_of=Timestamp(seconds=0),
        ),
        conversation=pb.ConversationOptions(neighbour_weight=0.2, conversation_weight=0.7, context=3),
        diversity=pb.Diversity(mmr_lambda=0.0, collapse_similarity=1.0),
    )
    assert noted(fields) == {}
    assert found == RankingDraft(
        fusion=Rrf(60.0),
        boosts=Boosts(recency_weight=0.5, half_life_s=90.5, clock=Clock.ACCESSED, importance_weight=0.1),
        conversation=ConversationWeights(neighbour=0.2, conversation=0.7),
        diversity=Diversity(mmr_lambda=0.0, collapse_similarity=1.0),
        as_of=datetime(1970, 1, 1, tzinfo=UTC),
        context=3,
    )


NAN = float("nan")
FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({"fusion": pb.Fusion(dense_weight=-0.01)}, "fusion.dense_weight", "is -0.01, expected 0 to 1"),
    ({"fusion": pb.Fusion(dense_weight=NAN)}, "fusion.dense_weight", "is nan, expected 0 to 1"),
    ({"fusion": pb.Fusion(rrf_k=0.0)}, "fusion.rrf_k", "is 0, expected 1 to 1000"),
    ({"ranking": pb.Ranking(recency_weight=0.6)}, "ranking.recency_weight", "is 0.6, expected 0 to 0.5"),
    ({"ranking": pb.Ranking(importance_weight=NAN)}, "ranking.importance_weight", "is nan, expected 0 to 0.5"),
    ({"ranking": pb.Ranking(access_weight=float("inf"))}, "ranking.access_weight", "is inf, expected 0 to 0.5"),
    (
        {"ranking": pb.Ranking(half_life=Duration())},
        "ranking.half_life",
        "has 0 seconds and 0 nanoseconds, expected 1 to 3155760000 seconds",
    ),
    (
        {"ranking": pb.Ranking(half_life=Duration(seconds=1, nanos=2_000_000_000))},
        "ranking.half_life",
        "has 1 seconds and 2000000000 nanoseconds, expected 1 to 3155760000 seconds",
    ),
    ({"diversity": pb.Diversity(collapse_similarity=0.0)}, "diversity.collapse_similarity", "is 0, expected a number"),
    ({"conversation": pb.ConversationOptions(context=11)}, "conversation.context", "is 11, expected 0 to 10"),
    ({"lexical": pb.LexicalOptions(language="Germna")}, "lexical.language", "did you mean german?"),
    ({"lexical": pb.LexicalOptions(language="x" * 10_000)}, "lexical.language", "GetServerInfo.languages"),
    ({"lexical": pb.LexicalOptions(k1=-1.0)}, "lexical.k1", "is -1, expected 0 to 10"),
    ({"metric": pb.METRIC_L2}, "metric", "choose mode DENSE"),
    ({"show_deleted": True}, "show_deleted", "choose mode DENSE"),
]


@pytest.mark.parametrize(("given", "field", "description"), FAULTS, ids=lambda value: str(value)[:40])
def test_what_is_out_of_range_is_named(
    fields: FieldReader, given: dict[str, Any], field: str, description: str
) -> None:
    read(fields, text="q", **given)
    assert noted(fields).keys() == {field}
    assert description in noted(fields)[field]


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ({}, True),
        ({"explain": True}, True),
        ({"ranking": pb.Ranking(as_of=Timestamp(seconds=1))}, True),
        ({"conversation": pb.ConversationOptions(context=10)}, True),
        ({"ranking": pb.Ranking(access_weight=0.1)}, False),
        ({"conversation": pb.ConversationOptions(neighbour_weight=0.1)}, False),
        ({"conversation": pb.ConversationOptions(conversation_weight=0.1)}, False),
        ({"diversity": pb.Diversity(mmr_lambda=1.0)}, False),
        ({"diversity": pb.Diversity(collapse_similarity=1.0)}, False),
        ({"text": "q"}, False),
    ],
    ids=str,
)
def test_what_one_statement_answers(fields: FieldReader, given: dict[str, Any], *, plain: bool) -> None:
    assert read(fields, embedding=VECTOR, **given).is_plain == plain
    assert noted(fields) == {}


def test_embeddings_of_context_must_fit_the_reply(fields: FieldReader) -> None:
    wide = FieldReader(fields.limits, 3_072, can_embed=True, violations=fields.violations)
    read(wide, text="q", limit=100, view=pb.MEMORY_VIEW_FULL)
    assert noted(fields) == {}
    read(wide, text="q", limit=100, view=pb.MEMORY_VIEW_FULL, conversation=pb.ConversationOptions(context=1))
    assert "asks for 300 embeddings" in noted(fields)["limit"]


def test_enums_are_the_contract_s() -> None:
    assert MODES.keys() == set(pb.SearchMode.values())
    assert set(MODES.values()) == {None, *Mode}
    assert PRESET_NAMES.keys() == set(pb.RankingPreset.values())
    assert set(PRESET_NAMES.values()) == PRESETS.keys()
    assert CLOCKS.keys() == set(pb.RecencyClock.values())
    assert set(CLOCKS.values()) == {None, *Clock}
    for value, name in PRESET_NAMES.items():
        if value != pb.RANKING_PRESET_UNSPECIFIED:
            assert pb.RankingPreset.Name(value) == f"RANKING_PRESET_{name.upper()}"
    assert ranking_request.MAX_CONTEXT == 10
