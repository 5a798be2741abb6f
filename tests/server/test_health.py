"""Health: what Check, List and Watch say, when the service is busy, too."""

import threading
import time
from collections.abc import Callable, Iterator
from queue import Queue
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from memory_service.health import Health
from memory_service.v1 import memory_pb2 as pb
from tests.server.conftest import Listener, StartListener, servicer_of

SERVICE = "memory_service.v1.MemoryService"


def check(channel: grpc.Channel, service: str = "") -> str:
    response = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
    return name_of(response)


def name_of(response: Any) -> str:
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))


class Watch:
    """An open Health.Watch, its replies read as they come."""

    def __init__(self, channel: grpc.Channel, service: str) -> None:
        self._call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service))
        self._replies: Queue[str] = Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def next(self) -> str:
        """Returns the next status, or the code that the stream ended with."""
        return self._replies.get(timeout=5)

    def is_quiet(self) -> bool:
        """Returns whether nothing comes for a while."""
        time.sleep(0.3)
        return self._replies.empty()

    def cancel(self) -> None:
        """Leaves."""
        self._call.cancel()

    def _read(self) -> None:
        try:
            for response in self._call:
                self._replies.put(name_of(response))
        except grpc.RpcError:
            pass
        self._replies.put(self._call.code().name)


STEPS: list[tuple[str, Callable[[Health], None], str]] = [
    ("at first", lambda _: None, "NOT_SERVING"),
    ("up", lambda health: health.report(serving=True), "SERVING"),
    ("down", lambda health: health.report(serving=False), "NOT_SERVING"),
    ("up again", lambda health: health.report(serving=True), "SERVING"),
    ("draining", lambda health: health.drain(), "NOT_SERVING"),
    ("draining, database up", lambda health: health.report(serving=True), "NOT_SERVING"),
]


def test_the_status_follows_the_reports_until_it_drains(start_listener: StartListener) -> None:
    listener = start_listener()
    for step, change, expected in STEPS:
        change(listener.server.health)
        for channel in (listener.channel, listener.ops_channel()):
            found = {service: check(channel, service) for service in ("", SERVICE, "liveness")}
            assert found == {"": expected, SERVICE: expected, "liveness": "SERVING"}, step


def test_an_unknown_service_is_not_found(start_listener: StartListener) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        check(start_listener().channel, "other.Service")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_list_names_all_services(start_listener: StartListener) -> None:
    listener = start_listener()
    listener.server.health.report(serving=True)
    response = health_pb2_grpc.HealthStub(listener.channel).List(health_pb2.HealthListRequest(), timeout=5)
    assert {name: name_of(status) for name, status in response.statuses.items()} == {
        "": "SERVING",
        SERVICE: "SERVING",
        "liveness": "SERVING",
    }


@pytest.mark.parametrize("service", ["", SERVICE])
def test_a_watch_hears_each_change_once(start_listener: StartListener, service: str) -> None:
    listener = start_listener()
    watch = Watch(listener.channel, service)
    assert watch.next() == "NOT_SERVING"
    listener.server.health.report(serving=True)
    assert watch.next() == "SERVING"
    listener.server.health.report(serving=True)
    assert watch.is_quiet()
    listener.server.health.drain()
    assert watch.next() == "NOT_SERVING"
    listener.server.health.end_watches()
    assert watch.next() == "OK"


def test_a_watch_of_an_unknown_service_stays_open(start_listener: StartListener) -> None:
    listener = start_listener()
    watch = Watch(listener.channel, "other.Service")
    assert watch.next() == "SERVICE_UNKNOWN"
    listener.server.health.report(serving=True)
    assert watch.is_quiet()


def test_a_watch_that_comes_too_late_hears_the_status_and_ends(start_listener: StartListener) -> None:
    listener = start_listener()
    listener.server.health.end_watches()
    watch = Watch(listener.ops_channel(), "")
    assert [watch.next(), watch.next()] == ["NOT_SERVING", "OK"]


def test_watches_that_left_are_forgotten(start_listener: StartListener) -> None:
    listener = start_listener()
    for _ in range(3):
        watch = Watch(listener.channel, "")
        watch.next()
        watch.cancel()
        assert watch.next() == "CANCELLED"
    listener.server.health.report(serving=True)
    assert check(listener.channel) == "SERVING"


def test_many_watches_need_no_threads(start_listener: StartListener) -> None:
    listener = start_listener(threads=1, max_concurrent_calls=2)
    watches = []
    for _ in range(20):
        watches.append(Watch(listener.channel, ""))
        assert watches[-1].next() == "NOT_SERVING"
    listener.server.health.report(serving=True)
    assert {watch.next() for watch in watches} == {"SERVING"}


class LastingCall:
    """As much of a call's context as watch needs: a call that nobody ends."""

    def add_callback(self, _callback: Callable[[], None]) -> bool:
        """Returns that the call is under way."""
        return True


def test_readers_that_are_stuck_hold_up_nobody_else() -> None:
    health = Health([])
    stuck = threading.Event()
    heard: Queue[str] = Queue()
    request, call = health_pb2.HealthCheckRequest(), cast("grpc.ServicerContext", LastingCall())

    def hear(reply: Any) -> None:
        if reply is not None:
            heard.put(name_of(reply))

    def hang(_reply: Any) -> None:
        stuck.wait(10)

    try:
        for _ in range(3):
            health.watch(request, call, hang)
        health.watch(request, call, hear)
        assert heard.get(timeout=5) == "NOT_SERVING"
        for serving, expected in ((True, "SERVING"), (False, "NOT_SERVING"), (True, "SERVING")):
            health.report(serving=serving)
            assert name_of(health.check(request, call)) == expected
            assert heard.get(timeout=5) == expected
    finally:
        stuck.set()
        health.close()


@pytest.fixture
def busy(start_listener: StartListener) -> Iterator[Listener]:
    """A service of one thread, which is taken, as is the one place in the queue."""
    release = threading.Event()
    working = threading.Event()

    def block(_request: pb.GetStatsRequest, _context: grpc.ServicerContext) -> pb.GetStatsResponse:
        working.set()
        release.wait(30)
        return pb.GetStatsResponse()

    listener = start_listener(
        servicer_of(GetStats=block), threads=1, queue_calls=1, queue_timeout_s=30, max_concurrent_calls=2
    )
    listener.server.health.report(serving=True)
    futures = [listener.stub.GetStats.future(pb.GetStatsRequest()) for _ in range(2)]
    assert working.wait(5)
    yield listener
    release.set()
    for future in futures:
        future.result(timeout=5)


def refused(listener: Listener) -> bool:
    """Returns whether the service refuses another call for having too many."""
    try:
        listener.stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=0.2)
    except grpc.RpcError as error:
        return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    return False


def test_health_answers_while_all_threads_are_busy(start_listener: StartListener) -> None:
    release = threading.Event()

    def block(_request: pb.GetStatsRequest, _context: grpc.ServicerContext) -> pb.GetStatsResponse:
        release.wait(30)
        return pb.GetStatsResponse()

    listener = start_listener(servicer_of(GetStats=block), threads=1)
    futures = [listener.stub.GetStats.future(pb.GetStatsRequest()) for _ in range(4)]
    started_at = time.monotonic()
    assert check(listener.channel, "liveness") == "SERVING"
    assert time.monotonic() - started_at < 1
    release.set()
    for future in futures:
        future.result(timeout=5)


def test_the_ops_address_answers_when_the_service_refuses_calls(busy: Listener) -> None:
    deadline_at = time.monotonic() + 5
    while not refused(busy):
        assert time.monotonic() < deadline_at, "the service accepts a third call"
    assert check(busy.ops_channel()) == "SERVING"


def test_the_ops_address_can_be_switched_off(start_listener: StartListener) -> None:
    listener = start_listener(ops_listen="off")
    assert listener.addresses.ops_listen is None
    assert check(listener.channel) == "NOT_SERVING"


def test_the_ops_address_serves_nothing_but_health(start_listener: StartListener) -> None:
    call: Any = start_listener().ops_channel().unary_unary(f"/{SERVICE}/GetServerInfo", bytes, bytes)
    with pytest.raises(grpc.RpcError) as caught:
        call(b"", timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
