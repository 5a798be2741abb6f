"""The local embedder, the default: text goes in, and is found by what it means."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest

from memory_service.embedding.local import DIMENSIONS, MODEL
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import failure, send
from tests.api.messages import get, values_of
from tests.fix_database import Databases
from tests.fix_server import ServerProcess, running_servers

TEXTS = [
    "Ada plays the cello in the city orchestra",
    "The invoice for the new laptops is due on Friday",
    "My sister moved to Lisbon with her two cats",
    "We fixed the memory leak in the payment service",
    "Grandmother's recipe needs three eggs and plenty of butter",
    "The doctor prescribed antibiotics for the infection",
    "He runs a marathon every autumn",
    "The flight to Tokyo was delayed by six hours",
]

MEANT = {
    "musical instrument performance": 0,
    "bill payment deadline": 1,
    "family member with pets": 2,
    "software bug": 3,
    "baking a cake": 4,
    "medicine against an illness": 5,
    "running as a sport": 6,
    "airplane travel": 7,
}


@pytest.fixture(scope="module")
def server(databases: Databases) -> Iterator[ServerProcess]:
    """A service with the local embedder, shared by the tests of this module."""
    with running_servers(databases) as start:
        yield start(embedder="local")


@pytest.fixture
def ids(stub: MemoryServiceStub, user_id: str) -> list[str]:
    """The memories TEXTS."""
    return store(stub, user_id, *TEXTS)


def store(stub: MemoryServiceStub, user_id: str, *texts: str) -> list[str]:
    memories = [pb.NewMemory(content=text) for text in texts]
    reply = send(stub, pb.BatchInsertVectorsRequest(user_id=user_id, memories=memories))
    return [result.id for result in reply.results]


def found(stub: MemoryServiceStub, user_id: str, text: str) -> list[str]:
    results = send(stub, pb.SearchSimilarRequest(user_id=user_id, text=text)).results
    return [result.memory.content for result in results]


def test_texts_are_found_by_meaning(stub: MemoryServiceStub, user_id: str, ids: list[str]) -> None:
    assert len(ids) == len(TEXTS)

    ranks = [found(stub, user_id, query).index(TEXTS[position]) for query, position in MEANT.items()]

    assert ranks.count(0) >= 7, ranks
    assert max(ranks) <= 2


def test_the_same_text_is_nearest_to_itself(stub: MemoryServiceStub, user_id: str, ids: list[str]) -> None:
    assert len(ids) == len(TEXTS)

    for text in TEXTS:
        [best] = send(stub, pb.SearchSimilarRequest(user_id=user_id, text=text, limit=1)).results
        assert (best.memory.content, best.score) == (text, pytest.approx(1, abs=2e-3))


def test_one_by_one_or_in_a_batch_makes_no_difference(stub: MemoryServiceStub, user_id: str, ids: list[str]) -> None:
    single = send(stub, pb.InsertVectorRequest(user_id=user_id, memory=pb.NewMemory(content=TEXTS[3]))).memory

    alone = get(stub, user_id, single.id, view=pb.MEMORY_VIEW_FULL)
    batched = get(stub, user_id, ids[3], view=pb.MEMORY_VIEW_FULL)

    assert (alone.embedding_model, batched.embedding_model) == (MODEL, MODEL)
    np.testing.assert_array_equal(values_of(alone.embedding), values_of(batched.embedding))
    assert len(values_of(alone.embedding)) == DIMENSIONS


def test_a_new_content_is_found_by_its_own_meaning(stub: MemoryServiceStub, user_id: str, ids: list[str]) -> None:
    update = pb.UpdateVectorRequest(user_id=user_id, id=ids[0], memory=pb.Memory(content="The volcano erupted at dawn"))

    updated = send(stub, update).memory

    assert updated.embedding_model == MODEL
    assert found(stub, user_id, "lava and ashes")[0] == "The volcano erupted at dawn"
    assert "cello" not in "".join(found(stub, user_id, "musical instrument"))


def test_a_paraphrase_stands_in_for_the_content(stub: MemoryServiceStub, user_id: str, ids: list[str]) -> None:
    assert len(ids) == len(TEXTS)
    coded = pb.NewMemory(content="#7781-B", embed_text="The cathedral's organ is being restored")

    send(stub, pb.InsertVectorRequest(user_id=user_id, memory=coded))

    assert found(stub, user_id, "church organ restoration")[0] == "#7781-B"


def test_the_longest_content_is_embedded(stub: MemoryServiceStub, user_id: str) -> None:
    content = ("cello orchestra " * 5_000)[:65_536]

    [long] = store(stub, user_id, content)

    assert send(stub, pb.SearchSimilarRequest(user_id=user_id, text="cello")).results[0].memory.id == long


@pytest.mark.parametrize("text", ["日本語", "👩‍🚀", ".", "\u200b", "\x01", "a" * 3_000])
def test_any_text_that_is_not_blank_is_embedded(stub: MemoryServiceStub, user_id: str, text: str) -> None:
    store(stub, user_id, text)

    assert found(stub, user_id, text) == [text]


@pytest.mark.parametrize("blank", [" ", "\n\t", "\u3000"])
def test_blank_text_has_nothing_to_embed(stub: MemoryServiceStub, user_id: str, blank: str) -> None:
    requests = {
        "memories[0].content": pb.BatchInsertVectorsRequest(user_id=user_id, memories=[pb.NewMemory(content=blank)]),
        "memory.embed_text": pb.InsertVectorRequest(
            user_id=user_id, memory=pb.NewMemory(content="fine", embed_text=blank)
        ),
        "text": pb.SearchSimilarRequest(user_id=user_id, text=blank),
    }

    for field, request in requests.items():
        assert list(failure(partial(send, stub, request)).violations) == [field]


def test_an_emptied_content_needs_an_embedding(stub: MemoryServiceStub, user_id: str) -> None:
    [memory_id] = store(stub, user_id, "text")
    request = pb.UpdateVectorRequest(user_id=user_id, id=memory_id)
    request.update_mask.paths.append("content")

    assert "memory.content" in failure(lambda: send(stub, request)).violations
    request.update_mask.paths.append("embedding")
    request.memory.embedding.floats.values.extend([1.0] * DIMENSIONS)
    assert send(stub, request).memory.content == ""


def test_the_server_names_its_model(stub: MemoryServiceStub) -> None:
    info = send(stub, pb.GetServerInfoRequest())

    assert (info.embedder, info.embedding_model, info.embedding_dimensions) == ("local", MODEL, 256)
