"""`buf curl` and `grpcurl` as an operator types them: JSON in, JSON out, through reflection, for every RPC."""

import base64
import uuid
from pathlib import Path
from typing import Any

import pytest

from memory_service.v1 import memory_pb2 as pb
from tests.command_line_clients import SERVICE, BufCurl, CommandLineClient, Grpcurl
from tests.fix_server import ServerProcess

RPCS = list(pb.DESCRIPTOR.services_by_name["MemoryService"].methods_by_name)
AXIS = {"floats": {"values": [1, 0, 0, 0, 0, 0, 0, 0]}}


@pytest.fixture(params=[BufCurl, Grpcurl], ids=["buf", "grpcurl"])
def operator(request: pytest.FixtureRequest, server: ServerProcess) -> CommandLineClient:
    """Somebody with a terminal."""
    client: CommandLineClient = request.param(server.address)
    return client


@pytest.fixture
def grpcurl(server: ServerProcess) -> Grpcurl:
    """Somebody with grpcurl."""
    return Grpcurl(server.address)


def test_a_memory_from_insert_to_restore(operator: CommandLineClient, user_id: str) -> None:
    inserted = operator.call(
        "InsertVector",
        {
            "user_id": user_id,
            "memory": {
                "content": "Ada plays the cello",
                "metadata": {"source": "chat", "tags": ["music"]},
                "embedding": AXIS,
                "created_at": "2024-02-29T12:00:00.5Z",
            },
        },
    )["memory"]
    named = {"user_id": user_id, "id": inserted["id"]}

    found = operator.call("GetVector", {**named, "view": "MEMORY_VIEW_FULL"})["memory"]
    updated = operator.call(
        "UpdateVector",
        {
            **named,
            "memory": {"summary": "cello", "conversationId": "c"},
            "updateMask": operator.field_mask("summary", "conversation_id"),
        },
    )["memory"]
    deleted = operator.call("DeleteVector", {**named, "etag": updated["etag"]})["memory"]
    restored = operator.call("RestoreVector", named)["memory"]

    assert inserted["createdAt"] == "2024-02-29T12:00:00.500Z"
    assert found["embedding"] == {"floats": {"values": [1, 0, 0, 0, 0, 0, 0, 0]}}
    assert found["metadata"] == {"source": "chat", "tags": ["music"]}
    assert (updated["summary"], updated["conversationId"]) == ("cello", "c")
    assert deleted["purgeAt"] > deleted["deletedAt"]
    assert restored["content"] == "Ada plays the cello"
    assert "deletedAt" not in restored


def test_a_batch_found_listed_and_counted(operator: CommandLineClient, user_id: str) -> None:
    memories = [
        {"content": "one", "embedding": AXIS, "importance": 9},
        {"content": "two", "embedding": {"f32Le": base64.b64encode(b"\0\0\x80\x3f" * 8).decode()}},
    ]

    stored = operator.call("BatchInsertVectors", {"user_id": user_id, "memories": memories})["results"]
    found = operator.call(
        "SearchSimilar", {"user_id": user_id, "embedding": AXIS, "metric": "METRIC_COSINE", "min_score": 0.5}
    )["results"]
    listed = operator.call("GetRecent", {"user_id": user_id, "page_size": 1})
    counted = operator.call("GetStats", {"user_id": user_id})

    assert [(result["memory"]["content"], round(result["score"], 2)) for result in found] == [("one", 1)]
    assert listed["memories"][0]["id"] in {result["id"] for result in stored}
    assert listed["nextPageToken"]
    assert (counted["liveCount"], counted["averageImportance"]) == ("2", 7)


def test_several_searches_an_import_and_a_refusal(operator: CommandLineClient, user_id: str) -> None:
    chunk = {"user_id": user_id, "import_id": str(uuid.uuid4()), "memories": [{"content": "one", "embedding": AXIS}]}

    stored = operator.call("ImportVectors", chunk)
    found = operator.call("BatchSearchSimilar", {"user_id": user_id, "searches": [{"embedding": AXIS}]})
    refused = operator.refusal("SearchAllUsers", {"embedding": AXIS})

    assert stored["acknowledgedCount"] == "1"
    assert found["responses"][0]["results"][0]["memory"]["id"] == stored["ids"][0]
    assert found["responses"][0]["plan"] == "SEARCH_PLAN_EXACT"
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "GLOBAL_SEARCH_DISABLED")
    assert "MEMORY_GLOBAL_SEARCH" in refused.message


def test_what_the_server_is(operator: CommandLineClient) -> None:
    info = operator.call("GetServerInfo", {})

    assert (info["embedder"], info["embeddingDimensions"]) == ("none", 8)
    assert info["limits"]["maxBatchSize"] == 500
    assert info["limits"]["deletedRetention"] == "2592000s"


def test_every_rpc_has_been_typed() -> None:
    source = Path(__file__).read_text()

    for name in RPCS:
        assert f'"{name}"' in source


def test_errors_show_what_is_wrong(operator: CommandLineClient, user_id: str) -> None:
    request: dict[str, Any] = {"user_id": user_id, "memory": {"content": "text alone", "importance": 99}}

    refused = operator.refusal("InsertVector", request)

    assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "EMBEDDER_DISABLED")
    assert refused.message.startswith("memory.content: cannot be embedded")
    assert refused.fields == {"memory.content", "memory.importance"}


def test_a_memory_that_is_not_there(operator: CommandLineClient, user_id: str) -> None:
    refused = operator.refusal("GetVector", {"user_id": user_id, "id": str(uuid.uuid4())})

    assert (refused.code, refused.reason) == ("NOT_FOUND", "MEMORY_NOT_FOUND")


def test_the_server_lists_itself(operator: CommandLineClient) -> None:
    assert {SERVICE, "grpc.health.v1.Health"} <= set(operator.services())
    assert set(operator.methods()) == {
        method.name for method in pb.DESCRIPTOR.services_by_name["MemoryService"].methods
    }


def test_grpcurl_says_errors_in_words(grpcurl: Grpcurl, user_id: str) -> None:
    complaint = grpcurl.complaint("InsertVector", {"user_id": user_id, "memory": {"importance": 99}})

    # What the server does not describe, grpcurl prints as base64, and says that it is "not recognized".
    assert "not recognized" not in complaint
    assert "Code: InvalidArgument" in complaint
    assert '"field": "memory.importance"' in complaint


def test_grpcurl_describes_fields_with_their_comments(grpcurl: Grpcurl) -> None:
    described = grpcurl.description("memory_service.v1.SearchSimilarRequest")

    assert "// The owner, 1 to 255 characters. Required." in described
