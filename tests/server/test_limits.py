"""Limits of a running service: who is told what, how others get on, and what the metrics show of it."""

import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import cast

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from memory_service import config
from memory_service.access import late_charges
from memory_service.access.admission import Admission
from memory_service.access.rate_limit import RateLimiter
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import failure, failure_of
from tests.api.import_stream import ImportStream
from tests.api.messages import insert, new_memory, stats
from tests.api.waiting import eventually
from tests.embedding.provider import Hang, Provider
from tests.fix_database import Databases
from tests.fix_server import ServerProcess, StartServer, running_servers
from tests.server.conftest import StartListener, servicer_of

QUOTA = 6


@pytest.fixture(scope="module")
def server(databases: Databases, module_database_url: str) -> Iterator[ServerProcess]:
    """A service with low limits for each user; tests have users of their own."""
    with running_servers(databases) as start:
        yield start(
            database_url=module_database_url,
            quota_memories=QUOTA,
            rate_limit_requests_per_user=0.01,
            rate_limit_burst_s=2_000,  # 20 requests
            metrics_listen="127.0.0.1:0",
        )


@pytest.fixture
def stub(server: ServerProcess) -> MemoryServiceStub:
    """The service's stub."""
    return server.stub


@pytest.fixture
def user_id(request: pytest.FixtureRequest) -> str:
    """A user of this test alone."""
    return str(request.node.name)


def code_of(error: grpc.RpcError) -> grpc.StatusCode:
    return cast("grpc.Call", error).code()


def refused_by(server: ServerProcess, limit: str) -> float:
    """Returns what the metric of refusals says."""
    address = server.log.wait_for("serving_metrics")["listen"]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as page:
        lines = page.read().decode().splitlines()
    [line] = [line for line in lines if line.startswith(f'memory_refused_total{{limit="{limit}"}}')]
    return float(line.split()[-1])


def test_a_user_past_its_rate_is_refused_and_others_are_not(
    server: ServerProcess, stub: MemoryServiceStub, user_id: str
) -> None:
    for _ in range(20):
        stats(stub, user_id)
    refused = failure(lambda: stats(stub, user_id))
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    assert refused.facts == {"limit": "MEMORY_RATE_LIMIT_REQUESTS_PER_USER"}
    assert refused.retry_after_s is not None
    assert 90 <= refused.retry_after_s <= 150
    stats(stub, f"{user_id}-other")
    assert refused_by(server, "MEMORY_RATE_LIMIT_REQUESTS_PER_USER") >= 1


def test_chunks_of_an_import_are_requests(stub: MemoryServiceStub, user_id: str) -> None:
    with ImportStream(stub, user_id) as stream:
        for number in range(4):
            stream.store([new_memory(f"{number}")])
    for _ in range(16):
        stats(stub, user_id)
    assert failure(lambda: stats(stub, user_id)).reason == "RATE_LIMITED"


def test_a_chunk_past_the_quota_is_refused_as_a_whole(
    server: ServerProcess, stub: MemoryServiceStub, user_id: str
) -> None:
    with ImportStream(stub, user_id) as stream:
        stream.store([new_memory(f"{number}") for number in range(QUOTA - 1)])
        stream.send([new_memory("fits"), new_memory("does not")])
        refused = stream.failure()
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
    assert refused.facts == {"quota": "MEMORY_QUOTA_MEMORIES", "chunk": "1"}
    assert refused.retry_after_s is None
    assert stats(stub, user_id).live_count == QUOTA - 1
    assert refused_by(server, "MEMORY_QUOTA_MEMORIES") >= 1
    insert(stub, user_id, "the last one")
    assert failure(lambda: insert(stub, user_id, "one more")).reason == "QUOTA_EXCEEDED"


def anew(user_id: str, memory_id: str) -> pb.UpdateVectorRequest:
    """Returns an update that has the stored content embedded anew."""
    return pb.UpdateVectorRequest(user_id=user_id, id=memory_id, update_mask=FieldMask(paths=["embedding"]))


def require_token_limit(call: Callable[[], object]) -> None:
    refused = failure(call)
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    assert refused.facts == {"limit": "MEMORY_RATE_LIMIT_TOKENS_PER_USER"}
    assert refused.retry_after_s is not None


def test_what_a_call_embeds_beyond_its_request_is_charged_to_its_user(start_listener: StartListener) -> None:
    def update(_request: pb.UpdateVectorRequest, _context: grpc.ServicerContext) -> pb.UpdateVectorResponse:
        late_charges.charge("x" * 40)
        return pb.UpdateVectorResponse()

    limiter = RateLimiter(config.load(rate_limit_tokens_per_user=60, rate_limit_burst_s=20))  # 20 tokens
    listener = start_listener(servicer_of(UpdateVector=update), admission=Admission(limiter=limiter))
    for _ in range(2):
        listener.stub.UpdateVector(anew("ada", "m"), timeout=10)
    require_token_limit(lambda: listener.stub.UpdateVector(anew("ada", "m"), timeout=10))
    listener.stub.UpdateVector(anew("bob", "m"), timeout=10)


@pytest.mark.long
def test_embedding_stored_content_anew_costs_its_tokens(start_server: StartServer, user_id: str) -> None:
    with Provider(dimensions=8, api_key="key") as provider:
        server = start_server(
            embedder="openai",
            embedding_model="some-model",
            embedding_dimensions=8,
            openai_base_url=provider.base_url,
            openai_api_key="key",
            rate_limit_tokens_per_user=60,
            rate_limit_burst_s=20,
        )
        vector = pb.Vector(floats=pb.FloatArray(values=[1.0] * 8))
        memory = insert(server.stub, user_id, "x" * 40, embedding=vector)
        for _ in range(2):
            server.stub.UpdateVector(anew(user_id, memory.id), timeout=10)
        require_token_limit(lambda: server.stub.UpdateVector(anew(user_id, memory.id), timeout=10))
        # An embedding that the mask leaves out brings none.
        content = pb.Memory(content="y" * 40, embedding=vector)
        update = pb.UpdateVectorRequest(
            user_id=user_id, id=memory.id, memory=content, update_mask=FieldMask(paths=["content"])
        )
        require_token_limit(lambda: server.stub.UpdateVector(update, timeout=10))


def test_writes_that_wait_for_a_slow_provider_keep_no_searches_waiting(start_server: StartServer, user_id: str) -> None:
    vector = pb.Vector(floats=pb.FloatArray(values=[1.0] * 8))
    search = pb.SearchSimilarRequest(user_id=user_id, embedding=vector)
    with Provider(dimensions=8, api_key="key") as provider:
        server = start_server(
            embedder="openai",
            embedding_model="some-model",
            embedding_dimensions=8,
            openai_base_url=provider.base_url,
            openai_api_key="key",
            threads=2,
            write_threads=2,
            queue_calls=2,
            queue_timeout_s=5,
        )
        insert(server.stub, user_id, "with an embedding", embedding=vector)
        provider.fail(Hang(), always=True)
        writes = [
            server.stub.InsertVector.future(
                pb.InsertVectorRequest(user_id=user_id, memory=pb.NewMemory(content=f"text {number}")), timeout=2
            )
            for number in range(8)
        ]
        eventually(lambda: sum(write.done() for write in writes) == 4)
        for _ in range(20):
            started_at = time.monotonic()
            assert len(server.stub.SearchSimilar(search, timeout=5).results) == 1
            assert time.monotonic() - started_at < 1
        errors = [cast("grpc.RpcError", write.exception()) for write in writes]
        refused = [failure_of(error) for error in errors if code_of(error) is grpc.StatusCode.RESOURCE_EXHAUSTED]
        assert [found.facts for found in refused] == [{"limit": "MEMORY_WRITE_THREADS"}] * 4
        waited = {code_of(error) for error in errors} - {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert waited == {grpc.StatusCode.DEADLINE_EXCEEDED}
        provider.recover()
