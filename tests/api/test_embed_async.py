"""embed_async: memories are stored at once, are there in every way but by meaning, and get their embedding later."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest

from db import migrate
from db.schema import EmbeddingSpace
from memory_service.embedding.local import MODEL
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import failure, send
from tests.api.import_stream import ImportStream
from tests.api.messages import f32, get, stats, values_of
from tests.api.waiting import eventually
from tests.fix_database import Databases, NewDatabase
from tests.fix_server import ServerProcess, StartServer, running_servers
from tests.server.bulk_files import all_memories, run_here, write_lines

DIMENSIONS = 256
READY, PENDING = pb.EMBEDDING_STATE_READY, pb.EMBEDDING_STATE_PENDING
OWN = f32([1.0, *[0.0] * (DIMENSIONS - 1)])


@pytest.fixture(scope="module")
def server(databases: Databases) -> Iterator[ServerProcess]:
    """A service with the local embedder, shared by the tests of this module; it never polls, it has to be woken."""
    with running_servers(databases) as start:
        yield start(embedder="local", embedding_queue_poll_s=3_600)


def insert(stub: MemoryServiceStub, user_id: str, content: str, **fields: object) -> pb.Memory:
    """Stores a memory that is embedded later and returns it as the reply shows it."""
    memory = pb.NewMemory(content=content, **fields)  # type: ignore[arg-type]
    reply = send(stub, pb.InsertVectorRequest(user_id=user_id, memory=memory, embed_async=True))
    assert reply.outcome == pb.INSERT_OUTCOME_STORED
    stored: pb.Memory = reply.memory
    return stored


def state_of(stub: MemoryServiceStub, user_id: str, memory_id: str) -> pb.EmbeddingState.ValueType:
    return get(stub, user_id, memory_id).embedding_state


def wait_until_ready(stub: MemoryServiceStub, user_id: str, *ids: str) -> None:
    eventually(lambda: all(state_of(stub, user_id, memory_id) == READY for memory_id in ids))


def nearest(stub: MemoryServiceStub, user_id: str, text: str) -> list[str]:
    """Returns the contents found by meaning alone."""
    request = pb.SearchSimilarRequest(user_id=user_id, text=text, mode=pb.SEARCH_MODE_DENSE)
    return [result.memory.content for result in send(stub, request).results]


def test_a_memory_is_stored_at_once_and_embedded_soon(stub: MemoryServiceStub, user_id: str) -> None:
    memory = insert(stub, user_id, "Ada plays the cello")
    assert (memory.embedding_state, memory.embedding_model) == (PENDING, MODEL)

    wait_until_ready(stub, user_id, memory.id)

    insert(stub, user_id, "The invoice is due on Friday")
    eventually(lambda: len(nearest(stub, user_id, "x")) == 2)
    assert nearest(stub, user_id, "musical instrument")[0] == "Ada plays the cello"
    found = get(stub, user_id, memory.id, view=pb.MEMORY_VIEW_FULL)
    assert len(values_of(found.embedding)) == DIMENSIONS
    assert found.etag == memory.etag, "what a caller knows of it has not changed"


def test_later_or_at_once_makes_the_same_embedding(stub: MemoryServiceStub, user_id: str) -> None:
    later = insert(stub, user_id, "the same words")
    request = pb.InsertVectorRequest(user_id=user_id, memory=pb.NewMemory(content="the same words"))
    at_once = send(stub, request).memory
    assert at_once.embedding_state == READY
    wait_until_ready(stub, user_id, later.id)
    first, second = (get(stub, user_id, id_, view=pb.MEMORY_VIEW_FULL) for id_ in (later.id, at_once.id))
    assert values_of(first.embedding) == values_of(second.embedding)


def test_a_batch_and_an_import(stub: MemoryServiceStub, user_id: str) -> None:
    memories = [pb.NewMemory(content=f"text {number}") for number in range(100)]
    request = pb.BatchInsertVectorsRequest(user_id=user_id, memories=memories, embed_async=True)
    ids = [result.id for result in send(stub, request).results]
    with ImportStream(stub, user_id) as stream:
        for _ in range(2):
            stream.send(memories, embed_async=True)
        imported = [id_ for reply in stream.rest() for id_ in reply.ids]
    assert len(imported) == 200
    wait_until_ready(stub, user_id, *ids, *imported)


def test_a_paraphrase_is_embedded_in_place_of_the_content(stub: MemoryServiceStub, user_id: str) -> None:
    memory = insert(stub, user_id, "#7781-B", embed_text="The cathedral's organ is being restored")
    insert(stub, user_id, "Bread needs flour")
    wait_until_ready(stub, user_id, memory.id)
    eventually(lambda: len(nearest(stub, user_id, "x")) == 2)
    assert nearest(stub, user_id, "church organ restoration")[0] == "#7781-B"


def test_an_embedding_that_comes_along_is_stored_as_ever(stub: MemoryServiceStub, user_id: str) -> None:
    memory = insert(stub, user_id, "brings its own", embedding=OWN)
    assert (memory.embedding_state, memory.embedding_model) == (READY, "caller")
    mixed = [pb.NewMemory(content="text"), pb.NewMemory(embedding=OWN)]
    results = send(stub, pb.BatchInsertVectorsRequest(user_id=user_id, memories=mixed, embed_async=True)).results
    assert state_of(stub, user_id, results[1].id) == READY
    wait_until_ready(stub, user_id, results[0].id)


def test_what_can_never_be_embedded_is_refused_at_once(stub: MemoryServiceStub, user_id: str) -> None:
    blank = pb.NewMemory(content=" \n")
    requests = {
        "memory.content": pb.InsertVectorRequest(user_id=user_id, memory=blank, embed_async=True),
        "memories[0].content": pb.BatchInsertVectorsRequest(user_id=user_id, memories=[blank], embed_async=True),
    }
    for field, request in requests.items():
        assert list(failure(partial(send, stub, request)).violations) == [field]
    assert stats(stub, user_id).live_count == 0


def test_a_repeated_call_stores_nothing_twice(stub: MemoryServiceStub, user_id: str) -> None:
    memory = pb.NewMemory(content="once")
    request = pb.InsertVectorRequest(user_id=user_id, memory=memory, embed_async=True, request_id=str(uuid4()))
    first, second = send(stub, request), send(stub, request)
    assert first == second
    wait_until_ready(stub, user_id, first.memory.id)
    assert stats(stub, user_id).live_count == 1


@pytest.fixture
def idle(start_server: StartServer) -> ServerProcess:
    """A service that stores, and leaves embedding to others."""
    return start_server(embedder="local", embedding_queue_threads=0)


def test_a_memory_that_waits_is_there_but_for_its_meaning(idle: ServerProcess, user_id: str) -> None:
    stub = idle.stub
    memory = insert(stub, user_id, "Ada plays the cello", conversation_id="c")
    assert get(stub, user_id, memory.id, view=pb.MEMORY_VIEW_FULL) == memory
    [recent] = send(stub, pb.GetRecentRequest(user_id=user_id, view=pb.MEMORY_VIEW_FULL)).memories
    assert recent == memory
    assert nearest(stub, user_id, "cello") == []
    assert stats(stub, user_id).live_count == 1
    queue = send(stub, pb.GetServerInfoRequest()).embedding_queue
    assert (queue.pending_count, queue.failed_count) == (1, 0)
    assert queue.oldest_pending_at == memory.created_at

    update = pb.UpdateVectorRequest(user_id=user_id, id=memory.id, memory=pb.Memory(importance=9))
    assert send(stub, update).memory.embedding_state == PENDING
    send(stub, pb.DeleteVectorRequest(user_id=user_id, id=memory.id))
    assert send(stub, pb.RestoreVectorRequest(user_id=user_id, id=memory.id)).memory.embedding_state == PENDING

    update = pb.UpdateVectorRequest(user_id=user_id, id=memory.id, memory=pb.Memory(content="Bob plays chess"))
    assert send(stub, update).memory.embedding_state == READY
    assert nearest(stub, user_id, "board game") == ["Bob plays chess"]
    queue = send(stub, pb.GetServerInfoRequest()).embedding_queue
    assert (queue.pending_count, queue.HasField("oldest_pending_at")) == (0, False)


def test_duplicates_are_met_whether_or_not_they_wait(idle: ServerProcess, user_id: str) -> None:
    waiting = insert(idle.stub, user_id, "said twice")
    request = pb.InsertVectorRequest(user_id=user_id, memory=pb.NewMemory(content="said twice"), embed_async=True)
    request.duplicates.policy = pb.DUPLICATE_POLICY_SKIP
    reply = send(idle.stub, request)
    assert (reply.outcome, reply.memory.id) == (pb.INSERT_OUTCOME_SKIPPED, waiting.id)
    assert send(idle.stub, pb.GetServerInfoRequest()).embedding_queue.pending_count == 1

    request.duplicates.policy = pb.DUPLICATE_POLICY_SUPERSEDE
    reply = send(idle.stub, request)
    assert (reply.outcome, reply.memory.embedding_state) == (pb.INSERT_OUTCOME_SUPERSEDED, PENDING)
    assert get(idle.stub, user_id, waiting.id).superseded_by == reply.memory.id

    request.duplicates.min_similarity = 0.9
    assert list(failure(lambda: send(idle.stub, request)).violations) == ["duplicates.min_similarity"]


def test_a_file_is_imported_now_and_embedded_later(idle: ServerProcess, user_id: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "memories.jsonl", [{"content": f"text {number}"} for number in range(10)])
    assert run_here("import", str(path), "--user", user_id, "--address", idle.address, "--embed-async") == 0
    assert [memory.embedding_state for memory in all_memories(idle.stub, user_id)] == [PENDING] * 10


@pytest.mark.parametrize("policy", [pb.DUPLICATE_POLICY_SKIP, pb.DUPLICATE_POLICY_REINFORCE])
def test_duplicates_within_a_batch_and_an_import_wait_once(
    idle: ServerProcess, user_id: str, policy: pb.DuplicatePolicy.ValueType
) -> None:
    duplicates = pb.Duplicates(policy=policy)
    memories = [pb.NewMemory(content=content, importance=n + 1) for n, content in enumerate("abacb")]
    request = pb.BatchInsertVectorsRequest(user_id=user_id, memories=memories, embed_async=True, duplicates=duplicates)
    results = send(idle.stub, request).results
    assert [result.id for result in results] == [results[n].id for n in (0, 1, 0, 3, 1)]
    with ImportStream(idle.stub, user_id) as stream:
        stream.send([*memories, pb.NewMemory(content="d")], embed_async=True, duplicates=duplicates)
        [reply] = stream.rest()
    assert list(reply.ids[:5]) == [result.id for result in results]
    assert send(idle.stub, pb.GetServerInfoRequest()).embedding_queue.pending_count == 4
    reinforced = policy == pb.DUPLICATE_POLICY_REINFORCE
    assert get(idle.stub, user_id, results[0].id).importance == (3 if reinforced else 1)


def test_what_supersedes_a_waiting_memory_is_embedded_and_both_can_be_found(
    stub: MemoryServiceStub, user_id: str
) -> None:
    supersede = pb.Duplicates(policy=pb.DUPLICATE_POLICY_SUPERSEDE)
    memories = [pb.NewMemory(content="Ada plays the cello")] * 3
    request = pb.BatchInsertVectorsRequest(user_id=user_id, memories=memories, embed_async=True, duplicates=supersede)
    results = send(stub, request).results
    assert [result.outcome for result in results] == [
        pb.INSERT_OUTCOME_STORED,
        *[pb.INSERT_OUTCOME_SUPERSEDED] * 2,
    ]
    wait_until_ready(stub, user_id, *[result.id for result in results])
    assert nearest(stub, user_id, "music") == ["Ada plays the cello"]
    restored = send(stub, pb.RestoreVectorRequest(user_id=user_id, id=results[0].id)).memory
    assert restored.embedding_state == READY
    assert len(nearest(stub, user_id, "music")) == 2


@pytest.mark.long
def test_what_one_process_stored_another_one_embeds(start_server: StartServer, new_database: NewDatabase) -> None:
    url = new_database(dimensions=None)
    migrate.upgrade(url, EmbeddingSpace(MODEL, DIMENSIONS))
    storing = start_server(database_url=url, embedder="local", embedding_queue_threads=0)
    gone = insert(storing.stub, "u", "deleted while it waits")
    kept = insert(storing.stub, "u", "kept")
    send(storing.stub, pb.DeleteVectorRequest(user_id="u", id=gone.id))

    start_server(database_url=url, embedder="local", embedding_queue_poll_s=0.02)

    wait_until_ready(storing.stub, "u", kept.id, gone.id)
    assert send(storing.stub, pb.RestoreVectorRequest(user_id="u", id=gone.id)).memory.embedding_state == READY
    assert len(nearest(storing.stub, "u", "x")) == 2
