"""Texts that cannot be embedded: refused by us or by the provider, named by their field, and nothing is written."""

from functools import partial

import grpc
import pytest

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import failure, send
from tests.api.conftest import ReadContents
from tests.api.messages import insert, new_memory
from tests.embedding.provider import FORBIDDEN, TOO_LONG, Provider


@pytest.mark.parametrize("names_index", [False, True])
@pytest.mark.parametrize("bad", [f"{TOO_LONG} text", f"{FORBIDDEN} text"])
def test_the_text_a_provider_refuses_is_named(
    stub: MemoryServiceStub,
    user_id: str,
    contents: ReadContents,
    *,
    text: str,
    provider: Provider,
    bad: str,
    names_index: bool,
) -> None:
    provider.names_index = names_index
    send(stub, pb.SearchSimilarRequest(user_id=user_id, text=f"{text} 1"))  # embedded already, so not asked for again
    texts = [pb.NewMemory(content=f"{text} {i % 3}") for i in range(7)]
    memories = [new_memory("its own"), *texts, pb.NewMemory(content="c", embed_text=f"{bad} {text}"), *texts]
    before = contents()

    refused = failure(lambda: send(stub, pb.BatchInsertVectorsRequest(user_id=user_id, memories=memories)))

    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "TEXT_NOT_EMBEDDABLE")
    assert list(refused.violations) == ["memories[8].embed_text"]
    assert text not in refused.message
    after = contents()
    assert {table: after[table] for table in after if table != "embedding_cache"} == {
        table: before[table] for table in before if table != "embedding_cache"
    }


@pytest.mark.usefixtures("provider")
def test_a_text_of_too_many_tokens_is_an_invalid_argument(stub: MemoryServiceStub, user_id: str, text: str) -> None:
    stored, long = insert(stub, user_id), f"{text} {TOO_LONG}"
    requests = {
        "memory.content": pb.InsertVectorRequest(user_id=user_id, memory=pb.NewMemory(content=long)),
        "memory.embed_text": pb.InsertVectorRequest(user_id=user_id, memory=pb.NewMemory(embed_text=long)),
        "text": pb.SearchSimilarRequest(user_id=user_id, text=long),
    }
    update = pb.UpdateVectorRequest(user_id=user_id, id=stored.id, memory=pb.Memory(content=long))

    for field, request in [*requests.items(), ("memory.content", update)]:
        refused = failure(partial(send, stub, request))
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "TEXT_NOT_EMBEDDABLE")
        assert list(refused.violations) == [field]
        assert "8192 tokens" in refused.message


@pytest.mark.parametrize("blank", ["", " \n\t\u3000"])
def test_blank_text_is_refused_without_asking(
    stub: MemoryServiceStub, user_id: str, contents: ReadContents, provider: Provider, blank: str
) -> None:
    before = contents()
    request = pb.InsertVectorRequest(user_id=user_id, memory=pb.NewMemory(content=blank, summary="s"))

    refused = failure(lambda: send(stub, request))

    assert (refused.reason, list(refused.violations)) == ("INVALID_FIELD", ["memory.content"])
    assert not provider.requests
    assert contents() == before


def test_text_too_long_for_the_contract_is_refused_once_without_asking(
    stub: MemoryServiceStub, user_id: str, provider: Provider
) -> None:
    request = pb.InsertVectorRequest(user_id=user_id, memory=pb.NewMemory(content="x " * 40_000))

    refused = failure(lambda: send(stub, request))

    assert list(refused.violations) == ["memory.content"]
    assert "80000" in refused.message
    assert "more)" not in refused.message
    assert not provider.requests
