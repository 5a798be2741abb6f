"""Requests that are wrong below the level of fields: bytes that are no message, and NUL characters anywhere."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.struct_pb2 import Struct

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.bad_requests import USER, VALID
from tests.api.calls import code_of, failure, send
from tests.api.conftest import ReadContents
from tests.api.messages import insert, struct
from tests.fix_server import ServerProcess

SERVICE = "/memory_service.v1.MemoryService"


def raw(server: ServerProcess, rpc: str, data: bytes) -> Any:
    """Calls an RPC with these bytes as its request."""
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = server.channel.unary_unary(f"{SERVICE}/{rpc}")
    return call(data, timeout=10)


def too_deep() -> bytes:
    """Returns an InsertVectorRequest whose metadata nests deeper than protobuf's own limit of 100."""
    value = b""
    for _ in range(60):
        value = _delimited(5, _delimited(1, _delimited(1, b"k") + _delimited(2, value)))  # struct_value.fields["k"]
    metadata = _delimited(1, _delimited(1, b"k") + _delimited(2, value))
    return _delimited(1, b"user") + _delimited(2, _delimited(5, metadata))


def _delimited(field: int, data: bytes) -> bytes:
    length, size = b"", len(data)
    while size > 0x7F:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([field << 3 | 2]) + length + bytes([size]) + data


MALFORMED = {
    "no tag": b"\xff\xff\xff",
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "a truncated string": b"\x0a\x7fshort",
    "invalid UTF-8": b"\x0a\x02\xc3\x28",
    "a lone surrogate": b"\x0a\x03\xed\xa0\x80",
    "an end of no group": b"\x0c",
    "a length beyond reason": b"\x0a\xff\xff\xff\xff\x0f",
    "nesting beyond reason": too_deep(),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("rpc", ["InsertVector", "GetServerInfo"])
def test_bytes_that_are_no_message_are_an_invalid_argument(
    server: ServerProcess, contents: ReadContents, rpc: str, data: bytes
) -> None:
    if rpc == "GetServerInfo" and data[:1] == b"\x0a":
        data = data[1:]  # to a message without fields, a well-formed field of any number is merely unknown
    before = contents()

    refused = failure(lambda: raw(server, rpc, data))

    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert contents() == before


def test_a_request_of_a_method_that_is_none_is_unimplemented(server: ServerProcess) -> None:
    assert code_of(lambda: raw(server, "DropTables", b"")) is grpc.StatusCode.UNIMPLEMENTED


def test_a_request_over_the_limit_is_refused_by_grpc(
    server: ServerProcess, stub: MemoryServiceStub, user_id: str
) -> None:
    limit = send(stub, pb.GetServerInfoRequest()).limits.max_request_bytes

    assert code_of(lambda: raw(server, "InsertVector", b"\0" * (limit + 1))) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert insert(stub, user_id, "the connection still works").content


NUL = "a\0b"

# They are output only.
IGNORED_BY_UPDATES = {
    *("memory.etag", "memory.id", "memory.user_id", "memory.embedding_model", "memory.superseded_by"),
}


def string_paths(message: Descriptor, prefix: str = "") -> Iterator[str]:
    """Yields the path of each string in a message; those of a Struct are its keys and its values."""
    for field in message.fields:
        path = f"{prefix}{field.name}"
        if field.type == FieldDescriptor.TYPE_STRING:
            yield path
        elif field.message_type is not None and field.message_type.full_name == Struct.DESCRIPTOR.full_name:
            yield from (f"{path}.key", f"{path}.value")
        # A condition holds conditions: test_conditions_request.py tries the strings in them.
        elif field.message_type is not None and field.message_type.full_name != pb.Condition.DESCRIPTOR.full_name:
            yield from string_paths(field.message_type, f"{path}.")


def with_nul(rpc: str, path: str) -> Any:
    """Returns a request of `rpc` that has a NUL character in the string at `path`, and is fine otherwise."""
    request = type(VALID[rpc])()
    request.CopyFrom(VALID[rpc])
    request.user_id = USER
    holder = request
    *parents, name = path.split(".")
    for parent in parents:
        holder = getattr(holder, parent)
        if parent == "memories":
            holder = holder[0]
    if isinstance(holder, Struct):
        holder.CopyFrom(struct({NUL: 1} if name == "key" else {"k": [{"deep": NUL}]}))
    elif name == "paths":
        holder.paths.append(NUL)
    else:
        setattr(holder, name, NUL)
    if name in {"text", "memory_id", "embed_text"}:
        holder.ClearField("embedding")
    return request


STRINGS = [(rpc, path) for rpc, request in VALID.items() for path in string_paths(request.DESCRIPTOR)]


@pytest.mark.parametrize(("rpc", "path"), STRINGS, ids=[f"{rpc} {path}" for rpc, path in STRINGS])
def test_a_nul_character_is_refused_wherever_it_is(
    stub: MemoryServiceStub, contents: ReadContents, rpc: str, path: str
) -> None:
    before = contents()

    refused = failure(lambda: send(stub, with_nul(rpc, path)))

    if path == "etag" or (rpc == "UpdateVector" and path in IGNORED_BY_UPDATES):
        # Compared with nothing or ignored: what is refused is the id, of which the user has no memory.
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "MEMORY_NOT_FOUND")
    else:
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.violations
    assert contents() == before


def test_strings_of_all_kinds_were_tried() -> None:
    assert {
        ("InsertVector", "memory.metadata.key"),
        ("BatchInsertVectors", "memories.summary"),
        ("SearchSimilar", "filter.metadata_contains.value"),
        ("UpdateVector", "update_mask.paths"),
        ("GetRecent", "page_token"),
    } <= set(STRINGS)
