"""`buf curl` as an operator types it: JSON in, JSON out, through reflection, for every RPC."""

import base64
import json
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from google.rpc import error_details_pb2

from memory_service.v1 import memory_pb2 as pb
from tests.fix_server import ServerProcess

BUF = str(Path(sys.executable).with_name("buf"))
SERVICE = "memory_service.v1.MemoryService"
AXIS = {"floats": {"values": [1, 0, 0, 0, 0, 0, 0, 0]}}


class Operator:
    """Types commands."""

    def __init__(self, address: str) -> None:
        self._address = address

    def curl(self, rpc: str, request: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        """Runs buf curl in a folder without any schema: what it knows, it asks the server."""
        url = f"http://{self._address}/{SERVICE}/{rpc}"
        command = [BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", "-d", json.dumps(request), url]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd="/")

    def call(self, rpc: str, request: dict[str, Any]) -> dict[str, Any]:
        """Returns the reply."""
        done = self.curl(rpc, request)
        assert done.returncode == 0, done.stderr
        reply: dict[str, Any] = json.loads(done.stdout)
        return reply


@pytest.fixture
def operator(server: ServerProcess) -> Operator:
    """Somebody with a terminal."""
    return Operator(server.address)


def test_a_memory_from_insert_to_restore(operator: Operator, user_id: str) -> None:
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
        {**named, "memory": {"summary": "cello", "conversationId": "c"}, "updateMask": "summary,conversationId"},
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


def test_a_batch_found_listed_and_counted(operator: Operator, user_id: str) -> None:
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


def test_several_searches_an_import_and_a_refusal(operator: Operator, user_id: str) -> None:
    chunk = {"user_id": user_id, "import_id": str(uuid.uuid4()), "memories": [{"content": "one", "embedding": AXIS}]}

    stored = operator.call("ImportVectors", chunk)
    found = operator.call("BatchSearchSimilar", {"user_id": user_id, "searches": [{"embedding": AXIS}]})
    refused = operator.curl("SearchAllUsers", {"embedding": AXIS})

    assert stored["acknowledgedCount"] == "1"
    assert found["responses"][0]["results"][0]["memory"]["id"] == stored["ids"][0]
    assert found["responses"][0]["plan"] == "SEARCH_PLAN_EXACT"
    assert "MEMORY_GLOBAL_SEARCH" in refused.stderr


def test_what_the_server_is(operator: Operator) -> None:
    info = operator.call("GetServerInfo", {})

    assert (info["embedder"], info["embeddingDimensions"]) == ("none", 8)
    assert info["limits"]["maxBatchSize"] == 500
    assert info["limits"]["deletedRetention"] == "2592000s"


def test_every_rpc_has_been_typed() -> None:
    source = Path(__file__).read_text()

    for method in pb.DESCRIPTOR.services_by_name["MemoryService"].methods:
        assert f'"{method.name}"' in source


def test_errors_show_what_is_wrong(operator: Operator, user_id: str) -> None:
    done = operator.curl("InsertVector", {"user_id": user_id, "memory": {"content": "text alone", "importance": 99}})

    error = json.loads(done.stderr)
    details = {detail["type"]: detail["value"] for detail in error["details"]}
    bad_request = error_details_pb2.BadRequest.FromString(base64.b64decode(details["google.rpc.BadRequest"] + "=="))
    info = error_details_pb2.ErrorInfo.FromString(base64.b64decode(details["google.rpc.ErrorInfo"] + "=="))
    assert done.returncode != 0
    assert error["code"] == "invalid_argument"
    assert error["message"].startswith("memory.content: cannot be embedded")
    assert info.reason == "EMBEDDER_DISABLED"
    assert {violation.field for violation in bad_request.field_violations} == {"memory.content", "memory.importance"}


def test_a_memory_that_is_not_there(operator: Operator, user_id: str) -> None:
    done = operator.curl("GetVector", {"user_id": user_id, "id": str(uuid.uuid4())})

    assert done.returncode != 0
    assert json.loads(done.stderr)["code"] == "not_found"


@pytest.mark.parametrize("option", ["--list-services", "--list-methods"])
def test_the_server_lists_itself(server: ServerProcess, option: str) -> None:
    command = [BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", option, f"http://{server.address}"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True, cwd="/")

    assert SERVICE in done.stdout
    assert "grpc.health.v1.Health" in done.stdout
