"""Imports that do not end well: clients killed, cancelled or too many, and a server that shuts down."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from uuid import uuid4

import grpc
import psycopg
import pytest

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import code_of, send
from tests.api.import_stream import ImportStream, count, import_all
from tests.api.messages import insert, new_memory
from tests.api.waiting import eventually
from tests.fix_server import ServerProcess, StartServer

CHUNK = 50

CLIENT = f"""
import itertools, sys, uuid
import grpc
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub

address, user_id, import_id = sys.argv[1:]

def chunks():
    for number in itertools.count():
        memories = [
            pb.NewMemory(content=f"{{number}} {{index}}", embedding=pb.Vector(floats=pb.FloatArray(values=[1.0] * 8)))
            for index in range({CHUNK})
        ]
        yield pb.ImportVectorsRequest(user_id=user_id, import_id=import_id, chunk=number, memories=memories)

with grpc.insecure_channel(address) as channel:
    for reply in MemoryServiceStub(channel).ImportVectors(chunks()):
        print(reply.chunk, flush=True)
"""


@pytest.fixture
def blocker(module_database_url: str) -> Iterator[psycopg.Connection]:
    """A session that can keep everybody from writing memories: `LOCK TABLE memory_entries IN SHARE MODE`."""
    with psycopg.connect(module_database_url) as connection:
        yield connection
        connection.rollback()


def settled_count(stub: MemoryServiceStub, user_id: str) -> int:
    """Returns what is stored once nothing more is: the chunk under way was cancelled, or committed."""
    before = -1
    while (now := count(stub, user_id)) != before:
        before = now
        time.sleep(0.3)
    return now


def block(blocker: psycopg.Connection) -> None:
    blocker.execute("LOCK TABLE memory_entries IN SHARE MODE")


def waiting_for_lock(blocker: psycopg.Connection) -> bool:
    row = blocker.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    ).fetchone()
    assert row is not None
    return bool(row[0])


def test_a_killed_client_has_stored_what_was_acknowledged(server: ServerProcess, user_id: str) -> None:
    import_id = str(uuid4())
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, server.address, user_id, import_id], stdout=subprocess.PIPE, text=True
    )
    assert client.stdout is not None
    acknowledged = [int(client.stdout.readline()) for _ in range(5)]
    client.kill()
    client.wait()
    acknowledged += [int(line) for line in client.stdout]
    client.stdout.close()
    assert acknowledged == list(range(len(acknowledged)))

    stored = settled_count(server.stub, user_id)
    assert stored % CHUNK == 0
    # Acknowledgements that were under way when the client died reached nobody.
    lost = stored // CHUNK - len(acknowledged)
    assert 0 <= lost <= 8, "acknowledgements under way, and a few chunks read ahead"

    def again(number: int) -> list[pb.NewMemory]:
        vector = pb.Vector(floats=pb.FloatArray(values=[1.0] * 8))
        return [pb.NewMemory(content=f"{number} {index}", embedding=vector) for index in range(CHUNK)]

    total = len(acknowledged) + lost + 2
    replies = import_all(server.stub, user_id, [again(number) for number in range(total)], import_id=import_id)
    assert [reply.already_stored for reply in replies] == [True] * (total - 2) + [False] * 2
    assert count(server.stub, user_id) == total * CHUNK


def test_a_chunk_that_is_cancelled_leaves_nothing(
    stub: MemoryServiceStub, user_id: str, blocker: psycopg.Connection
) -> None:
    import_id, chunk = str(uuid4()), [new_memory(str(index), conversation_id="c") for index in range(CHUNK)]
    with ImportStream(stub, user_id, import_id=import_id) as stream:
        stream.store([new_memory("before")])
        block(blocker)
        stream.send(chunk)
        eventually(lambda: waiting_for_lock(blocker))
        stream.call.cancel()
        eventually(lambda: not waiting_for_lock(blocker))
        blocker.rollback()
    assert count(stub, user_id) == 1
    with ImportStream(stub, user_id, import_id=import_id, first=1) as stream:
        assert not stream.store(chunk).already_stored


def test_a_deadline_ends_the_stream_and_keeps_what_was_acknowledged(
    stub: MemoryServiceStub, user_id: str, blocker: psycopg.Connection
) -> None:
    with ImportStream(stub, user_id, timeout_s=1.5) as stream:
        stream.store([new_memory("before")])
        block(blocker)
        stream.send([new_memory("late")])
        assert code_of(stream.acknowledgement) is grpc.StatusCode.DEADLINE_EXCEEDED
        eventually(lambda: not waiting_for_lock(blocker))
        blocker.rollback()
    assert count(stub, user_id) == 1


def test_the_same_chunk_over_two_streams_is_stored_once(
    stub: MemoryServiceStub, user_id: str, blocker: psycopg.Connection
) -> None:
    import_id, chunk = str(uuid4()), [new_memory("once"), new_memory("each")]
    block(blocker)
    with (
        ImportStream(stub, user_id, import_id=import_id) as one,
        ImportStream(stub, user_id, import_id=import_id) as other,
    ):
        one.send(chunk)
        other.send(chunk)
        eventually(lambda: waiting_for_lock(blocker))
        time.sleep(0.2)
        blocker.rollback()
        replies = [one.acknowledgement(), other.acknowledgement()]
    assert sorted(reply.already_stored for reply in replies) == [False, True]
    assert list(replies[0].ids) == list(replies[1].ids)
    assert count(stub, user_id) == 2


def test_more_streams_than_allowed_are_refused_and_searches_go_on(start_server: StartServer, user_id: str) -> None:
    server = start_server(import_streams=2, threads=2)
    with ImportStream(server.stub, user_id) as one, ImportStream(server.stub, user_id) as two:
        one.store([new_memory("one")])
        two.store([new_memory("two")])
        for _ in range(3):
            failure = ImportStream(server.stub, user_id).failure()
            assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
            assert failure.message == "all 2 import streams of this server process are in use"
            assert failure.retry_after_s is not None
        assert count(server.stub, user_id) == 2
        one.rest()
        eventually(lambda: ImportStream(server.stub, user_id).rest() == [])
        two.store([new_memory("three")])


def test_shutting_down_ends_idle_streams_at_once(start_server: StartServer, user_id: str) -> None:
    server = start_server(drain_grace_s=20)
    with ImportStream(server.stub, user_id) as stream:
        stream.store([new_memory("stored")])
        started_at = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        failure = stream.failure()
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
    assert failure.message == "the server is shutting down; send the import again to resume it"
    assert failure.retry_after_s is not None
    assert server.wait() == 0
    assert time.monotonic() - started_at < 8
    assert not server.log.events("calls_cut_off")
    assert {event["level"] for event in server.log.events("call")} == {"info"}


@pytest.mark.long
def test_shutting_down_finishes_the_chunk_under_way(start_server: StartServer, database_url: str, user_id: str) -> None:
    server = start_server(database_url=database_url, drain_grace_s=20)
    with psycopg.connect(database_url) as blocker, ImportStream(server.stub, user_id) as stream:
        block(blocker)
        for _ in range(3):
            stream.send([new_memory("chunk")])
        eventually(lambda: waiting_for_lock(blocker))
        server.process.send_signal(signal.SIGTERM)
        server.log.wait_for("draining")
        time.sleep(0.3)
        blocker.rollback()
        assert stream.acknowledgement().chunk == 0
        assert stream.failure().code is grpc.StatusCode.UNAVAILABLE
    assert server.wait() == 0

    successor = start_server(database_url=database_url)
    assert count(successor.stub, user_id) == 1
    with ImportStream(successor.stub, user_id, import_id=stream.import_id) as resumed:
        assert resumed.store([new_memory("chunk")]).already_stored
        assert not resumed.store([new_memory("chunk")]).already_stored


@pytest.mark.long
def test_a_killed_server_has_stored_what_was_acknowledged(
    start_server: StartServer, database_url: str, user_id: str
) -> None:
    server = start_server(database_url=database_url)
    chunks = [[new_memory(f"{number} {index}") for index in range(CHUNK)] for number in range(400)]
    stream = ImportStream(server.stub, user_id)
    for chunk in chunks:
        stream.send(chunk)
    acknowledged = [stream.acknowledgement().chunk for _ in range(4)]
    server.process.kill()
    assert code_of(lambda: acknowledged.extend(reply.chunk for reply in stream.rest())) is grpc.StatusCode.UNAVAILABLE
    server.wait()

    successor = start_server(database_url=database_url)
    lost = count(successor.stub, user_id) // CHUNK - len(acknowledged)
    assert 0 <= lost <= 3
    last = acknowledged[-1] + lost
    with ImportStream(successor.stub, user_id, import_id=stream.import_id, first=last) as resumed:
        assert resumed.store(chunks[last]).already_stored
        assert not resumed.store(chunks[last + 1]).already_stored
    assert count(successor.stub, user_id) == (last + 2) * CHUNK


def test_the_erased_user_takes_the_import_along(
    stub: MemoryServiceStub, user_id: str, module_database_url: str
) -> None:
    import_id, chunk = str(uuid4()), [new_memory("again")]
    import_all(stub, user_id, [chunk], import_id=import_id)
    with psycopg.connect(module_database_url, autocommit=True) as connection:
        connection.execute("DELETE FROM users WHERE user_id = %s", [user_id])
    [reply] = import_all(stub, user_id, [chunk], import_id=import_id)
    assert not reply.already_stored
    assert count(stub, user_id) == 1
    insert(stub, user_id, "and goes on")
    assert send(stub, pb.GetRecentRequest(user_id=user_id)).memories[0].content == "and goes on"
