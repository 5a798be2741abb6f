"""Reading SearchSimilar's request."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from db.filters import Filter
from db.memory import View
from db.search_statements import Metric
from db.vectors import normalize
from memory_service.messages import search_request
from memory_service.messages.fields import FieldReader
from memory_service.messages.query_request import Query
from memory_service.messages.search_request import METRICS
from memory_service.v1 import memory_pb2 as pb
from tests.unit.noted import noted

ID = "0190f7a8-0000-7000-8000-00000000000a"
VECTOR = pb.Vector(f16_le=b"\0\x3c" * 4)


def read(fields: FieldReader, **changes: Any) -> search_request.SearchDraft:
    given = {"user_id": "u", **changes}
    return search_request.read(fields, pb.SearchSimilarRequest(**given))


def test_defaults(fields: FieldReader) -> None:
    draft = read(fields, text="q")
    assert noted(fields) == {}
    assert (draft.user_id, draft.query, draft.limit) == ("u", Query(text="q"), 10)
    assert (draft.metric, draft.filter, draft.min_score) == (Metric.COSINE, Filter(), None)
    assert (draft.view, draft.encoding) == (View.BASIC, pb.VECTOR_ENCODING_FLOATS)


def test_every_field(fields: FieldReader) -> None:
    draft = read(
        fields,
        memory_id=ID,
        limit=1_000,
        metric=pb.METRIC_L2,
        min_score=0.0,
        filter=pb.MemoryFilter(created_after=Timestamp(seconds=0)),
        show_deleted=True,
        view=pb.MEMORY_VIEW_FULL,
        embedding_encoding=pb.VECTOR_ENCODING_F32_LE,
    )
    assert noted(fields) == {}
    assert draft.query == Query(memory_id=UUID(ID))
    embedding = normalize(np.ones(4))
    nearest = draft.nearest(embedding, max_text_bytes=7)
    assert nearest.embedding is embedding
    assert (nearest.metric, nearest.limit, nearest.exclude, nearest.max_text_bytes) == (Metric.L2, 1_000, UUID(ID), 7)
    assert nearest.filter == Filter(created_after=datetime(1970, 1, 1, tzinfo=UTC), show_deleted=True)
    # 0 is a threshold; unset is none.
    assert nearest.min_score == 0.0
    assert (nearest.view, draft.encoding) == (View.FULL, pb.VECTOR_ENCODING_F32_LE)


def test_reply_has_the_encoding_of_the_request(fields: FieldReader) -> None:
    draft = read(fields, embedding=VECTOR)
    assert draft.encoding == pb.VECTOR_ENCODING_F16_LE
    assert draft.query.embedding is not None
    assert draft.query.embedding.norm == 2
    assert draft.nearest(draft.query.embedding, max_text_bytes=1).exclude is None
    assert noted(fields) == {}


@pytest.mark.parametrize(
    ("query", "field", "received"),
    [
        ({}, "text", "none of them"),
        ({"text": ""}, "text", "none of them"),
        ({"text": "q", "embedding": VECTOR, "mode": pb.SEARCH_MODE_DENSE}, "text", "embedding and text"),
        ({"text": "q", "memory_id": ID}, "memory_id", "text and memory_id"),
        ({"text": "q", "embedding": VECTOR, "memory_id": ID}, "memory_id", "embedding and text and memory_id"),
    ],
    ids=str,
)
def test_exactly_one_query(fields: FieldReader, query: dict[str, Any], field: str, received: str) -> None:
    assert read(fields, **query).query == Query()
    assert noted(fields) == {field: f"expected exactly one of embedding, text and memory_id, received {received}"}


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"user_id": ""}, "user_id"),
        ({"limit": -1}, "limit"),
        ({"limit": 1_001}, "limit"),
        ({"metric": 9}, "metric"),
        ({"view": 9}, "view"),
        ({"embedding_encoding": 9}, "embedding_encoding"),
        ({"min_score": float("nan")}, "min_score"),
        ({"filter": pb.MemoryFilter(min_importance=11)}, "filter.min_importance"),
        ({"text": " "}, "text"),
        ({"text": "x" * 65_537}, "text"),
        ({"text": "", "memory_id": "x"}, "memory_id"),
        ({"text": "", "embedding": pb.Vector()}, "embedding"),
        ({"text": "", "embedding": pb.Vector(f16_le=b"\0")}, "embedding.f16_le"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_fields_are_named(fields: FieldReader, wrong: dict[str, Any], field: str) -> None:
    read(fields, **{"text": "q", **wrong})
    assert noted(fields).keys() == {field}


def test_infinite_thresholds_are_thresholds(fields: FieldReader) -> None:
    assert read(fields, text="q", min_score=float("-inf")).min_score == float("-inf")
    assert noted(fields) == {}


def test_embeddings_must_fit_the_reply(fields: FieldReader) -> None:
    wide = FieldReader(fields.limits, 3_072, can_embed=True, violations=fields.violations)
    most = fields.limits.max_reply_bytes // (3_072 * 2)
    half = {"view": pb.MEMORY_VIEW_FULL, "embedding_encoding": pb.VECTOR_ENCODING_F16_LE}
    read(wide, text="q", limit=most, **half)
    read(wide, text="q", limit=1_000)
    assert noted(fields) == {}
    read(wide, text="q", limit=most, view=pb.MEMORY_VIEW_FULL)
    assert f"asks for {most} embeddings of {most * 3_072 * 4} bytes together" in noted(fields)["limit"]
    fields.violations.found.clear()
    read(wide, text="q", limit=most + 1, **half)
    assert noted(fields).keys() == {"limit"}


def test_metrics_are_the_contract_s() -> None:
    assert METRICS.keys() == set(pb.Metric.values())
    assert set(METRICS.values()) == set(Metric)
