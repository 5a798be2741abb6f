"""The queue outlives the processes that work on it: killed or stopped, others finish what they had taken."""

from collections.abc import Iterator
from typing import Any

import pytest

from db import migrate
from db.schema import EmbeddingSpace
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.waiting import eventually
from tests.embedding.provider import Hang, Provider
from tests.fix_database import NewDatabase
from tests.fix_server import StartServer

MODEL = "some-model"
USER = "ada"


@pytest.fixture
def provider() -> Iterator[Provider]:
    """A provider that answers nobody until it recovers."""
    with Provider(dimensions=8) as provider:
        provider.fail(Hang(), always=True)
        yield provider


@pytest.fixture
def settings(new_database: NewDatabase, provider: Provider) -> dict[str, Any]:
    """The settings of services that share a database and the provider."""
    url = new_database(dimensions=None)
    migrate.upgrade(url, EmbeddingSpace(MODEL, 8))
    return {
        "database_url": url,
        "embedder": "openai",
        "embedding_model": MODEL,
        "embedding_dimensions": 8,
        "openai_base_url": provider.base_url,
        "embedding_queue_poll_s": 0.02,
    }


def store(stub: MemoryServiceStub) -> list[str]:
    memories = [pb.NewMemory(content=f"text {number}") for number in range(20)]
    request = pb.BatchInsertVectorsRequest(user_id=USER, memories=memories, embed_async=True)
    return [result.id for result in stub.BatchInsertVectors(request, timeout=10).results]


def ready(stub: MemoryServiceStub, ids: list[str]) -> bool:
    request = pb.GetRecentRequest(user_id=USER)
    states = {memory.id: memory.embedding_state for memory in stub.GetRecent(request, timeout=10).memories}
    assert set(states) == set(ids), "nothing acknowledged is lost"
    return set(states.values()) == {pb.EMBEDDING_STATE_READY}


@pytest.mark.long
def test_what_a_killed_process_had_taken_is_embedded_by_another(
    start_server: StartServer, settings: dict[str, Any], provider: Provider
) -> None:
    killed = start_server(**settings, embedding_queue_lease_s=2)
    ids = store(killed.stub)
    eventually(lambda: bool(provider.requests))
    killed.process.kill()
    killed.process.wait()
    provider.recover()

    server = start_server(**settings)

    eventually(lambda: ready(server.stub, ids))


@pytest.mark.long
def test_a_process_that_is_stopped_gives_back_what_it_had_taken(
    start_server: StartServer, settings: dict[str, Any], provider: Provider
) -> None:
    stopped = start_server(**settings, embedding_queue_lease_s=3_600)
    ids = store(stopped.stub)
    eventually(lambda: bool(provider.requests))
    assert stopped.stop() == 0
    provider.recover()

    server = start_server(**settings)

    eventually(lambda: ready(server.stub, ids))
    info = server.stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=10)
    assert info.embedding_queue == pb.EmbeddingQueue()
