"""Draining: calls under way end well, new ones are refused, and idle streams hold nothing up."""

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from memory_service.failures import CUT_OFF
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceServicer
from tests.fix_database import NewDatabase
from tests.fix_server import ServerProcess, StartServer
from tests.server.conftest import Listener, StartListener, servicer_of


class Blocking:
    """A GetStats that lasts until it is released."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.release = threading.Event()

    def servicer(self) -> MemoryServiceServicer:
        """Returns the servicer."""
        return servicer_of(GetStats=self._block)

    def _block(self, _request: pb.GetStatsRequest, _context: grpc.ServicerContext) -> pb.GetStatsResponse:
        self.started.set()
        self.release.wait(30)
        return pb.GetStatsResponse(live_count=7)


@pytest.fixture
def blocking() -> Iterator[Blocking]:
    """A GetStats that lasts; released in the end."""
    blocking = Blocking()
    yield blocking
    blocking.release.set()


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    """Threads for what the test waits for."""
    with ThreadPoolExecutor(8) as executor:
        yield executor


def drain_in(background: ThreadPoolExecutor, listener: Listener) -> "Future[tuple[bool, float]]":
    """Drains; the future holds whether all calls ended, and after how many seconds."""

    def drain() -> tuple[bool, float]:
        started_at = time.monotonic()
        return listener.server.drain(), time.monotonic() - started_at

    return background.submit(drain)


def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code()


def open_idle_streams(channel: grpc.Channel) -> tuple[Any, Any]:
    """Returns a Watch and a reflection stream, both established and then silent."""
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    next(watch)
    silence = threading.Event()

    def requests() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        silence.wait(60)

    stream = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(requests())
    next(stream)
    stream.add_callback(silence.set)
    return watch, stream


def test_without_calls_it_is_over_at_once(start_listener: StartListener) -> None:
    listener = start_listener(drain_grace_s=20.0)
    started_at = time.monotonic()
    assert listener.server.drain()
    assert time.monotonic() - started_at < 1


def test_open_streams_do_not_hold_it_up(start_listener: StartListener, background: ThreadPoolExecutor) -> None:
    listener = start_listener(drain_grace_s=20.0)
    streams = open_idle_streams(listener.channel)

    drained, seconds = drain_in(background, listener).result(timeout=10)

    assert drained
    assert seconds < 1
    for stream in streams:
        stream.cancel()


def test_a_call_under_way_gets_its_reply(
    start_listener: StartListener, blocking: Blocking, background: ThreadPoolExecutor
) -> None:
    listener = start_listener(blocking.servicer(), drain_grace_s=20.0)
    call = listener.stub.GetStats.future(pb.GetStatsRequest())
    assert blocking.started.wait(5)
    draining = drain_in(background, listener)
    time.sleep(0.5)
    assert not draining.done()

    blocking.release.set()

    assert call.result(timeout=5).live_count == 7
    drained, seconds = draining.result(timeout=5)
    assert drained
    assert seconds < 2


def test_calls_that_wait_for_a_thread_get_their_replies(
    start_listener: StartListener, blocking: Blocking, background: ThreadPoolExecutor
) -> None:
    listener = start_listener(blocking.servicer(), threads=1, queue_calls=9, drain_grace_s=20.0)
    calls = [listener.stub.GetStats.future(pb.GetStatsRequest()) for _ in range(10)]
    assert blocking.started.wait(5)
    time.sleep(0.2)
    draining = drain_in(background, listener)
    time.sleep(0.2)
    blocking.release.set()
    assert [call.result(timeout=5).live_count for call in calls] == [7] * 10
    assert draining.result(timeout=5)[0]


def test_new_calls_are_refused_and_the_ops_address_says_why(
    start_listener: StartListener, blocking: Blocking, background: ThreadPoolExecutor
) -> None:
    listener = start_listener(blocking.servicer(), drain_grace_s=20.0)
    listener.server.health.report(serving=True)
    call = listener.stub.GetStats.future(pb.GetStatsRequest())
    assert blocking.started.wait(5)
    draining = drain_in(background, listener)
    time.sleep(0.3)

    assert code_of(lambda: listener.stub.GetStats(pb.GetStatsRequest(), timeout=5)) is grpc.StatusCode.UNAVAILABLE
    response = health_pb2_grpc.HealthStub(listener.ops_channel()).Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert response.status == health_pb2.HealthCheckResponse.NOT_SERVING

    blocking.release.set()
    call.result(timeout=5)
    assert draining.result(timeout=5)[0]


def test_the_delay_leaves_time_for_balancers(start_listener: StartListener, background: ThreadPoolExecutor) -> None:
    listener = start_listener(servicer_of(GetStats=lambda _request, _context: pb.GetStatsResponse()), drain_delay_s=0.8)
    listener.server.health.report(serving=True)
    draining = drain_in(background, listener)
    time.sleep(0.2)
    response = health_pb2_grpc.HealthStub(listener.channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert response.status == health_pb2.HealthCheckResponse.NOT_SERVING
    listener.stub.GetStats(pb.GetStatsRequest(), timeout=5)
    assert draining.result(timeout=5)[1] >= 0.8


def test_a_call_that_does_not_end_is_cut_off_and_owned_up_to(
    start_listener: StartListener, blocking: Blocking, background: ThreadPoolExecutor
) -> None:
    listener = start_listener(blocking.servicer(), drain_grace_s=0.3)
    call = listener.stub.GetStats.future(pb.GetStatsRequest())
    assert blocking.started.wait(5)

    drained, seconds = drain_in(background, listener).result(timeout=10)

    assert not drained
    assert 0.3 <= seconds < 4
    assert code_of(lambda: call.result(timeout=5)) in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


@pytest.mark.parametrize("drain_grace_s", [0.0, 1.0])
def test_an_idle_server_drains_cleanly_whatever_the_grace(start_listener: StartListener, drain_grace_s: float) -> None:
    assert start_listener(drain_grace_s=drain_grace_s).server.drain()


def insert(server: ServerProcess, number: int) -> str:
    """Inserts a memory and returns its id."""
    memory = pb.NewMemory(content=f"memory {number}", embedding=pb.Vector(floats=pb.FloatArray(values=[1.0] * 8)))
    response = server.stub.InsertVector(pb.InsertVectorRequest(user_id="drained", memory=memory), timeout=10)
    return str(response.memory.id)


@pytest.mark.slow
def test_sigterm_under_load_loses_no_acknowledged_call(
    start_server: StartServer, new_database: NewDatabase, background: ThreadPoolExecutor
) -> None:
    url = new_database()
    server = start_server(database_url=url)
    watch, _ = open_idle_streams(server.channel)
    acknowledged: list[str] = []
    codes: set[grpc.StatusCode] = set()

    def keep_inserting() -> None:
        number = 0
        while True:
            number += 1
            try:
                acknowledged.append(insert(server, number))
            except grpc.RpcError as error:
                codes.add(error.code())
                return

    inserting = [background.submit(keep_inserting) for _ in range(6)]
    deadline_at = time.monotonic() + 20
    while len(acknowledged) < 100:
        assert time.monotonic() < deadline_at, server.log.text
        time.sleep(0.01)

    started_at = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    status = server.process.wait(20)
    seconds = time.monotonic() - started_at
    for future in inserting:
        future.result(timeout=10)

    assert status == 0, server.log.text
    assert seconds < 4, server.log.text
    # Refused while it drained, never broken off: what was accepted has been answered.
    assert codes == {grpc.StatusCode.UNAVAILABLE}
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT id::text FROM memory_entries WHERE user_id = 'drained'").fetchall()
    assert {row[0] for row in rows} == set(acknowledged)
    watch.cancel()


@pytest.mark.long
def test_a_statement_that_hangs_is_cut_off_with_its_call(start_server: StartServer, new_database: NewDatabase) -> None:
    url = new_database()
    server = start_server(database_url=url, drain_grace_s=0.5)
    with psycopg.connect(url) as connection:
        connection.execute("LOCK TABLE memory_entries")
        call = server.stub.GetStats.future(pb.GetStatsRequest(user_id="u"))
        wait_for_waiting_statement(url)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(15) == CUT_OFF
    assert code_of(lambda: call.result(timeout=5)) in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    assert server.log.wait_for("calls_cut_off")["calls"] == 1
    assert not server.log.events("calls_do_not_end")


WAITING = """
SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


def wait_for_waiting_statement(url: str) -> None:
    deadline_at = time.monotonic() + 10
    with psycopg.connect(url, autocommit=True) as connection:
        while not connection.execute(WAITING).rowcount:
            assert time.monotonic() < deadline_at
            time.sleep(0.02)


def test_a_second_signal_ends_the_process_at_once(start_server: StartServer) -> None:
    server = start_server(drain_delay_s=60)
    server.process.send_signal(signal.SIGTERM)
    server.log.wait_for("stopping")
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(5) == 128 + signal.SIGINT


def test_sigint_drains_too(start_server: StartServer) -> None:
    server = start_server()
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(10) == 0
    assert server.log.wait_for("stopped")["drained"] is True
