"""SearchAllUsers: off by default, and across users where it is on."""

import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import psycopg
import pytest

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import failure, send
from tests.api.messages import axis, f16, f32, floats, get, insert, insert_all, new_memory, values_of
from tests.api.waiting import eventually
from tests.fix_database import DIMENSIONS, Databases
from tests.fix_server import ServerProcess, StartServer, running_servers


@pytest.fixture(scope="module")
def server(databases: Databases, module_database_url: str) -> Iterator[ServerProcess]:
    """A server that searches across users."""
    with running_servers(databases) as start:
        yield start(database_url=module_database_url, global_search="on", ann_maintenance_interval_s=0.2)


@pytest.fixture(autouse=True)
def nothing_stored(module_database_url: str) -> None:
    """Empties the database: every test sees all users."""
    with psycopg.connect(module_database_url, autocommit=True) as connection:
        connection.execute("DELETE FROM users")


def request(**fields: Any) -> pb.SearchAllUsersRequest:
    query = {} if "text" in fields else {"embedding": axis(0)}
    return pb.SearchAllUsersRequest(**(query | fields))


def found(stub: MemoryServiceStub, **fields: Any) -> list[tuple[str, str]]:
    """Returns owner and content of what a search finds."""
    reply = send(stub, request(**fields))
    return [(result.memory.user_id, result.memory.content) for result in reply.results]


def at_angles(count: int) -> list[pb.Vector]:
    """Returns embeddings further and further from the first axis."""
    angles = np.linspace(0, np.pi / 2, count)
    return [floats([np.cos(angle), np.sin(angle), *[0.0] * (DIMENSIONS - 2)]) for angle in angles]


def test_it_finds_the_nearest_of_all_users(stub: MemoryServiceStub) -> None:
    for number, embedding in enumerate(at_angles(7)):
        insert(stub, f"user-{number % 3}", f"memory {number}", embedding=embedding)

    assert found(stub, limit=4) == [
        ("user-0", "memory 0"),
        ("user-1", "memory 1"),
        ("user-2", "memory 2"),
        ("user-0", "memory 3"),
    ]
    reply = send(stub, request(limit=2))
    assert [result.score for result in reply.results] == pytest.approx([1.0, np.cos(np.pi / 12)], abs=1e-3)
    assert reply.plan in {pb.SEARCH_PLAN_EXACT, pb.SEARCH_PLAN_ANN}
    timing = reply.timing
    assert timing.total.ToNanoseconds() >= timing.database.ToNanoseconds() > 0
    assert timing.embedding.ToNanoseconds() == 0


def test_the_limit_is_ten_unless_given(stub: MemoryServiceStub) -> None:
    insert_all(stub, "a", [new_memory(f"memory {number}") for number in range(8)])
    insert_all(stub, "b", [new_memory(f"memory {number}") for number in range(8)])
    assert len(found(stub)) == 10
    assert len(found(stub, limit=16)) == 16
    assert len(found(stub, limit=1_000)) == 16


def test_threshold(stub: MemoryServiceStub) -> None:
    insert(stub, "a", "near", embedding=axis(0))
    insert(stub, "b", "far", embedding=axis(1))
    assert found(stub, min_score=0.5) == [("a", "near")]
    assert len(found(stub, min_score=0.0)) == 2
    assert found(stub, min_score=1.5) == []


def test_deleted_memories_are_left_out(stub: MemoryServiceStub) -> None:
    gone = insert(stub, "a", "gone")
    insert(stub, "b", "here")
    stub.DeleteVector(pb.DeleteVectorRequest(user_id="a", id=gone.id), timeout=10)
    assert found(stub) == [("b", "here")]


@pytest.mark.parametrize(("encode", "kind"), [(floats, "floats"), (f32, "f32_le"), (f16, "f16_le")])
def test_embeddings_come_back_in_the_encoding_they_were_asked_with(
    stub: MemoryServiceStub, encode: Any, kind: str
) -> None:
    insert(stub, "a", "memory", embedding=axis(0, length=3.0))
    query = encode(np.eye(DIMENSIONS)[0])
    [result] = send(stub, request(embedding=query, view=pb.MEMORY_VIEW_FULL)).results
    assert result.memory.embedding.WhichOneof("encoding") == kind
    assert values_of(result.memory.embedding) == pytest.approx([3.0, *[0.0] * 7], abs=1e-2)
    [result] = send(stub, request(embedding=query)).results
    assert not result.memory.HasField("embedding")
    [result] = send(stub, request(embedding=query, view=pb.MEMORY_VIEW_HEAD)).results
    assert (result.memory.user_id, result.memory.content) == ("a", "")


def test_it_counts_no_accesses(stub: MemoryServiceStub) -> None:
    memory = insert(stub, "a", "memory")
    for _ in range(3):
        assert len(found(stub)) == 1
    other = insert(stub, "a", "other", embedding=axis(1))
    get(stub, "a", other.id, skip_access_recording=False)
    # Accesses are written together: once this one is there, those of the searches would be, too.
    eventually(lambda: get(stub, "a", other.id).access_count == 1)
    assert get(stub, "a", memory.id).access_count == 0


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"embedding": None}, "text"),
        ({"embedding": axis(0), "text": "both"}, "text"),
        ({"limit": -1}, "limit"),
        ({"limit": 1_001}, "limit"),
        ({"min_score": float("nan")}, "min_score"),
        ({"ef_search": 0}, "ef_search"),
        ({"ef_search": 1_001}, "ef_search"),
        ({"view": 99}, "view"),
        ({"embedding_encoding": 99}, "embedding_encoding"),
        ({"embedding": floats([1.0, 2.0])}, "embedding"),
        ({"embedding": floats([0.0] * DIMENSIONS)}, "embedding"),
        ({"text": "there is no embedder"}, "text"),
    ],
    ids=str,
)
def test_bad_arguments_name_their_field(stub: MemoryServiceStub, fields: dict[str, Any], path: str) -> None:
    refused = failure(lambda: send(stub, request(**fields)))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(refused.violations) == [path]


def test_embeddings_that_cannot_fit_a_reply_are_refused_at_once(start_server: StartServer) -> None:
    stub = start_server(global_search="on", embedding_dimensions=2_048).stub
    query = floats(np.eye(2_048)[0])
    refused = failure(lambda: send(stub, request(embedding=query, limit=1_000, view=pb.MEMORY_VIEW_FULL)))
    assert list(refused.violations) == ["limit"]


def test_the_index_is_built_and_used(stub: MemoryServiceStub) -> None:
    insert_all(stub, "a", [new_memory(embedding=embedding) for embedding in at_angles(20)])
    eventually(lambda: send(stub, request(limit=3)).plan == pb.SEARCH_PLAN_ANN)
    reply = send(stub, request(limit=3, ef_search=40))
    assert reply.plan == pb.SEARCH_PLAN_ANN
    assert [result.score for result in reply.results] == pytest.approx(
        [np.cos(index * np.pi / 38) for index in range(3)], abs=1e-3
    )


def test_by_default_it_is_refused_whatever_it_asks(start_server: StartServer) -> None:
    stub = start_server(embedder="local", embedding_dimensions=256).stub
    for asked in (
        request(text="never embedded"),
        request(embedding=floats([1.0])),
        request(limit=-5),
        pb.SearchAllUsersRequest(),
    ):
        refused = failure(lambda asked=asked: send(stub, asked))  # type: ignore[misc]  # mypy cannot infer defaults
        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "GLOBAL_SEARCH_DISABLED")
        assert "MEMORY_GLOBAL_SEARCH" in refused.message
        assert refused.violations == {}


def test_text_is_embedded(start_server: StartServer) -> None:
    stub = start_server(embedder="local", embedding_dimensions=256, global_search="on").stub
    for text in ("The cat sleeps on the sofa.", "Interest rates rose by half a percent."):
        user_id = uuid.uuid4().hex
        stub.InsertVector(pb.InsertVectorRequest(user_id=user_id, memory=pb.NewMemory(content=text)), timeout=30)
    reply = send(stub, pb.SearchAllUsersRequest(text="a sleeping pet", limit=1))
    assert [result.memory.content for result in reply.results] == ["The cat sleeps on the sofa."]
    assert reply.timing.embedding.ToNanoseconds() > 0
