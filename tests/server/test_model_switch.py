"""Moving a live database to another model: what callers of running services notice of it, which is next to nothing."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import psycopg
import pytest

from db.errors import SchemaMismatch
from memory_service import config
from memory_service.provisioning import Provision, require_schema
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import failure
from tests.api.waiting import eventually
from tests.embedding.provider import Provider, Tamper
from tests.fix_server import StartServer
from tests.server.reembedding_process import LIVE, TARGET, reembed, settings_for

USER = "ada"


@pytest.fixture
def provider() -> Iterator[Provider]:
    """Knows both models."""
    with Provider() as provider:
        yield provider


@pytest.fixture
def settings(provider: Provider, database_url: str) -> dict[str, Any]:
    """Of a service on the old model."""
    return settings_for(provider, database_url)


def insert(stub: MemoryServiceStub, text: str, **more: Any) -> str:
    request = pb.InsertVectorRequest(user_id=USER, memory=pb.NewMemory(content=text), **more)
    return str(stub.InsertVector(request, timeout=10).memory.id)


def search(stub: MemoryServiceStub, text: str, **more: Any) -> pb.SearchSimilarResponse:
    request = pb.SearchSimilarRequest(user_id=USER, text=text, mode=pb.SEARCH_MODE_DENSE, limit=100, **more)
    return stub.SearchSimilar(request, timeout=30)


def models_found(stub: MemoryServiceStub) -> set[str]:
    """Returns the models of the embeddings that a search compares."""
    return {result.memory.embedding_model for result in search(stub, "harbour").results}


def recent(stub: MemoryServiceStub) -> list[pb.Memory]:
    found: list[pb.Memory] = []
    token = ""
    while True:
        request = pb.GetRecentRequest(user_id=USER, page_size=500, page_token=token)
        page = stub.GetRecent(request, timeout=10)
        found += page.memories
        if not (token := page.next_page_token):
            return found


def info_of(stub: MemoryServiceStub) -> pb.GetServerInfoResponse:
    return stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=10)


class Callers:
    """Calls repeated on threads of their own; what fails is kept."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.counts: dict[str, int] = {}
        self._stop = threading.Event()

    @contextmanager
    def repeating(self, **calls: Callable[[int], object]) -> Iterator["Callers"]:
        """Repeats each call, told its number, while the context lasts."""
        threads = [threading.Thread(target=self._repeat, args=call) for call in calls.items()]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _repeat(self, name: str, call: Callable[[int], object]) -> None:
        while not self._stop.wait(0.005):
            try:
                call(self.counts.setdefault(name, 0))
            except (AssertionError, grpc.RpcError) as error:
                self.errors.append(error)
            self.counts[name] += 1


def test_texts_are_stored_and_found_throughout_a_move_there_and_back(
    start_server: StartServer, settings: dict[str, Any], database_url: str, provider: Provider
) -> None:
    server = start_server(**settings)
    known = [insert(server.stub, f"harbour {number}") for number in range(30)]
    assert models_found(server.stub) == {LIVE.model}

    def insert_one(number: int) -> None:
        insert(server.stub, f"ship {number}")

    def search_one(_number: int) -> None:
        found = search(server.stub, "harbour 7").results
        assert len({result.memory.embedding_model for result in found}) == 1, "two models are never mixed"

    with Callers().repeating(inserts=insert_one, searches=search_one) as callers:
        status, said = reembed(settings, batch=16)
        assert status == 0, said
        assert any(line.startswith("switched: the embeddings are of " + str(TARGET)) for line in said)
        assert f"  MEMORY_EMBEDDING_DIMENSIONS={TARGET.dimensions}" in said
        eventually(lambda: models_found(server.stub) == {TARGET.model})
        assert reembed(settings, "switch-back")[0] == 0
        eventually(lambda: models_found(server.stub) == {LIVE.model})
        assert reembed(settings, "switch")[0] == 0
        eventually(lambda: models_found(server.stub) == {TARGET.model})
    assert callers.errors == []
    assert min(callers.counts.values()) > 5

    eventually(lambda: {memory.embedding_state for memory in recent(server.stub)} == {pb.EMBEDDING_STATE_READY})
    memories = recent(server.stub)
    assert {memory.embedding_model for memory in memories} == {TARGET.model}
    assert len(memories) == len(known) + callers.counts["inserts"], "nothing was stored twice"
    [best, *_] = search(server.stub, "harbour 7").results
    assert best.memory.content == "harbour 7"
    assert provider.requests[-1].body["model"] == TARGET.model

    assert reembed(settings, "switch-back")[0] == 0
    eventually(lambda: info_of(server.stub).reembedding.fresh_count == len(memories))
    info = info_of(server.stub)
    assert (info.embedding_model, info.embedding_dimensions) == (LIVE.model, LIVE.dimensions)
    assert info.reembedding.phase == pb.REEMBEDDING_PHASE_BACKFILL
    assert (info.reembedding.total_count, info.reembedding.refused_count) == (len(memories), 0)

    switched = threading.Event()

    def answer_late(answer: dict[str, Any]) -> dict[str, Any]:
        switched.wait(30)
        return answer

    provider.fail(Tamper(answer_late))
    with ThreadPoolExecutor(1) as threads:
        under_way = threads.submit(search, server.stub, "asked of the old model")
        eventually(lambda: provider.requests[-1].texts == ["asked of the old model"])
        assert reembed(settings, "switch")[0] == 0
        switched.set()
        found = under_way.result()
    assert {result.memory.embedding_model for result in found.results} == {TARGET.model}

    assert reembed(settings, "clean-up")[0] == 0
    assert not info_of(server.stub).HasField("reembedding")
    assert models_found(server.stub) == {TARGET.model}
    assert server.log.events("settings_out_of_date")[0]["set"]["MEMORY_EMBEDDING_MODEL"] == TARGET.model
    with psycopg.connect(database_url) as connection, pytest.raises(psycopg.errors.UndefinedColumn):
        connection.execute("SELECT standby_embedding FROM memory_entries")


@pytest.mark.long
def test_a_service_that_cannot_embed_with_the_new_model_goes_on_without_texts(
    start_server: StartServer, settings: dict[str, Any]
) -> None:
    callers_own = {**settings, "embedder": "none"}
    del callers_own["openai_base_url"]
    server = start_server(**callers_own)
    old, new = pb.Vector(floats=pb.FloatArray(values=[1.0] * 8)), pb.Vector(floats=pb.FloatArray(values=[1.0] * 12))
    memory = pb.NewMemory(content="the harbour freezes", embedding=old)
    server.stub.InsertVector(pb.InsertVectorRequest(user_id=USER, memory=memory), timeout=10)

    status, said = reembed({**settings, "embedder": "none"}, batch=16)
    assert status == 0, said
    assert any("1 have an embedding that their caller brought" in line for line in said)

    server.log.wait_for("embedding_space_followed")  # noticed without a call
    told = server.log.wait_for("embedder_not_adopted")
    assert told["set"]["MEMORY_EMBEDDER"] == "openai"
    assert "MEMORY_OPENAI_API_KEY" in told["reason"]
    refused = failure(lambda: search(server.stub, "harbour"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "EMBEDDER_MISCONFIGURED")
    by_words = pb.SearchSimilarRequest(user_id=USER, text="harbour", mode=pb.SEARCH_MODE_LEXICAL)
    [found] = server.stub.SearchSimilar(by_words, timeout=10).results
    assert found.memory.embedding_model == TARGET.model
    by_vector = pb.SearchSimilarRequest(user_id=USER, embedding=new)
    assert len(server.stub.SearchSimilar(by_vector, timeout=10).results) == 1
    by_old_vector = pb.SearchSimilarRequest(user_id=USER, embedding=old)
    assert failure(lambda: server.stub.SearchSimilar(by_old_vector, timeout=10)).reason == "DIMENSION_MISMATCH"


@pytest.mark.long
def test_the_database_wins_when_a_service_starts_until_the_move_is_cleaned_up(
    start_server: StartServer, settings: dict[str, Any]
) -> None:
    assert reembed(settings)[0] == 0
    server = start_server(**settings)
    insert(server.stub, "harbour")
    assert models_found(server.stub) == {TARGET.model}
    assert server.log.events("settings_out_of_date")
    move = info_of(server.stub).reembedding
    assert (move.phase, move.target_model) == (pb.REEMBEDDING_PHASE_SWITCHED, TARGET.model)
    assert (move.target_dimensions, move.HasField("total_count")) == (TARGET.dimensions, False)

    assert reembed(settings, "clean-up")[0] == 0
    with pytest.raises(SchemaMismatch, match="MEMORY_EMBEDDING_MODEL"):
        require_schema(config.load(**settings), Provision(settings["database_url"], settings["database_url"], None))
