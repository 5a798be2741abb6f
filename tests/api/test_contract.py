"""The contract kept: every limit reported is the one enforced, every reason can be sent, the names stay."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

import memory_service
from memory_service.v1 import admin_pb2
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.bad_requests import nested
from tests.api.calls import REASONS, raised_by, send
from tests.api.messages import insert_all, new_memory, struct
from tests.fix_server import ServerProcess

SERVICE = pb.DESCRIPTOR.services_by_name["MemoryService"]


@pytest.fixture(scope="module")
def limits(stub: MemoryServiceStub) -> pb.Limits:
    """The limits that the server reports."""
    reported: pb.Limits = send(stub, pb.GetServerInfoRequest()).limits
    return reported


def insert_request(user_id: str, **fields: Any) -> pb.InsertVectorRequest:
    return pb.InsertVectorRequest(user_id=user_id, memory=new_memory(**fields))


def metadata_of(size: int) -> Any:
    return struct({"k": "v" * (size - len('{"k":""}'))})


def batch_of_bytes(user_id: str, size: int) -> pb.BatchInsertVectorsRequest:
    """Returns a batch that takes exactly `size` bytes."""
    request = pb.BatchInsertVectorsRequest(user_id=user_id)
    while size - request.ByteSize() > 60_000:
        request.memories.append(new_memory("x" * 30_000))
    # From 16 KiB to 2 MiB a length takes three bytes, so that each character more is one byte more.
    request.memories.append(new_memory("x" * 20_000))
    request.memories[-1].content += "x" * (size - request.ByteSize())
    assert request.ByteSize() == size
    return request


REQUEST_AT: dict[str, Callable[[str, int], Any]] = {
    "max_id_characters": lambda user_id, n: insert_request(user_id, conversation_id="c" * n),
    "max_content_bytes": lambda user_id, n: insert_request(user_id, content="c" * n),
    "max_summary_bytes": lambda user_id, n: insert_request(user_id, summary="s" * n),
    "max_metadata_bytes": lambda user_id, n: insert_request(user_id, metadata=metadata_of(n)),
    "max_metadata_depth": lambda user_id, n: insert_request(user_id, metadata=nested(n)),
    "max_batch_size": lambda user_id, n: pb.BatchInsertVectorsRequest(user_id=user_id, memories=[new_memory()] * n),
    "max_batch_bytes": batch_of_bytes,
    "max_search_limit": lambda user_id, n: pb.SearchSimilarRequest(
        user_id=user_id, embedding=new_memory().embedding, limit=n
    ),
    "max_conversation_limit": lambda user_id, n: pb.GetStatsRequest(user_id=user_id, conversation_limit=n),
}
"""A request at a limit, served, and one beyond it, INVALID_ARGUMENT."""

SHOWN_ELSEWHERE = {
    "max_request_bytes": "test_requests_beyond_the_largest_are_refused",
    "max_reply_bytes": "test_reply_size.py",
    "default_search_limit": "test_defaults_are_those_reported",
    "default_page_size": "test_defaults_are_those_reported",
    "max_page_size": "test_defaults_are_those_reported",
    "deleted_retention": "test_delete_restore.py",
    "request_id_retention": "test_request_id.py",
    "max_call_duration": "test_faults.py",
    "max_import_chunk_size": "test_import.py",
    "max_batch_searches": "test_batch_search.py",
    "max_filter_depth": "test_conditions_request.py",
    "max_filter_conditions": "test_conditions_request.py",
    "max_filter_values": "test_conditions_request.py",
    "max_candidates": "test_search_plans.py",
    "max_ef_search": "test_search_plans.py",
    "max_query_terms": "test_lexical_search.py",
}
"""Limits that are no bounds on a field, and where they are shown to hold."""


def test_every_limit_is_shown_to_be_enforced() -> None:
    names = {field.name for field in pb.Limits.DESCRIPTOR.fields}

    assert set(REQUEST_AT) | set(SHOWN_ELSEWHERE) == names
    assert set(REQUEST_AT) & set(SHOWN_ELSEWHERE) == set()


@pytest.mark.parametrize("name", REQUEST_AT)
def test_a_limit_reported_is_the_limit_enforced(
    stub: MemoryServiceStub, limits: pb.Limits, user_id: str, name: str
) -> None:
    limit = getattr(limits, name)

    send(stub, REQUEST_AT[name](user_id, limit))
    error: Any = raised_by(lambda: send(stub, REQUEST_AT[name](user_id, limit + 1)))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_requests_beyond_the_largest_are_refused(server: ServerProcess, limits: pb.Limits) -> None:
    method = f"/{SERVICE.full_name}/GetServerInfo"
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = server.channel.unary_unary(method)

    def send_bytes(size: int) -> bytes:
        # A field that GetServerInfoRequest does not know, and so ignores: its tag, its length in 4 bytes, zeros.
        length = size - 5
        digits = [length >> shift & 0x7F for shift in (0, 7, 14, 21)]
        return call(b"\x7a" + bytes([*(digit | 0x80 for digit in digits[:3]), digits[3]]) + b"\0" * length, timeout=10)

    assert send_bytes(limits.max_request_bytes)
    error: Any = raised_by(lambda: send_bytes(limits.max_request_bytes + 1))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_defaults_are_those_reported(stub: MemoryServiceStub, limits: pb.Limits, user_id: str) -> None:
    for size in (500, 500, 1):
        insert_all(stub, user_id, [new_memory()] * size)

    def page(size: int) -> int:
        return len(send(stub, pb.GetRecentRequest(user_id=user_id, page_size=size)).memories)

    search = pb.SearchSimilarRequest(user_id=user_id, embedding=new_memory().embedding)
    assert len(send(stub, search).results) == limits.default_search_limit
    assert page(0) == limits.default_page_size
    assert page(limits.max_page_size + 1) == limits.max_page_size


def test_every_reason_has_a_place_that_sends_it() -> None:
    package = Path(memory_service.__file__).parent
    code = "".join(path.read_text() for path in package.rglob("*.py") if path.parent.name != "v1")

    sent = set(re.findall(r"\bpb\.(ERROR_REASON_[A-Z_]+)", code))

    assert sent == REASONS


def test_every_reason_says_which_status_it_comes_with() -> None:
    source = (Path(memory_service.__file__).parents[1] / "protos/memory_service/v1/memory.proto").read_text()
    enum = source[source.index("enum ErrorReason {") :]

    documented = set(re.findall(r"// [A-Z_]+: [^\n]*\n(?:\s*//[^\n]*\n)*\s*(ERROR_REASON_[A-Z_]+) =", enum))

    assert documented == REASONS


def test_the_names_of_the_rpcs_stay() -> None:
    names = {method.name for method in SERVICE.methods}

    assert SERVICE.full_name == "memory_service.v1.MemoryService"
    assert {"InsertVector", "SearchSimilar", "UpdateVector", "DeleteVector", "GetRecent", "GetStats"} <= names
    assert {"GetVector", "BatchInsertVectors", "RestoreVector", "GetServerInfo"} <= names
    assert {method.name for method in SERVICE.methods if method.client_streaming} == {"ImportVectors"}


def test_every_rpc_about_memories_names_its_user() -> None:
    for method in SERVICE.methods:
        if method.name not in {"GetServerInfo", "SearchAllUsers"}:
            assert method.input_type.fields_by_name["user_id"].number == 1


def test_the_names_of_the_admin_rpcs_stay() -> None:
    service = admin_pb2.DESCRIPTOR.services_by_name["AdminService"]

    assert service.full_name == "memory_service.v1.AdminService"
    assert {"EraseUser", "PurgeExpired", "ListUsers", "ClearDatabase"} <= set(service.methods_by_name)
    assert {"CreateApiKey", "ListApiKeys", "RevokeApiKey", "QueryAuditLog"} <= set(service.methods_by_name)
    assert not [method for method in service.methods if method.client_streaming or method.server_streaming]
