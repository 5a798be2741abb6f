"""The texts of a BatchSearchSimilar: embedded in one request to the provider, and named when one is refused."""

from datetime import timedelta

import pytest

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import failure, send
from tests.api.messages import axis, insert_all
from tests.embedding.provider import TOO_LONG, Hang, Provider


def batch(stub: MemoryServiceStub, user_id: str, *searches: pb.SearchSimilarRequest) -> pb.BatchSearchSimilarResponse:
    reply: pb.BatchSearchSimilarResponse = send(stub, pb.BatchSearchSimilarRequest(user_id=user_id, searches=searches))
    return reply


def by_text(text: str) -> pb.SearchSimilarRequest:
    return pb.SearchSimilarRequest(text=text, limit=1)


def by_axis() -> pb.SearchSimilarRequest:
    return pb.SearchSimilarRequest(embedding=axis(0), limit=1)


def test_all_texts_are_embedded_in_one_request(
    stub: MemoryServiceStub, user_id: str, text: str, provider: Provider
) -> None:
    contents = [f"{text} {number}" for number in range(4)]
    insert_all(stub, user_id, [pb.NewMemory(content=content) for content in contents])
    provider.requests.clear()
    queries = [f"{content} {content}" for content in contents]

    reply = batch(stub, user_id, *map(by_text, queries), by_axis(), by_text(queries[0]))

    # Each text once, and none again where it was asked for before.
    [request] = provider.requests
    assert sorted(request.texts) == sorted(queries)
    found = [response.results[0].memory.content for response in reply.responses]
    assert [*found[:4], found[5]] == [*contents, contents[0]]

    batch(stub, user_id, by_text(queries[2]), by_text(text))
    assert [request.texts for request in provider.requests[1:]] == [[text]]


def test_the_text_a_provider_refuses_is_named_with_its_search(
    stub: MemoryServiceStub, user_id: str, text: str, provider: Provider
) -> None:
    provider.names_index = True
    bad = f"{TOO_LONG} {text}"
    searches = [by_axis(), by_text(text), by_text(f"{text} 2"), by_text(bad), by_text(bad)]

    refused = failure(lambda: batch(stub, user_id, *searches))

    assert (refused.code.name, refused.reason) == ("INVALID_ARGUMENT", "TEXT_NOT_EMBEDDABLE")
    assert list(refused.violations) == ["searches[3].text"]
    assert text not in refused.message


@pytest.mark.usefixtures("provider")
def test_a_blank_text_is_named_with_its_search(stub: MemoryServiceStub, user_id: str, text: str) -> None:
    refused = failure(lambda: batch(stub, user_id, by_text(text), by_text(" \n")))
    assert list(refused.violations) == ["searches[1].text"]


def test_waiting_for_the_provider_is_told_apart_from_the_database(
    stub: MemoryServiceStub, user_id: str, text: str, provider: Provider
) -> None:
    for number in range(20):  # new texts, so that the cache is asked and written to each time
        provider.fail(Hang(0.02))
        reply = batch(stub, user_id, by_text(f"{text} {number}"), by_axis())
        timing = reply.timing
        embedding, *others = (
            part.ToTimedelta() for part in (timing.embedding, timing.pool_wait, timing.database, timing.total)
        )
        assert embedding >= timedelta(milliseconds=20)
        pool_wait, database, total = others
        assert database > timedelta()
        assert pool_wait + database + embedding <= total
        assert all(not one.timing.HasField("embedding") or not one.timing.embedding.nanos for one in reply.responses)


def test_a_batch_with_a_fault_asks_nobody(stub: MemoryServiceStub, user_id: str, text: str, provider: Provider) -> None:
    refused = failure(lambda: batch(stub, user_id, by_text(text), pb.SearchSimilarRequest(limit=-1)))
    assert list(refused.violations) == ["searches[1].limit", "searches[1].text"]
    assert provider.requests == []
