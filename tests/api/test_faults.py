"""Calls that end early, and more calls than connections: no query keeps running, and the pool keeps working."""

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import psycopg
import pytest

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import Failure, code_of, failure, failure_of, send
from tests.api.conftest import ReadContents
from tests.api.messages import axis, get, insert, new_memory, stats
from tests.api.waiting import eventually
from tests.fix_server import ServerProcess, StartServer

ACTIVE = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND state <> 'idle' AND pid NOT IN (pg_backend_pid(), %(holder)s)
    -- Counting a user is the server's own errand, whatever becomes of the call.
    AND query NOT LIKE '/* user_sizes.%%'
"""
CONNECTED = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


@contextmanager
def memories_locked(database_url: str) -> Iterator[Callable[[], int]]:
    """Keeps every statement on memories waiting; yields a function counting those that do."""
    with psycopg.connect(database_url) as holder, psycopg.connect(database_url, autocommit=True) as observer:
        holder.execute("LOCK TABLE memory_entries IN ACCESS EXCLUSIVE MODE")
        parameters = {"holder": holder.info.backend_pid}

        def waiting() -> int:
            row = observer.execute(ACTIVE, parameters).fetchone()
            assert row is not None
            return int(row[0])

        yield waiting
        holder.rollback()


def connections(database_url: str) -> int:
    with psycopg.connect(database_url, autocommit=True) as observer:
        row = observer.execute(CONNECTED).fetchone()
    assert row is not None
    return int(row[0])


MakeRequest = Callable[[pb.Memory], Any]

# Without accesses to record: writing those waits for a locked table, too, whatever became of the calls.
REQUESTS: dict[str, MakeRequest] = {
    "InsertVector": lambda live: pb.InsertVectorRequest(user_id=live.user_id, memory=new_memory("new")),
    "BatchInsertVectors": lambda live: pb.BatchInsertVectorsRequest(user_id=live.user_id, memories=[new_memory()] * 9),
    "GetVector": lambda live: pb.GetVectorRequest(user_id=live.user_id, id=live.id, skip_access_recording=True),
    "UpdateVector": lambda live: pb.UpdateVectorRequest(
        user_id=live.user_id, id=live.id, memory=pb.Memory(summary="new")
    ),
    "DeleteVector": lambda live: pb.DeleteVectorRequest(user_id=live.user_id, id=live.id),
    "RestoreVector": lambda live: pb.RestoreVectorRequest(user_id=live.user_id, id=live.id),
    "SearchSimilar": lambda live: pb.SearchSimilarRequest(
        user_id=live.user_id, embedding=axis(0), skip_access_recording=True
    ),
    "GetRecent": lambda live: pb.GetRecentRequest(user_id=live.user_id),
    "GetStats": lambda live: pb.GetStatsRequest(user_id=live.user_id),
}

every_rpc = pytest.mark.parametrize("make_request", REQUESTS.values(), ids=REQUESTS)


@pytest.fixture
def live(stub: MemoryServiceStub, user_id: str) -> pb.Memory:
    """A live memory."""
    return insert(stub, user_id, "content")


@every_rpc
def test_a_deadline_that_passes_stops_the_query(
    stub: MemoryServiceStub,
    live: pb.Memory,
    contents: ReadContents,
    module_database_url: str,
    *,
    make_request: MakeRequest,
) -> None:
    before = contents()

    with memories_locked(module_database_url) as waiting:
        assert code_of(lambda: send(stub, make_request(live), timeout_s=0.3)) is grpc.StatusCode.DEADLINE_EXCEEDED
        eventually(lambda: waiting() == 0, timeout_s=3)

    assert get(stub, live.user_id, live.id) == live
    assert contents() == before


@every_rpc
def test_a_cancelled_call_stops_its_query(
    stub: MemoryServiceStub,
    live: pb.Memory,
    contents: ReadContents,
    module_database_url: str,
    *,
    make_request: MakeRequest,
) -> None:
    before, request = contents(), make_request(live)
    rpc = type(request).__name__.removesuffix("Request")

    with memories_locked(module_database_url) as waiting:
        call = getattr(stub, rpc).future(request)
        eventually(lambda: waiting() == 1)
        call.cancel()
        eventually(lambda: waiting() == 0, timeout_s=3)

    assert get(stub, live.user_id, live.id) == live
    assert contents() == before


def is_served(stub: MemoryServiceStub, live: pb.Memory) -> bool:
    """Tells whether there is room for a call again; until then it is refused as one too many."""
    try:
        return get(stub, live.user_id, live.id) == live
    except grpc.RpcError as error:
        if failure_of(error).reason != "OVERLOADED":
            raise
        return False


def test_a_client_that_cancels_two_hundred_calls_harms_nobody(
    server: ServerProcess, stub: MemoryServiceStub, live: pb.Memory, module_database_url: str
) -> None:
    chance = random.Random(7)  # noqa: S311 - no secret
    kinds = ("SearchSimilar", "GetStats", "GetVector", "InsertVector", "BatchInsertVectors")

    def call_and_cancel(number: int) -> None:
        rpc = kinds[number % len(kinds)]
        call = getattr(stub, rpc).future(REQUESTS[rpc](live))
        time.sleep(chance.uniform(0, 0.004))
        call.cancel()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(call_and_cancel, range(200)))
    eventually(lambda: is_served(stub, live))

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: get(stub, live.user_id, live.id).content, range(100)))
    assert found == ["content"] * 100
    assert connections(module_database_url) <= 8 + 1  # the pool, and what watches the database
    assert not server.log.events("internal_error")
    # At most what was sent: 40 times one memory, 40 times nine.
    assert stats(stub, live.user_id).live_count <= 1 + 40 + 40 * 9


def test_the_server_ends_calls_that_have_no_deadline(
    start_server: StartServer, database_url: str, user_id: str
) -> None:
    stub = start_server(database_url=database_url, statement_timeout_s=0.5).stub
    memory = insert(stub, user_id)

    with memories_locked(database_url) as waiting:
        ended = failure(lambda: stub.GetVector(pb.GetVectorRequest(user_id=user_id, id=memory.id)))
        eventually(lambda: waiting() == 0, timeout_s=3)

    assert (ended.code, ended.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
    assert get(stub, user_id, memory.id) == memory


@pytest.fixture
def narrow(start_server: StartServer, database_url: str) -> ServerProcess:
    """A server with a single database connection."""
    return start_server(database_url=database_url, pool_max_size=1, pool_timeout_s=0.4)


def test_calls_beyond_the_connections_are_told_when_to_come_back(
    narrow: ServerProcess, database_url: str, user_id: str
) -> None:
    memory = insert(narrow.stub, user_id)
    request = pb.GetVectorRequest(user_id=user_id, id=memory.id, skip_access_recording=True)

    with memories_locked(database_url) as waiting:
        holding = narrow.stub.GetVector.future(request, timeout=20)
        eventually(lambda: waiting() == 1)
        refused = failure(lambda: send(narrow.stub, request))

    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
    assert refused.retry_after_s is not None
    assert 0 < refused.retry_after_s < 5
    assert holding.result().memory.id == memory.id
    assert get(narrow.stub, user_id, memory.id).id == memory.id


def test_the_queue_for_connections_is_bounded(narrow: ServerProcess, database_url: str, user_id: str) -> None:
    memory = insert(narrow.stub, user_id)

    def outcome(_: int) -> Failure | grpc.StatusCode:
        try:
            send(narrow.stub, pb.GetVectorRequest(user_id=user_id, id=memory.id))
        except grpc.RpcError as error:
            return failure_of(error)
        return grpc.StatusCode.OK

    with ThreadPoolExecutor(12) as threads, memories_locked(database_url):
        started_at = time.monotonic()
        outcomes = [threads.submit(outcome, number) for number in range(12)]
        eventually(lambda: sum(future.done() for future in outcomes) >= 11, timeout_s=5)
        waited_s = time.monotonic() - started_at
        refused = [future.result() for future in outcomes if future.done()]

    assert {found.reason for found in refused if isinstance(found, Failure)} == {"OVERLOADED"}
    assert waited_s < 2
    assert get(narrow.stub, user_id, memory.id).id == memory.id
