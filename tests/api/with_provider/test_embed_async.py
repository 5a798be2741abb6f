"""embed_async and a provider that is down or refuses texts: what is stored meanwhile, and what becomes of it."""

from collections.abc import Iterator

import pytest

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import failure, send
from tests.api.messages import axis, get
from tests.api.waiting import eventually
from tests.api.with_provider.conftest import asking
from tests.api.with_provider.test_embedding_cache import assert_embeds
from tests.embedding.provider import FORBIDDEN, TOO_LONG, Provider, Status
from tests.fix_database import Databases
from tests.fix_server import ServerProcess, running_servers

READY, PENDING, FAILED = pb.EMBEDDING_STATE_READY, pb.EMBEDDING_STATE_PENDING, pb.EMBEDDING_STATE_FAILED


@pytest.fixture(scope="module")
def server(databases: Databases, module_database_url: str, module_provider: Provider) -> Iterator[ServerProcess]:
    """A service that embeds text through the provider, and comes back to what failed within moments."""
    with running_servers(databases) as start:
        yield start(
            **asking(module_provider, module_database_url),
            embedding_breaker_cool_down_s=0.05,
            embedding_queue_poll_s=0.02,
            embedding_queue_delay_s=0.01,
        )


def store(stub: MemoryServiceStub, user_id: str, *contents: str) -> list[str]:
    """Stores memories that are embedded later and returns their ids."""
    memories = [pb.NewMemory(content=content) for content in contents]
    request = pb.BatchInsertVectorsRequest(user_id=user_id, memories=memories, embed_async=True)
    return [result.id for result in send(stub, request).results]


def states(stub: MemoryServiceStub, user_id: str, ids: list[str]) -> list[pb.EmbeddingState.ValueType]:
    return [get(stub, user_id, memory_id).embedding_state for memory_id in ids]


def queue(stub: MemoryServiceStub) -> tuple[int, int]:
    """Returns how many memories wait and how many have failed, of all users."""
    found = send(stub, pb.GetServerInfoRequest()).embedding_queue
    return found.pending_count, found.failed_count


def test_a_batch_is_embedded_with_one_request(
    stub: MemoryServiceStub, user_id: str, text: str, provider: Provider
) -> None:
    contents = [f"{text} {number}" for number in range(30)]
    ids = store(stub, user_id, *contents, contents[0])
    eventually(lambda: set(states(stub, user_id, ids)) == {READY})
    assert [sorted(request.texts) for request in provider.requests] == [sorted(contents)]
    assert_embeds(stub, pb.Memory(user_id=user_id, id=ids[-1]), contents[0])


@pytest.mark.parametrize("fault", [Status(503), Status(429), Status(401)], ids=lambda fault: fault.status)
def test_while_the_provider_is_down_memories_are_stored_and_found(
    stub: MemoryServiceStub, user_id: str, text: str, provider: Provider, fault: Status
) -> None:
    provider.fail(fault, always=True)
    ids = store(stub, user_id, *[f"{text} {number}" for number in range(5)])
    eventually(lambda: len(provider.requests) >= 3)

    assert states(stub, user_id, ids) == [PENDING] * 5
    assert get(stub, user_id, ids[2]).content == f"{text} 2"
    recent = send(stub, pb.GetRecentRequest(user_id=user_id)).memories
    assert {memory.id for memory in recent} == set(ids)
    assert queue(stub)[0] == 5

    provider.recover()
    eventually(lambda: states(stub, user_id, ids) == [READY] * 5)
    for number, memory_id in enumerate(ids):
        assert_embeds(stub, pb.Memory(user_id=user_id, id=memory_id), f"{text} {number}")
    assert queue(stub)[0] == 0
    [best] = send(stub, pb.SearchSimilarRequest(user_id=user_id, text=f"{text} 3", limit=1)).results
    assert best.memory.id == ids[3]


def test_while_the_provider_is_down_memories_are_found_by_their_words(
    stub: MemoryServiceStub, user_id: str, provider: Provider
) -> None:
    provider.fail(Status(503), always=True)
    harbour, bread = store(stub, user_id, "The harbour freezes in January", "Bread needs flour")
    search = pb.SearchSimilarRequest(user_id=user_id, text="frozen harbours freeze", mode=pb.SEARCH_MODE_LEXICAL)
    [found] = send(stub, search).results
    assert (found.memory.id, found.memory.embedding_state) == (harbour, PENDING)
    assert not get(stub, user_id, harbour, view=pb.MEMORY_VIEW_FULL).HasField("embedding")

    provider.recover()
    eventually(lambda: states(stub, user_id, [harbour, bread]) == [READY, READY])


@pytest.mark.parametrize("mended_by", ["content", "embedding", "empty embedding"])
def test_a_refused_text_fails_alone_and_can_be_mended(
    stub: MemoryServiceStub, user_id: str, text: str, provider: Provider, mended_by: str
) -> None:
    assert queue(stub) == (0, 0)
    good, bad = store(stub, user_id, text, f"{TOO_LONG} {text}")
    eventually(lambda: states(stub, user_id, [good, bad]) == [READY, FAILED])
    assert queue(stub) == (0, 1)

    update = pb.UpdateVectorRequest(user_id=user_id, id=bad)
    if mended_by == "content":
        update.memory.content = f"short {text}"
    elif mended_by == "embedding":
        update.memory.embedding.CopyFrom(axis(3))
    else:  # embeds the content anew, which the provider refuses again
        update.update_mask.paths.append("embedding")
        assert failure(lambda: send(stub, update)).reason == "TEXT_NOT_EMBEDDABLE"
        assert states(stub, user_id, [bad]) == [FAILED]
        provider.requests.clear()
        update.memory.content = "short"
        update.update_mask.paths.append("content")
    assert send(stub, update).memory.embedding_state == READY

    assert states(stub, user_id, [good, bad]) == [READY, READY]
    assert queue(stub) == (0, 0)
    results = send(stub, pb.SearchSimilarRequest(user_id=user_id, memory_id=good)).results
    assert [result.memory.id for result in results] == [bad]


def test_a_change_that_cannot_be_embedded_now_leaves_the_memory_waiting(
    stub: MemoryServiceStub, user_id: str, text: str, provider: Provider
) -> None:
    provider.fail(Status(503), always=True)
    [memory_id] = store(stub, user_id, text)
    update = pb.UpdateVectorRequest(user_id=user_id, id=memory_id, memory=pb.Memory(content=f"{text} new"))
    assert failure(lambda: send(stub, update)).reason == "EMBEDDER_UNAVAILABLE"
    assert get(stub, user_id, memory_id).content == text
    provider.recover()
    eventually(lambda: states(stub, user_id, [memory_id]) == [READY])
    assert_embeds(stub, pb.Memory(user_id=user_id, id=memory_id), text)


def test_what_the_provider_refused_stays_out_of_the_log(
    server: ServerProcess, stub: MemoryServiceStub, user_id: str, text: str, provider: Provider
) -> None:
    provider.names_index = True
    [bad] = store(stub, user_id, f"{FORBIDDEN} {text}")  # the provider's answer quotes it
    eventually(lambda: states(stub, user_id, [bad]) == [FAILED])
    event = next(event for event in server.log.events("embedding_given_up") if event["memory_id"] == bad)
    assert event["attempts"] == 1
    assert text not in server.log.text
    send(stub, pb.DeleteVectorRequest(user_id=user_id, id=bad, hard=True))
    assert queue(stub) == (0, 0)
