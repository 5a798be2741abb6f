"""ImportVectors while the database moves to another model: streams break, and sent again they store each chunk once."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import grpc
import psycopg
import pytest

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import Failure, failure_of
from tests.api.import_stream import ImportStream, import_all
from tests.api.waiting import eventually
from tests.embedding.provider import Provider, Tamper
from tests.fix_server import StartServer
from tests.server.reembedding_process import LIVE, TARGET, reembed, settings_for

USER = "ada"
CHUNK = 5
LIMIT_S = 60.0

pytestmark = pytest.mark.long

Chunk = list[pb.NewMemory]


@pytest.fixture
def provider() -> Iterator[Provider]:
    """Knows both models."""
    with Provider() as provider:
        yield provider


@pytest.fixture
def settings(provider: Provider, database_url: str) -> dict[str, Any]:
    """Of a service on the old model."""
    return settings_for(provider, database_url)


def chunk_of(number: int) -> Chunk:
    return [pb.NewMemory(content=f"ship {number}-{place}") for place in range(CHUNK)]


def contents_of(chunks: Sequence[Chunk]) -> list[str]:
    return sorted(memory.content for chunk in chunks for memory in chunk)


def stored(url: str) -> dict[str, str]:
    """Returns the contents of what is stored by id; none is there twice."""
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT id::text, content FROM memory_entries").fetchall()
    contents = [content for _, content in rows]
    assert len(contents) == len(set(contents)), "stored twice"
    return dict(rows)


def models(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        return {model for (model,) in connection.execute("SELECT DISTINCT embedding_model FROM memory_entries")}


def require_resumable(failed: Failure) -> float:
    """Returns after how many seconds an import that met a switch is to be sent again."""
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "EMBEDDING_SPACE_CHANGED"), failed
    assert failed.retry_after_s
    return failed.retry_after_s


def sent_again(stub: MemoryServiceStub, import_id: str, chunks: Sequence[Chunk]) -> list[pb.ImportVectorsResponse]:
    """Sends an import from its beginning, as often as the service asks for it."""
    ends_at = time.monotonic() + LIMIT_S
    while True:
        try:
            return import_all(stub, USER, chunks, import_id=import_id)
        except grpc.RpcError as error:
            assert time.monotonic() < ends_at, "the service goes on asking for it"
            time.sleep(require_resumable(failure_of(error)))


def require_each_once(
    url: str, chunks: Sequence[Chunk], first: pb.ImportVectorsResponse, replies: Sequence[pb.ImportVectorsResponse]
) -> None:
    """Checks an import of two chunks that broke after the first one and was sent again."""
    assert [reply.already_stored for reply in replies] == [True, False]
    assert list(replies[0].ids) == list(first.ids)
    assert replies[-1].acknowledged_count == 2 * CHUNK
    found = stored(url)
    assert sorted(found.values()) == contents_of(chunks)
    assert found.keys() == {memory_id for reply in replies for memory_id in reply.ids}
    eventually(lambda: models(url) == {TARGET.model})


def test_an_open_stream_ends_with_the_first_chunk_after_the_switch(
    start_server: StartServer, settings: dict[str, Any], database_url: str
) -> None:
    server = start_server(**settings)
    chunks = [chunk_of(0), chunk_of(1)]
    with ImportStream(server.stub, USER, timeout_s=LIMIT_S) as stream:
        first = stream.store(chunks[0])
        assert models(database_url) == {LIVE.model}
        status, said = reembed(settings)
        assert status == 0, said
        stream.send(chunks[1])
        failed = stream.failure()
    require_resumable(failed)
    assert failed.facts == {"chunk": "1"}
    assert sorted(stored(database_url).values()) == contents_of(chunks[:1])

    replies = sent_again(server.stub, stream.import_id, chunks)
    require_each_once(database_url, chunks, first, replies)


def test_a_chunk_embedded_by_the_old_model_is_not_stored_after_the_switch(
    start_server: StartServer, settings: dict[str, Any], database_url: str, provider: Provider
) -> None:
    server = start_server(**settings)
    chunks = [chunk_of(0), chunk_of(1)]
    switched = threading.Event()

    def answer_late(answer: dict[str, Any]) -> dict[str, Any]:
        switched.wait(LIMIT_S)
        return answer

    with ImportStream(server.stub, USER, timeout_s=LIMIT_S) as stream:
        first = stream.store(chunks[0])
        assert reembed(settings, no_switch=True)[0] == 0
        provider.fail(Tamper(answer_late))
        stream.send(chunks[1])
        eventually(lambda: provider.requests[-1].texts == [memory.content for memory in chunks[1]])
        assert reembed(settings, "switch")[0] == 0
        switched.set()
        require_resumable(stream.failure())
    require_each_once(database_url, chunks, first, sent_again(server.stub, stream.import_id, chunks))


@dataclass(slots=True)
class Importer:
    """One import without an end of its own, resumed with the first chunk that is not acknowledged."""

    stub: MemoryServiceStub
    import_id: str = field(default_factory=lambda: str(uuid4()))
    ids: list[str] = field(default_factory=list)
    """Acknowledged memories, in order."""
    resumed: int = 0
    finishing: threading.Event = field(default_factory=threading.Event)

    @property
    def acknowledged(self) -> int:
        """How many chunks are."""
        return len(self.ids) // CHUNK

    def run(self) -> None:
        """Imports until told to finish."""
        while True:
            try:
                for reply in self.stub.ImportVectors(self._chunks(), timeout=LIMIT_S):
                    assert reply.chunk == self.acknowledged
                    self.ids += reply.ids
            except grpc.RpcError as error:
                self.resumed += 1
                time.sleep(require_resumable(failure_of(error)))
            else:
                return

    def wait_for_more(self) -> None:
        """Returns once a few more chunks are acknowledged."""
        enough = self.acknowledged + 3
        eventually(lambda: self.acknowledged >= enough)

    def _chunks(self) -> Iterator[pb.ImportVectorsRequest]:
        number = self.acknowledged
        while not self.finishing.wait(0.01):
            yield pb.ImportVectorsRequest(
                user_id=USER, import_id=self.import_id, chunk=number, memories=chunk_of(number)
            )
            number += 1


def test_an_import_goes_on_through_moves_there_and_back(
    start_server: StartServer, settings: dict[str, Any], database_url: str
) -> None:
    importer = Importer(start_server(**settings).stub)
    with ThreadPoolExecutor(1) as threads:
        importing = threads.submit(importer.run)
        try:
            for action in ("move", "switch-back", "switch"):
                importer.wait_for_more()
                status, said = reembed(settings, action)
                assert status == 0, said
            importer.wait_for_more()
        finally:
            importer.finishing.set()
        importing.result(LIMIT_S)

    assert importer.resumed >= 3
    found = stored(database_url)
    assert [found[memory_id] for memory_id in importer.ids] == [
        memory.content for number in range(importer.acknowledged) for memory in chunk_of(number)
    ]
    assert len(found) == len(importer.ids), "nothing was stored beside"
    eventually(lambda: models(database_url) == {TARGET.model})
