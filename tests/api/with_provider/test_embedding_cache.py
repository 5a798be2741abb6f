"""Texts embedded through a provider: how often it is asked, and what is asked of it never again."""

from typing import Any

import numpy as np
import pytest

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import send
from tests.api.messages import axis, get, stats, values_of
from tests.api.with_provider.conftest import MODEL
from tests.embedding.provider import Provider, vector_of


def store(stub: MemoryServiceStub, user_id: str, **fields: Any) -> pb.Memory:
    memory: pb.Memory = send(stub, pb.InsertVectorRequest(user_id=user_id, memory=pb.NewMemory(**fields))).memory
    return memory


def embedding_of(stub: MemoryServiceStub, memory: pb.Memory) -> list[float]:
    return values_of(get(stub, memory.user_id, memory.id, view=pb.MEMORY_VIEW_FULL).embedding)


def assert_embeds(stub: MemoryServiceStub, memory: pb.Memory, text: str) -> None:
    np.testing.assert_allclose(embedding_of(stub, memory), vector_of(text, 8), rtol=2e-3, atol=4e-3)


def test_a_text_is_embedded_with_one_request(
    stub: MemoryServiceStub, user_id: str, text: str, provider: Provider
) -> None:
    memory = store(stub, user_id, content=text)

    assert memory.embedding_model == MODEL
    assert_embeds(stub, memory, text)
    [request] = provider.requests
    assert (request.texts, request.body["model"]) == ([text], MODEL)


def test_a_batch_is_embedded_with_one_request(
    stub: MemoryServiceStub, user_id: str, text: str, provider: Provider
) -> None:
    texts = [f"{text} {i % 10}" for i in range(30)]
    request = pb.BatchInsertVectorsRequest(user_id=user_id, memories=[pb.NewMemory(content=one) for one in texts])

    results = send(stub, request).results

    [asked] = provider.requests
    assert asked.texts == texts[:10]
    for one, result in zip(texts, results, strict=True):
        assert_embeds(stub, pb.Memory(user_id=user_id, id=result.id), one)


def test_a_text_embedded_before_is_not_asked_for_again(
    stub: MemoryServiceStub, user_id: str, other_user_id: str, text: str, provider: Provider
) -> None:
    first = store(stub, user_id, content=text)
    provider.requests.clear()

    second = store(stub, other_user_id, content=text)
    found = send(stub, pb.SearchSimilarRequest(user_id=user_id, text=text)).results

    assert not provider.requests
    assert embedding_of(stub, second) == embedding_of(stub, first)
    assert found[0].memory.id == first.id
    assert found[0].score == pytest.approx(1, abs=1e-3)


def test_a_batch_asks_only_for_what_is_new(
    stub: MemoryServiceStub, user_id: str, text: str, provider: Provider
) -> None:
    store(stub, user_id, content=text)
    provider.requests.clear()
    memories = [
        pb.NewMemory(content=text),
        pb.NewMemory(content="brings its own", embedding=axis(3)),
        pb.NewMemory(content=f"{text} new"),
    ]

    results = send(stub, pb.BatchInsertVectorsRequest(user_id=user_id, memories=memories)).results

    assert [request.texts for request in provider.requests] == [[f"{text} new"]]
    assert_embeds(stub, pb.Memory(user_id=user_id, id=results[0].id), text)
    assert embedding_of(stub, pb.Memory(user_id=user_id, id=results[1].id)) == list(np.eye(8)[3])
    assert_embeds(stub, pb.Memory(user_id=user_id, id=results[2].id), f"{text} new")
    models = [get(stub, user_id, result.id).embedding_model for result in results]
    assert models == [MODEL, "caller", MODEL]


def test_embed_text_stands_in_for_the_content_and_is_not_kept(
    stub: MemoryServiceStub, user_id: str, text: str, provider: Provider
) -> None:
    memory = store(stub, user_id, content="what is kept", embed_text=text)

    assert [request.texts for request in provider.requests] == [[text]]
    assert_embeds(stub, memory, text)
    assert get(stub, user_id, memory.id).content == "what is kept"
    assert stats(stub, user_id).stored_bytes < len("what is kept") + len(text)


def update(memory: pb.Memory, *paths: str, **fields: Any) -> pb.UpdateVectorRequest:
    request = pb.UpdateVectorRequest(user_id=memory.user_id, id=memory.id, memory=pb.Memory(**fields))
    request.update_mask.paths.extend(paths)
    return request


def test_a_new_content_is_embedded_anew(stub: MemoryServiceStub, user_id: str, text: str, provider: Provider) -> None:
    memory = store(stub, user_id, content=text)
    provider.requests.clear()

    updated = send(stub, update(memory, "content", content=f"{text} new")).memory

    assert [request.texts for request in provider.requests] == [[f"{text} new"]]
    assert updated.content == f"{text} new"
    assert_embeds(stub, memory, f"{text} new")


def test_what_leaves_the_content_as_it_is_asks_for_nothing(
    stub: MemoryServiceStub, user_id: str, text: str, provider: Provider
) -> None:
    memory = store(stub, user_id, content=text, embed_text=f"{text} paraphrased")
    provider.requests.clear()

    send(stub, update(memory, "summary", summary="new"))
    send(stub, update(memory, "content", content=text))

    assert not provider.requests
    assert_embeds(stub, memory, f"{text} paraphrased")


def test_an_emptied_embedding_means_embedding_the_content_anew(
    stub: MemoryServiceStub, user_id: str, text: str, provider: Provider
) -> None:
    sent = pb.NewMemory(content=text, embedding=axis(2))
    memory = send(stub, pb.InsertVectorRequest(user_id=user_id, memory=sent)).memory
    assert not provider.requests

    updated = send(stub, update(memory, "embedding")).memory

    assert [request.texts for request in provider.requests] == [[text]]
    assert (updated.content, updated.embedding_model) == (text, MODEL)
    assert_embeds(stub, memory, text)
