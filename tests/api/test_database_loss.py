"""A database that goes and comes back, a PostgreSQL that is killed, a server that is told to stop: nothing is lost."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import grpc
import psycopg
import pytest

from db import migrate
from db.embedded import EmbeddedPostgres, postmaster
from db.schema import EmbeddingSpace
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import failure, failure_of, send
from tests.api.load import Client
from tests.api.messages import get, insert, new_memory
from tests.api.waiting import eventually
from tests.fix_database import DIMENSIONS, FAST, MODEL
from tests.fix_server import ServerProcess, StartServer, open_channel

STORED = "SELECT id::text, summary FROM memory_entries WHERE user_id = %s"


@contextmanager
def at_work(server: ServerProcess, count: int) -> Iterator[list[Client]]:
    """Lets clients work, each over a connection of its own; fails the test when one of them did."""
    stop = threading.Event()
    channels = [open_channel(server.address) for _ in range(count)]
    clients = [Client(MemoryServiceStub(channel)) for channel in channels]
    with ThreadPoolExecutor(count) as threads:
        running: list[Future[None]] = [threads.submit(client.run, stop) for client in clients]
        try:
            yield clients
        finally:
            stop.set()
    for channel in channels:
        channel.close()
    for future in running:
        future.result()


def has_confirmed(client: Client, count: int) -> bool:
    return len(client.confirmed) >= count


def stored_by(database_url: str, client: Client) -> dict[str, str]:
    with psycopg.connect(database_url) as connection:
        return dict(connection.execute(STORED, [client.user_id]).fetchall())


def is_served(call: Callable[[], object]) -> bool:
    try:
        call()
    except grpc.RpcError as error:
        if failure_of(error).reason != "DATABASE_UNAVAILABLE":
            raise
        return False
    return True


def test_while_the_database_is_down_calls_are_unavailable_and_then_served_again(
    start_server: StartServer, data_dir: Path, user_id: str
) -> None:
    with EmbeddedPostgres.start(data_dir, settings=FAST) as postgres:
        url = postgres.url
        migrate.upgrade(url, EmbeddingSpace(MODEL, DIMENSIONS))
        server = start_server(database_url=url)
        memory = insert(server.stub, user_id, "before")
    requests = [
        pb.GetVectorRequest(user_id=user_id, id=memory.id),
        pb.InsertVectorRequest(user_id=user_id, memory=new_memory("meanwhile")),
        pb.SearchSimilarRequest(user_id=user_id, memory_id=memory.id),
        pb.GetStatsRequest(user_id=user_id),
    ]

    with ThreadPoolExecutor(len(requests)) as threads:
        refusals = threads.map(lambda request: failure(lambda: send(server.stub, request)), requests)

    for refused in refusals:
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
        assert refused.retry_after_s is not None
    eventually(lambda: server.health() == "NOT_SERVING")
    assert send(server.stub, pb.GetServerInfoRequest()).embedding_dimensions == DIMENSIONS

    with EmbeddedPostgres.start(data_dir, settings=FAST):
        eventually(lambda: server.health() == "SERVING")
        # The pool's next attempt to connect comes a second after the last one that failed.
        eventually(lambda: is_served(lambda: get(server.stub, user_id, memory.id)), timeout_s=10)
        assert get(server.stub, user_id, memory.id) == memory
        assert insert(server.stub, user_id, "after").content == "after"
        assert server.stop() == 0


@pytest.mark.long
def test_kill_9_of_postgres_under_load_loses_nothing_that_was_confirmed(
    start_server: StartServer, data_dir: Path
) -> None:
    server = start_server(data_dir=data_dir)

    with at_work(server, 4) as clients:
        eventually(lambda: all(has_confirmed(client, 30) for client in clients))
        for _ in range(2):
            counts = [len(client.confirmed) for client in clients]
            running = postmaster.find(data_dir / "postgres")
            assert running is not None
            assert running.pid is not None
            os.kill(running.pid, signal.SIGKILL)
            for client, count in zip(clients, counts, strict=True):
                eventually(partial(has_confirmed, client, count + 20), timeout_s=40)

    with EmbeddedPostgres.start(data_dir) as postgres:
        for client in clients:
            # Each confirmed change is there, and what was repeated was carried out once.
            assert stored_by(postgres.url, client) == client.confirmed
            assert client.erased
    assert any("DATABASE_UNAVAILABLE" in client.refused for client in clients)
    assert not server.log.events("internal_error")
    assert server.stop() == 0


def test_sigterm_under_load_loses_nothing_that_was_confirmed(start_server: StartServer, database_url: str) -> None:
    server = start_server(database_url=database_url)

    with at_work(server, 4) as clients:
        eventually(lambda: all(has_confirmed(client, 30) for client in clients))
        assert server.stop() == 0, server.log.text

    for client in clients:
        # What was refused was not begun either: a drain lets the calls under way end.
        assert stored_by(database_url, client) == client.confirmed
