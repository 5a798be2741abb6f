"""The service behind a real PgBouncer in transaction mode, with fewer sessions than it has connections."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any
from uuid import uuid4

import grpc
import psycopg
import pytest

from db.ann_session import AnnSession
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import failure
from tests.api.load import Client
from tests.api.messages import axis, get, insert, insert_all, new_memory, stats
from tests.api.waiting import eventually
from tests.embedding.provider import Provider
from tests.fix_database import Databases
from tests.fix_server import ServerProcess, StartServer, running_servers, start_process
from tests.server import pgbouncer
from tests.server.pgbouncer import KNOWS_PREPARED, PgBouncer
from tests.server.reembedding_process import TARGET, reembed, settings_for
from tests.storage.concurrency import Activity

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        pgbouncer.version() is None, reason="this machine has no pgbouncer (Debian's package pgbouncer)"
    ),
]

SESSIONS = 3
CONNECTIONS = 8
LOAD_S = 4.0


@pytest.fixture(
    scope="module",
    params=[
        0,
        pytest.param(
            200,
            marks=pytest.mark.skipif(
                (pgbouncer.version() or KNOWS_PREPARED) < KNOWS_PREPARED,
                reason="this PgBouncer knows of no prepared statements",
            ),
        ),
    ],
    ids=["plain", "prepared"],
)
def pooler(request: pytest.FixtureRequest, module_database_url: str) -> Iterator[PgBouncer]:
    """PgBouncer, without and with prepared statements."""
    with pgbouncer.pgbouncer(module_database_url, sessions=SESSIONS, max_prepared_statements=request.param) as running:
        yield running


@pytest.fixture(scope="module")
def pooled_settings(pooler: PgBouncer) -> Callable[[str], dict[str, Any]]:
    """A function returning the settings of a service whose way to the database at a URL is through the pooler."""

    def settings(url: str) -> dict[str, Any]:
        prepared = {"prepared_statements": "true"} if pooler.knows_prepared else {}
        return {"database_url": pooler.url(url), "direct_database_url": url, "pool_max_size": CONNECTIONS, **prepared}

    return settings


@pytest.fixture(scope="module")
def server(
    databases: Databases, module_database_url: str, pooled_settings: Callable[[str], dict[str, Any]]
) -> Iterator[ServerProcess]:
    """A service behind the pooler, shared by the tests of this module."""
    with running_servers(databases) as start:
        yield start(**pooled_settings(module_database_url))


@pytest.fixture
def user() -> str:
    """A user of this test alone."""
    return f"user-{uuid4().hex}"


@pytest.fixture
def activity(module_database_url: str) -> Iterator[Activity]:
    """What the sessions of the database are doing."""
    with psycopg.connect(module_database_url, autocommit=True) as observer:
        yield Activity(observer)


# What the service sets, and what a session has of it by itself.
LEFT = b"""
SELECT current_role = session_user, coalesce(current_setting('memory.user_id', true), ''),
    current_setting('statement_timeout'), current_setting('lock_timeout'),
    current_setting('idle_in_transaction_session_timeout'), current_setting('enable_seqscan'), current_setting('jit'),
    coalesce(current_setting('hnsw.iterative_scan', true), 'off'),
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())
"""


def test_the_pooler_is_found(server: ServerProcess, pooler: PgBouncer) -> None:
    found = server.log.wait_for("connection_pooler_found")
    assert found["prepared_statements"] is pooler.knows_prepared


def test_all_is_done_as_without_it(server: ServerProcess, user: str) -> None:
    stub = server.stub
    first = insert(stub, user, "harbour", embedding=axis(0), conversation_id="c")
    ids = insert_all(stub, user, [new_memory(f"ship {number}", embedding=axis(1)) for number in range(20)])
    found = stub.SearchSimilar(pb.SearchSimilarRequest(user_id=user, embedding=axis(0), limit=1), timeout=10)
    assert [result.memory.id for result in found.results] == [first.id]
    hybrid = stub.SearchSimilar(pb.SearchSimilarRequest(user_id=user, text="harbour", limit=1), timeout=10)
    assert [result.memory.id for result in hybrid.results] == [first.id]
    changed = stub.UpdateVector(
        pb.UpdateVectorRequest(user_id=user, id=first.id, memory=pb.Memory(summary="frozen")), timeout=10
    )
    assert changed.memory.summary == get(stub, user, first.id).summary == "frozen"
    recent = stub.GetRecent(pb.GetRecentRequest(user_id=user, page_size=50), timeout=10)
    assert {memory.id for memory in recent.memories} == {first.id, *ids}
    stub.DeleteVector(pb.DeleteVectorRequest(user_id=user, id=first.id), timeout=10)
    assert stats(stub, user).live_count == 20
    stub.RestoreVector(pb.RestoreVectorRequest(user_id=user, id=first.id), timeout=10)
    assert stats(stub, user).live_count == 21


class Onlooker:
    """Reads for one user, and leaves now and then; keeps what it should not have seen."""

    def __init__(self, stub: MemoryServiceStub, user_id: str, number: int) -> None:
        self._stub = stub
        self._user_id = user_id
        self._number = number
        self._moments = random.Random(number)  # noqa: S311 - no secrets
        self.own = insert_all(
            stub, user_id, [new_memory(f"harbour {user_id} {n}", embedding=axis(n % 8)) for n in range(30)]
        )
        self.others: list[str] = []
        self.strangers: list[object] = []
        self.answered = self.cancelled = 0

    def run(self, stop: threading.Event) -> None:
        """Reads until told to stop."""
        while not stop.is_set():
            for read in (self._search, self._words, self._recent, self._of_another):
                read()

    def _search(self) -> None:
        request = pb.SearchSimilarRequest(user_id=self._user_id, embedding=axis(self._number % 8), limit=50)
        future = self._stub.SearchSimilar.future(request, timeout=10)
        if self._moments.random() < 0.3:
            time.sleep(self._moments.uniform(0, 0.004))
            future.cancel()
        try:
            self._look(result.memory for result in future.result().results)
        except grpc.FutureCancelledError:
            self.cancelled += 1

    def _words(self) -> None:
        # In every user's memories.
        request = pb.SearchSimilarRequest(user_id=self._user_id, text="harbour", limit=50)
        self._look(result.memory for result in self._stub.SearchSimilar(request, timeout=10).results)

    def _recent(self) -> None:
        request = pb.GetRecentRequest(user_id=self._user_id, page_size=50)
        self._look(self._stub.GetRecent(request, timeout=10).memories)

    def _of_another(self) -> None:
        request = pb.GetVectorRequest(user_id=self._user_id, id=self._moments.choice(self.others))
        if failure(lambda: self._stub.GetVector(request, timeout=10)).reason != "MEMORY_NOT_FOUND":
            self.strangers.append(request)

    def _look(self, memories: Any) -> None:
        found = list(memories)
        self.answered += 1
        self.strangers += [memory for memory in found if memory.user_id != self._user_id]
        if {memory.id for memory in found} != set(self.own):
            self.strangers.append(found)


@contextmanager
def working(runs: list[Callable[[threading.Event], None]]) -> Iterator[None]:
    """Runs all meanwhile; fails when one of them has."""
    stop = threading.Event()
    with ThreadPoolExecutor(len(runs)) as threads:
        futures = [threads.submit(run, stop) for run in runs]
        try:
            yield
        finally:
            stop.set()
    for future in futures:
        future.result()


def test_nobody_sees_another_s_rows_nor_leaves_anything_in_a_session(
    server: ServerProcess, pooler: PgBouncer, module_database_url: str, user: str
) -> None:
    onlookers = [Onlooker(server.stub, f"{user} {number}", number) for number in range(6)]
    for one in onlookers:
        one.others = [memory_id for other in onlookers if other is not one for memory_id in other.own]
    writers = [Client(server.stub) for _ in range(4)]
    found: list[Any] = []
    with psycopg.connect(module_database_url) as connection:
        untouched = connection.execute(LEFT).fetchone()
    with working([*(one.run for one in onlookers), *(one.run for one in writers)]):
        ends_at = time.monotonic() + LOAD_S
        while time.monotonic() < ends_at:
            found += pooler.each_session(module_database_url, LEFT)
            time.sleep(0.05)
    assert [one.strangers for one in onlookers] == [[]] * len(onlookers)
    assert sum(one.answered for one in onlookers) > 100
    assert sum(one.cancelled for one in onlookers) > 10
    assert all(client.confirmed for client in writers)
    found += pooler.each_session(module_database_url, LEFT)
    assert len(found) > 5 * SESSIONS
    assert set(found) == {untouched}
    assert not server.log.events("internal_error")
    assert not server.log.events("database_connection_lost")


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Lets everything that reads or writes memories wait."""
    with psycopg.connect(url) as holder:
        holder.execute("LOCK TABLE memory_entries IN ACCESS EXCLUSIVE MODE")
        yield


def test_a_cancelled_call_cancels_its_query(
    server: ServerProcess, module_database_url: str, activity: Activity, user: str
) -> None:
    insert(server.stub, user)
    search = pb.SearchSimilarRequest(user_id=user, embedding=axis(0))
    with locked(module_database_url):
        calls = [server.stub.SearchSimilar.future(search, timeout=30) for _ in range(SESSIONS)]
        # Not all: what the service does by itself may wait in the other sessions.
        eventually(lambda: activity.blocked("search.table") + activity.blocked("search.candidates") > 0)
        cancelled_at = time.monotonic()
        for call in calls:
            call.cancel()
        eventually(lambda: activity.blocked("search.table") + activity.blocked("search.candidates") == 0, timeout_s=2)
        assert time.monotonic() - cancelled_at < 1
    assert len(server.stub.SearchSimilar(search, timeout=5).results) == 1


def test_a_deadline_ends_its_query(
    server: ServerProcess, module_database_url: str, activity: Activity, user: str
) -> None:
    insert(server.stub, user)
    request = pb.SearchSimilarRequest(user_id=user, embedding=axis(0))
    with locked(module_database_url):
        started_at = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            server.stub.SearchSimilar(request, timeout=0.5)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        eventually(lambda: activity.blocked("search.table") + activity.blocked("search.candidates") == 0, timeout_s=2)
        assert 0.4 < time.monotonic() - started_at < 1.5
    assert len(server.stub.SearchSimilar(request, timeout=5).results) == 1


def test_the_statement_timeout_holds(
    start_server: StartServer,
    pooled_settings: Callable[[str], dict[str, Any]],
    module_database_url: str,
    user: str,
) -> None:
    impatient = start_server(**pooled_settings(module_database_url), statement_timeout_s=0.5)
    insert(impatient.stub, user)
    with locked(module_database_url):
        started_at = time.monotonic()
        request = pb.SearchSimilarRequest(user_id=user, embedding=axis(0))
        failure(lambda: impatient.stub.SearchSimilar(request, timeout=20))
        assert time.monotonic() - started_at < 5


def test_deadlines_hold_while_others_have_all_sessions(
    server: ServerProcess, pooler: PgBouncer, module_database_url: str, user: str
) -> None:
    insert(server.stub, user)
    request = pb.SearchSimilarRequest(user_id=user, embedding=axis(0))
    with ExitStack() as held:
        for _ in range(SESSIONS):
            client = held.enter_context(psycopg.connect(pooler.url(module_database_url), prepare_threshold=None))
            client.execute("SELECT 1")
        for _ in range(2 * CONNECTIONS):
            started_at = time.monotonic()
            with pytest.raises(grpc.RpcError):
                server.stub.SearchSimilar(request, timeout=0.2)
            assert time.monotonic() - started_at < 1
    eventually(lambda: _answers(server, request), timeout_s=5)
    for _ in range(2 * CONNECTIONS):
        assert len(server.stub.SearchSimilar(request, timeout=5).results) == 1


def _answers(server: ServerProcess, request: pb.SearchSimilarRequest) -> bool:
    try:
        return len(server.stub.SearchSimilar(request, timeout=1).results) == 1
    except grpc.RpcError:
        return False


def test_migrations_and_indexes_take_the_direct_way(pooler: PgBouncer, module_database_url: str) -> None:
    pooled = {"database_url": pooler.url(module_database_url), "embedding_model": "test-model"}
    process = start_process("migrate", **pooled, embedder="none", embedding_dimensions=8)
    _, said = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "MEMORY_DIRECT_DATABASE_URL" in said
    process = start_process(
        "migrate", **pooled, embedder="none", embedding_dimensions=8, direct_database_url=module_database_url
    )
    process.communicate(timeout=30)
    assert process.returncode == 0
    with AnnSession(module_database_url) as session:
        assert not session.closed


def test_a_move_to_another_model_is_followed(
    start_server: StartServer,
    pooled_settings: Callable[[str], dict[str, Any]],
    database_url: str,
) -> None:
    with Provider() as provider:
        settings = settings_for(provider, database_url)
        server = start_server(**{**settings, **pooled_settings(database_url)})
        stored = 0

        def write_and_search(stop: threading.Event) -> None:
            nonlocal stored
            while not stop.is_set():
                request = pb.InsertVectorRequest(user_id="ada", memory=pb.NewMemory(content=f"ship {stored}"))
                server.stub.InsertVector(request, timeout=30)
                stored += 1
                search = pb.SearchSimilarRequest(user_id="ada", text="ship", mode=pb.SEARCH_MODE_DENSE, limit=100)
                models = {
                    result.memory.embedding_model for result in server.stub.SearchSimilar(search, timeout=30).results
                }
                assert len(models) <= 1, "two models are never mixed"

        with working([write_and_search]):
            eventually(lambda: stored > 10, timeout_s=30)
            status, said = reembed(settings, batch=16)
            assert status == 0, said
            before = stored
            eventually(lambda: stored > before + 10, timeout_s=30)
        info = server.stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=10)
        assert (info.embedding_model, info.embedding_dimensions) == (TARGET.model, TARGET.dimensions)
        assert stats(server.stub, "ada").live_count == stored
        assert not server.log.events("internal_error")
