"""Replies that would be too large: pages end early and lose nothing, searches say what to ask for instead."""

from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import failure, send
from tests.api.messages import f16, insert_all, new_memory
from tests.fix_database import Databases
from tests.fix_server import ServerProcess, running_servers

DIMENSIONS = 1_536
GRPC_DEFAULT = 4 * 1_024 * 1_024


@pytest.fixture(scope="module")
def server(databases: Databases) -> Iterator[ServerProcess]:
    """A service of 1,536 dimensions, shared by the tests of this module."""
    with running_servers(databases) as start:
        yield start(embedding_dimensions=DIMENSIONS)


@pytest.fixture(scope="module")
def limit(stub: MemoryServiceStub) -> int:
    """The largest reply."""
    return int(send(stub, pb.GetServerInfoRequest()).limits.max_reply_bytes)


def store(stub: MemoryServiceStub, user_id: str, contents: list[str]) -> list[str]:
    """Stores memories, some MiB a batch, and returns their ids."""
    ids: list[str] = []
    for start in range(0, len(contents), 90):
        batch = [new_memory(content, embedding=f16(np.ones(DIMENSIONS))) for content in contents[start : start + 90]]
        ids.extend(insert_all(stub, user_id, batch))
    return ids


def pages(stub: MemoryServiceStub, request: pb.GetRecentRequest) -> Iterator[pb.GetRecentResponse]:
    while True:
        reply: pb.GetRecentResponse = send(stub, request)
        yield reply
        request.page_token = reply.next_page_token
        if not request.page_token:
            return


def size_of(message: Message) -> int:
    return message.ByteSize()


def test_pages_of_long_texts_end_early_and_lose_nothing(stub: MemoryServiceStub, user_id: str, limit: int) -> None:
    ids = store(stub, user_id, ["x" * 65_536] * 120)

    replies = list(pages(stub, pb.GetRecentRequest(user_id=user_id, page_size=1_000)))

    assert len(replies) == 3
    assert all(size_of(reply) <= limit for reply in replies)
    assert [memory.id for reply in replies for memory in reply.memories] == sorted(ids, reverse=True)


@pytest.mark.parametrize("encoding", [pb.VECTOR_ENCODING_FLOATS, pb.VECTOR_ENCODING_F16_LE])
def test_pages_with_embeddings_end_early_and_lose_nothing(
    stub: MemoryServiceStub, user_id: str, limit: int, encoding: pb.VectorEncoding.ValueType
) -> None:
    ids = store(stub, user_id, ["x" * 2_000] * 700)
    request = pb.GetRecentRequest(
        user_id=user_id, page_size=1_000, view=pb.MEMORY_VIEW_FULL, embedding_encoding=encoding
    )

    replies = list(pages(stub, request))

    assert len(replies) > 1
    assert all(size_of(reply) <= limit for reply in replies)
    assert [memory.id for reply in replies for memory in reply.memories] == sorted(ids, reverse=True)


def test_metadata_that_is_larger_as_a_message_than_as_json_fits_too(
    stub: MemoryServiceStub, user_id: str, limit: int
) -> None:
    # A number takes 3 bytes as JSON and 11 as a Value: these are 0.8 MiB to PostgreSQL and 4 MiB as a reply.
    numbers = [float(i % 10) for i in range(6_000)]
    ids = insert_all(stub, user_id, [new_memory(embedding=f16(np.ones(DIMENSIONS)), metadata={"n": numbers})] * 64)

    replies = list(pages(stub, pb.GetRecentRequest(user_id=user_id, page_size=1_000)))

    assert all(size_of(reply) <= limit for reply in replies)
    assert [memory.id for reply in replies for memory in reply.memories] == sorted(ids, reverse=True)
    refused = failure(lambda: search(stub, user_id, limit=64))
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "REPLY_TOO_LARGE")


def search(stub: MemoryServiceStub, user_id: str, **fields: int) -> pb.SearchSimilarResponse:
    request = pb.SearchSimilarRequest(user_id=user_id, embedding=f16(np.ones(DIMENSIONS)))
    for name, value in fields.items():
        setattr(request, name, value)
    reply: pb.SearchSimilarResponse = send(stub, request)
    return reply


def test_a_search_that_finds_too_much_says_what_to_do(stub: MemoryServiceStub, user_id: str, limit: int) -> None:
    store(stub, user_id, ["x" * 65_536] * 80)

    refused = failure(lambda: search(stub, user_id, limit=80))

    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "REPLY_TOO_LARGE")
    assert f"{limit}" in refused.message
    assert "lower the limit or the view" in refused.message
    assert len(search(stub, user_id, limit=50).results) == 50
    assert len(search(stub, user_id, limit=80, view=pb.MEMORY_VIEW_HEAD).results) == 80


@pytest.mark.parametrize(("encoding", "fits"), [(pb.VECTOR_ENCODING_FLOATS, 597), (pb.VECTOR_ENCODING_F16_LE, 1_000)])
def test_more_embeddings_than_fit_are_refused_before_the_search(
    stub: MemoryServiceStub, user_id: str, encoding: pb.VectorEncoding.ValueType, fits: int
) -> None:
    full = pb.MEMORY_VIEW_FULL

    assert not search(stub, user_id, limit=fits, view=full, embedding_encoding=encoding).results
    refused = failure(lambda: search(stub, user_id, limit=fits + 1, view=full, embedding_encoding=encoding))

    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(refused.violations) == ["limit"]


def test_the_largest_replies_arrive_at_a_client_with_default_settings(
    stub: MemoryServiceStub, user_id: str, limit: int
) -> None:
    store(stub, user_id, ["é" * 32_768] * 55)

    found = search(stub, user_id, limit=54)

    assert len(found.results) == 54
    assert limit * 0.9 < size_of(found) <= limit < GRPC_DEFAULT
