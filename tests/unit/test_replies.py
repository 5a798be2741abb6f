"""Reply messages: every field of what was stored, and nothing that the view left out."""

from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict

from db.filters import Filter
from db.memory import EmbeddingState, Memory, NewMemory
from db.search import Answer, Hit, Nearest
from db.search_plan import Plan
from db.search_statements import Metric
from db.stats import ConversationStats, UserStats
from db.vectors import normalize
from memory_service import search_outcome
from memory_service.messages import replies
from memory_service.v1 import memory_pb2 as pb

NOW = datetime(2026, 5, 4, 3, 2, 1, 987_654, tzinfo=UTC)
ID = "0190f7a8-0000-7000-8000-00000000000a"
SUCCESSOR = "0190f7a8-0000-7000-8000-00000000000b"
STORED = Memory(
    id=UUID(ID),
    user_id="u",
    conversation_id="c",
    importance=7,
    version=3,
    embedding_model="m",
    created_at=NOW,
    updated_at=NOW + timedelta(seconds=1),
    deleted_at=NOW + timedelta(seconds=2),
    purge_at=NOW + timedelta(seconds=3),
    access_count=4,
    last_accessed_at=NOW + timedelta(seconds=4),
    content="text",
    summary="s",
    metadata={"a": [1, None, {"b": True}]},
    language="german",
    superseded_by=UUID(SUCCESSOR),
    embedding_state=EmbeddingState.READY,
    embedding=normalize(np.array([3.0, 4.0])),
)
HEAD = replace(STORED, content=None, summary=None, metadata=None, language=None, embedding_state=None, embedding=None)
LIVE = replace(STORED, deleted_at=None, purge_at=None, last_accessed_at=None, conversation_id=None, superseded_by=None)


def plain(message: Any) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True)


def test_every_field_is_told() -> None:
    assert plain(replies.memory(STORED, pb.VECTOR_ENCODING_FLOATS)) == {
        "id": ID,
        "user_id": "u",
        "conversation_id": "c",
        "content": "text",
        "summary": "s",
        "metadata": {"a": [1.0, None, {"b": True}]},
        "embedding": {"floats": {"values": [pytest.approx(3, rel=1e-3), pytest.approx(4, rel=1e-3)]}},
        "importance": 7,
        "access_count": "4",
        "last_accessed_at": "2026-05-04T03:02:05.987654Z",
        "created_at": "2026-05-04T03:02:01.987654Z",
        "updated_at": "2026-05-04T03:02:02.987654Z",
        "deleted_at": "2026-05-04T03:02:03.987654Z",
        "purge_at": "2026-05-04T03:02:04.987654Z",
        "embedding_model": "m",
        "etag": STORED.etag,
        "language": "german",
        "embedding_state": "EMBEDDING_STATE_READY",
        "superseded_by": SUCCESSOR,
    }
    assert {field.name for field in fields(Memory)} - {"version"} == {
        field.name for field in pb.Memory.DESCRIPTOR.fields
    } - {"etag"}


def test_what_is_not_there_is_not_set() -> None:
    told = plain(replies.memory(HEAD))
    assert not told.keys() & {"content", "summary", "metadata", "embedding", "language", "embedding_state"}
    told = plain(replies.memory(LIVE))
    assert not told.keys() & {"deleted_at", "purge_at", "last_accessed_at", "conversation_id", "superseded_by"}
    assert "metadata" not in plain(replies.memory(replace(STORED, metadata={})))


def test_inserted_memory_is_as_if_read_back() -> None:
    new = NewMemory(
        id=UUID(ID),
        conversation_id=None,
        content="text",
        summary="s",
        metadata={"a": 1},
        embedding=normalize(np.ones(2)),
        embedding_model="m",
        importance=7,
        created_at=NOW,
        language="german",
    )
    later = NOW + timedelta(hours=1)
    read_back = replace(LIVE, version=1, updated_at=later, access_count=0, metadata={"a": 1}, embedding=None)
    assert replies.inserted("u", new, now=later) == replies.memory(read_back)
    receipt = replies.insert_result(new, now=later)
    assert (receipt.id, receipt.etag) == (ID, read_back.etag)
    assert receipt.created_at.ToDatetime(UTC) == NOW
    waiting = replies.inserted("u", replace(new, embedding=None), now=later)
    assert waiting.embedding_state == pb.EMBEDDING_STATE_PENDING


def test_search_keeps_order_and_scores() -> None:
    hits = [Hit(STORED, 0.5), Hit(LIVE, -2.0)]
    answer = Answer(hits=hits, plan=Plan.QUANTIZED, considered=40, maybe_incomplete=True)
    nearest = Nearest(embedding=normalize(np.ones(2)), metric=Metric.L2, limit=3, filter=Filter())
    reply = replies.search(search_outcome.of_nearest(nearest, answer), pb.VECTOR_ENCODING_F16_LE)
    assert (reply.plan, reply.candidates_considered, reply.maybe_incomplete) == (pb.SEARCH_PLAN_QUANTIZED, 40, True)
    assert (reply.mode, reply.formula) == (pb.SEARCH_MODE_DENSE, "l2-1")
    assert [result.score for result in reply.results] == [0.5, -2.0]
    assert reply.results[0].memory == replies.memory(STORED, pb.VECTOR_ENCODING_F16_LE)
    assert reply.results[0].memory.embedding.f16_le


def test_stats() -> None:
    user = UserStats(
        live_count=3,
        deleted_count=1,
        average_importance=5.5,
        total_accesses=2**40,
        oldest_created_at=NOW,
        newest_created_at=NOW + timedelta(days=1),
        stored_bytes=2**41,
        conversation_count=9,
        conversations=[ConversationStats(None, 1, 0, NOW), ConversationStats("c", 2, 1, NOW)],
    )
    assert plain(replies.stats(user)) == {
        "live_count": "3",
        "deleted_count": "1",
        "average_importance": 5.5,
        "total_accesses": str(2**40),
        "oldest_created_at": "2026-05-04T03:02:01.987654Z",
        "newest_created_at": "2026-05-05T03:02:01.987654Z",
        "stored_bytes": str(2**41),
        "conversation_count": "9",
        "conversations": [
            {"live_count": "1", "newest_created_at": "2026-05-04T03:02:01.987654Z"},
            {
                "conversation_id": "c",
                "live_count": "2",
                "deleted_count": "1",
                "newest_created_at": "2026-05-04T03:02:01.987654Z",
            },
        ],
    }
    empty = replace(user, oldest_created_at=None, newest_created_at=None)
    assert not plain(replies.stats(empty)).keys() & {"oldest_created_at", "newest_created_at"}
