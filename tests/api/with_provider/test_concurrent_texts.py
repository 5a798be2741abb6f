"""Callers that want texts embedded at the same time: few requests to the provider, and to each what is theirs."""

import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import grpc
import pytest

from memory_service.v1 import memory_pb2 as pb
from tests.api.calls import failure, send
from tests.api.conftest import ReadContents
from tests.api.messages import stats
from tests.api.waiting import eventually
from tests.api.with_provider.conftest import asking
from tests.api.with_provider.test_embedding_cache import assert_embeds
from tests.embedding.provider import TOO_LONG, Json, Provider, Status, Tamper
from tests.fix_database import Databases
from tests.fix_server import ServerProcess, running_servers

CONCURRENT_REQUESTS = 2
LIMIT_S = 30.0


@pytest.fixture(scope="module")
def server(databases: Databases, module_database_url: str, module_provider: Provider) -> Iterator[ServerProcess]:
    """A service that has two requests to the provider under way, tells its metrics, and tries again soon."""
    with running_servers(databases) as start:
        yield start(
            **asking(module_provider, module_database_url),
            embedding_concurrent_requests=CONCURRENT_REQUESTS,
            embedding_breaker_failures=5,
            embedding_breaker_cool_down_s=1,
            metrics_listen="127.0.0.1:0",
            write_threads=20,
            pool_max_size=16,  # twenty callers at once are not more than it lets wait
        )


class Hold:
    """A fault of the provider: answers wait until `release`."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def __call__(self, body: Json) -> Json:
        """Returns the right answer once it may go."""
        self.released.wait(LIMIT_S)
        return body


@pytest.fixture
def hold(provider: Provider) -> Iterator[Hold]:
    """Holds all answers of the provider."""
    hold = Hold()
    provider.fail(Tamper(hold), always=True)
    yield hold
    hold.released.set()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(20) as threads:
        yield threads


def metric(server: ServerProcess, name: str) -> float:
    """Returns the value of the one series of that name and labels."""
    address = server.log.wait_for("serving_metrics")["listen"]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    [value] = [line.removeprefix(f"{name} ") for line in lines if line.startswith(f"{name} ")]
    return float(value)


def insert(server: ServerProcess, user_id: str, text: str) -> pb.Memory:
    request = pb.InsertVectorRequest(user_id=user_id, memory=pb.NewMemory(content=text))
    memory: pb.Memory = send(server.stub, request).memory
    return memory


def test_concurrent_callers_of_a_text_make_one_request(
    server: ServerProcess, user_id: str, text: str, *, provider: Provider, hold: Hold, threads: ThreadPoolExecutor
) -> None:
    before = metric(server, "memory_embedding_shared_texts_total")
    memories = [threads.submit(insert, server, user_id, text) for _ in range(20)]
    eventually(lambda: metric(server, "memory_embedding_shared_texts_total") == before + 19)
    hold.released.set()

    for memory in memories:
        assert_embeds(server.stub, memory.result(LIMIT_S), text)
    assert [request.texts for request in provider.requests] == [[text]]


def start_together(
    server: ServerProcess, user_id: str, texts: list[str], *, provider: Provider, threads: ThreadPoolExecutor
) -> list[Future[pb.Memory]]:
    """Inserts the texts, and returns once as many as may be are asked for and all others wait."""
    memories = [threads.submit(insert, server, user_id, text) for text in texts[:CONCURRENT_REQUESTS]]
    eventually(lambda: len(provider.requests) == CONCURRENT_REQUESTS)
    memories += [threads.submit(insert, server, user_id, text) for text in texts[CONCURRENT_REQUESTS:]]
    waiting = len(texts) - CONCURRENT_REQUESTS
    eventually(lambda: metric(server, "memory_embedding_waiting_texts") == waiting)
    return memories


def test_different_texts_go_in_few_requests(
    server: ServerProcess, user_id: str, text: str, *, provider: Provider, hold: Hold, threads: ThreadPoolExecutor
) -> None:
    texts = [f"{text} {number}" for number in range(20)]
    memories = start_together(server, user_id, texts, provider=provider, threads=threads)
    hold.released.set()

    for memory, content in zip(memories, texts, strict=True):
        assert memory.result(LIMIT_S).content == content
        assert_embeds(server.stub, memory.result(), content)
    assert [len(request.texts) for request in provider.requests] == [1, 1, 18]


def test_a_refused_text_spoils_nothing_for_others(
    server: ServerProcess, user_id: str, text: str, *, provider: Provider, hold: Hold, threads: ThreadPoolExecutor
) -> None:
    provider.names_index = True
    texts = [f"{text} {number}" for number in range(10)]
    memories = start_together(server, user_id, texts, provider=provider, threads=threads)
    bad = threads.submit(failure, lambda: insert(server, user_id, f"{text} {TOO_LONG}"))
    eventually(lambda: metric(server, "memory_embedding_waiting_texts") == 9)
    hold.released.set()

    assert (bad.result(LIMIT_S).code, bad.result().reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "TEXT_NOT_EMBEDDABLE",
    )
    for memory, content in zip(memories, texts, strict=True):
        assert_embeds(server.stub, memory.result(LIMIT_S), content)
    assert stats(server.stub, user_id).live_count == 10
    assert [len(request.texts) for request in provider.requests] == [1, 1, 9, 8]


def test_the_first_caller_may_leave(
    server: ServerProcess, user_id: str, text: str, *, provider: Provider, hold: Hold, threads: ThreadPoolExecutor
) -> None:
    before = metric(server, "memory_embedding_shared_texts_total")
    request = pb.InsertVectorRequest(user_id=user_id, memory=pb.NewMemory(content=text))
    first = server.stub.InsertVector.future(request)
    eventually(lambda: len(provider.requests) == 1)
    second = threads.submit(insert, server, user_id, text)
    eventually(lambda: metric(server, "memory_embedding_shared_texts_total") == before + 1)
    calls = len(server.log.events("call"))
    first.cancel()
    assert server.log.wait_for("call", count=calls + 1)["code"] == "CANCELLED"
    hold.released.set()

    assert_embeds(server.stub, second.result(LIMIT_S), text)
    assert len(provider.requests) == 1
    assert stats(server.stub, user_id).live_count == 1


def test_a_provider_that_fails_for_a_while_is_left_alone_and_taken_back(
    server: ServerProcess, user_id: str, text: str, *, provider: Provider, contents: ReadContents
) -> None:
    provider.fail(Status(500), always=True)
    before = contents()
    for number in range(5):
        refused = failure(lambda number=number: insert(server, user_id, f"{text} {number}"))  # type: ignore[misc]
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "EMBEDDER_UNAVAILABLE")
    opened = server.log.wait_for("embedding_circuit_opened")
    assert opened["level"] == "warning"
    asked = len(provider.requests)

    refused = failure(lambda: insert(server, user_id, f"{text} 5"))

    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "EMBEDDER_UNAVAILABLE")
    assert refused.retry_after_s is not None
    assert 0 < refused.retry_after_s <= 1.2
    assert len(provider.requests) == asked
    assert metric(server, 'memory_embedding_circuit{state="open"}') == 1
    assert metric(server, "memory_embedding_circuit_refusals_total") >= 1
    assert contents() == before

    provider.recover()
    request = pb.InsertVectorRequest(user_id=user_id, memory=pb.NewMemory(content=text))

    def works_again() -> bool:
        try:
            return bool(server.stub.InsertVector(request, timeout=LIMIT_S).memory.id)
        except grpc.RpcError:
            return False

    eventually(works_again)
    server.log.wait_for("embedding_circuit_closed")
    assert metric(server, 'memory_embedding_circuit{state="closed"}') == 1
    assert stats(server.stub, user_id).live_count == 1
