"""A server without an embedder: everything works with the callers' own embeddings, and text alone is refused."""

import grpc
import pytest

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import failure, send
from tests.api.conftest import ReadContents
from tests.api.messages import axis, insert

USER = "user-without-embedder"
ID = "01a1fd79-007b-70dd-85b2-53c3784ade11"

NEEDING_AN_EMBEDDER = {
    "memory.content": pb.InsertVectorRequest(user_id=USER, memory=pb.NewMemory(content="text")),
    "memory.embed_text": pb.InsertVectorRequest(user_id=USER, memory=pb.NewMemory(embed_text="text")),
    "memories[0].content": pb.BatchInsertVectorsRequest(user_id=USER, memories=[pb.NewMemory(content="text")]),
    "text": pb.SearchSimilarRequest(user_id=USER, text="text", mode=pb.SEARCH_MODE_DENSE),
    "embed_async": pb.InsertVectorRequest(
        user_id=USER, memory=pb.NewMemory(content="text", embedding=axis(0)), embed_async=True
    ),
}


@pytest.mark.parametrize("field", NEEDING_AN_EMBEDDER)
def test_text_alone_is_refused_with_the_way_out(stub: MemoryServiceStub, contents: ReadContents, field: str) -> None:
    before = contents()

    refused = failure(lambda: send(stub, NEEDING_AN_EMBEDDER[field]))

    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "EMBEDDER_DISABLED")
    assert list(refused.violations) == [field]
    assert "send an embedding" in refused.message
    assert contents() == before


def test_a_content_cannot_change_without_an_embedding(stub: MemoryServiceStub, user_id: str) -> None:
    memory = insert(stub, user_id, "old")
    request = pb.UpdateVectorRequest(user_id=user_id, id=memory.id, memory=pb.Memory(content="new"))

    assert failure(lambda: send(stub, request)).reason == "EMBEDDER_DISABLED"
    request.memory.embedding.CopyFrom(axis(1))
    assert send(stub, request).memory.content == "new"


def test_embeddings_say_that_the_caller_made_them(stub: MemoryServiceStub, user_id: str) -> None:
    assert insert(stub, user_id, "text and embedding").embedding_model == "caller"


def test_searching_needs_no_embedder(stub: MemoryServiceStub, user_id: str) -> None:
    first, second = insert(stub, user_id, embedding=axis(1)), insert(stub, user_id, embedding=axis(2))

    by_embedding = send(stub, pb.SearchSimilarRequest(user_id=user_id, embedding=axis(2))).results
    by_memory = send(stub, pb.SearchSimilarRequest(user_id=user_id, memory_id=second.id)).results

    assert [result.memory.id for result in by_embedding] == [second.id, first.id]
    assert [result.memory.id for result in by_memory] == [first.id]


def test_the_server_says_that_it_has_none(stub: MemoryServiceStub) -> None:
    assert send(stub, pb.GetServerInfoRequest()).embedder == "none"
