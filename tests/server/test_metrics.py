"""Metrics: off by default, scraped from real servers over HTTP, and moving with what the server does."""

import re
import socket
import urllib.request
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import psycopg
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from memory_service import config
from memory_service.addresses import AddressError, nth
from memory_service.config import ConfigurationError
from memory_service.job_outcome import JobOutcome
from memory_service.metrics import Metrics
from memory_service.metrics.listener import MetricsListener
from memory_service.v1 import admin_pb2
from memory_service.v1 import memory_pb2 as pb
from tests.api.waiting import eventually
from tests.fix_database import DIMENSIONS, Databases, NewDatabase
from tests.fix_server import ServerProcess, StartServer, running_servers, start_process

SERVICE = "memory_service.v1.MemoryService"


def read(address: str, **headers: str) -> tuple[str, str]:
    """Returns what a scraper gets, and its content type."""
    request = urllib.request.Request(f"http://{address}/metrics", headers=headers)
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 - ours
        return response.read().decode(), response.headers["Content-Type"]


class Scrape:
    """The metrics of a server at one time."""

    def __init__(self, address: str) -> None:
        text, _ = read(address)
        families = text_string_to_metric_families(text)
        self.samples: list[Sample] = [sample for family in families for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """Returns the value of the one series of this name that has these labels."""
        [value] = [
            sample.value for sample in self.samples if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return value


@pytest.fixture(scope="module")
def server(databases: Databases, module_database_url: str) -> Iterator[ServerProcess]:
    """A server that serves metrics."""
    with running_servers(databases) as start:
        yield start(database_url=module_database_url, metrics_listen="127.0.0.1:0")


def metrics_address(server: ServerProcess) -> str:
    return str(server.log.wait_for("serving_metrics")["listen"])


@pytest.fixture
def address(server: ServerProcess) -> str:
    """Where the metrics are."""
    return metrics_address(server)


def embedding(axis: int = 0) -> pb.Vector:
    return pb.Vector(floats=pb.FloatArray(values=np.eye(DIMENSIONS)[axis]))


def insert(server: ServerProcess, user_id: str) -> None:
    memory = pb.NewMemory(content="memory", embedding=embedding())
    server.stub.InsertVector(pb.InsertVectorRequest(user_id=user_id, memory=memory), timeout=10)


def search(server: ServerProcess, user_id: str) -> pb.SearchSimilarResponse:
    request = pb.SearchSimilarRequest(user_id=user_id, embedding=embedding())
    return server.stub.SearchSimilar(request, timeout=10)


def test_calls_are_counted_by_method_and_code(server: ServerProcess, address: str) -> None:
    def handled(scrape: Scrape, method: str, code: str) -> float:
        return scrape("grpc_server_handled_total", grpc_method=method, grpc_code=code, grpc_service=SERVICE)

    before = Scrape(address)
    for _ in range(3):
        insert(server, "counted")
    for _ in range(2):
        with pytest.raises(grpc.RpcError):
            server.stub.GetVector(pb.GetVectorRequest(user_id="counted", id="no uuid"), timeout=10)
    after = Scrape(address)

    assert handled(after, "InsertVector", "OK") - handled(before, "InsertVector", "OK") == 3
    assert handled(after, "GetVector", "InvalidArgument") - handled(before, "GetVector", "InvalidArgument") == 2
    assert handled(after, "GetVector", "OK") == handled(before, "GetVector", "OK")
    started = [scrape("grpc_server_started_total", grpc_method="GetVector") for scrape in (before, after)]
    assert started[1] - started[0] == 2
    seconds = [scrape("grpc_server_handling_seconds_sum", grpc_method="InsertVector") for scrape in (before, after)]
    assert 0 < seconds[1] - seconds[0] < 10
    counts = [scrape("grpc_server_handling_seconds_count", grpc_method="InsertVector") for scrape in (before, after)]
    assert counts[1] - counts[0] == 3


def test_every_method_and_code_is_there_from_the_beginning(start_server: StartServer) -> None:
    scrape = Scrape(metrics_address(start_server(metrics_listen="127.0.0.1:0")))
    services = (pb.DESCRIPTOR.services_by_name["MemoryService"], admin_pb2.DESCRIPTOR.services_by_name["AdminService"])
    methods = [method.name for service in services for method in service.methods]
    handled = [sample for sample in scrape.samples if sample.name == "grpc_server_handled_total"]
    assert len(handled) == len(methods) * len(grpc.StatusCode)
    assert {sample.labels["grpc_method"] for sample in handled} == set(methods)
    assert {sample.value for sample in handled} == {0.0}
    assert scrape("grpc_server_started_total", grpc_method="ImportVectors", grpc_type="bidi_stream") == 0
    assert {"Canceled", "OK", "DeadlineExceeded"} <= {sample.labels["grpc_code"] for sample in handled}


def test_attempts_at_waiting_embeddings_are_counted_by_outcome() -> None:
    metrics = Metrics(CollectorRegistry())
    name = "memory_embedding_queue_attempts_total"
    assert {metrics.registry.get_sample_value(name, {"outcome": one.value}) for one in JobOutcome} == {0.0}
    metrics.embedding_queue.count(JobOutcome.EMBEDDED, 64)
    metrics.embedding_queue.count(JobOutcome.REFUSED, 1)
    assert metrics.registry.get_sample_value(name, {"outcome": "embedded"}) == 64
    assert metrics.registry.get_sample_value(name, {"outcome": "refused"}) == 1


def test_searches_are_counted_by_plan(server: ServerProcess, address: str) -> None:
    for _ in range(4):
        insert(server, "searched")
    before = Scrape(address)
    assert search(server, "searched").plan == pb.SEARCH_PLAN_EXACT
    after = Scrape(address)
    assert after("memory_search_total", plan="exact") - before("memory_search_total", plan="exact") == 1
    assert after("memory_search_total", plan="ann") == 0
    considered = [scrape("memory_search_candidates_sum", plan="exact") for scrape in (before, after)]
    assert considered[1] - considered[0] == 4
    assert np.isnan(after("memory_search_recall", plan="quantized"))
    assert after("memory_search_widening") == 1


def test_the_pool_and_the_buffer_are_told(server: ServerProcess, address: str) -> None:
    before = Scrape(address)
    insert(server, "pooled")
    after = Scrape(address)
    assert after("memory_pool_requests_total") > before("memory_pool_requests_total")
    assert after("memory_pool_max_size") == 8
    assert 1 <= after("memory_pool_size") <= 8
    assert after("memory_pool_requests_waiting") == 0
    assert after("memory_pool_connections_lost_total") == 0
    assert after("memory_access_buffer_size") >= 0
    assert after("memory_access_buffer_dropped_total") == 0
    assert {after("memory_ann_indexes", state=state) for state in ("ready", "building", "invalid")} == {0.0}
    assert after("process_resident_memory_bytes") > 1e6


def test_embedding_is_timed_and_its_failures_counted(start_server: StartServer) -> None:
    server = start_server(embedder="local", embedding_dimensions=256, metrics_listen="127.0.0.1:0")
    address = metrics_address(server)
    request = pb.InsertVectorRequest(user_id="u", memory=pb.NewMemory(content="something to embed"))
    server.stub.InsertVector(request, timeout=30)
    scrape = Scrape(address)
    assert scrape("memory_embedding_seconds_count") == 1
    assert scrape("memory_embedding_seconds_sum") > 0
    assert scrape("memory_embedding_failures_total", reason="unavailable") == 0


def test_a_provider_that_does_not_answer_is_counted(start_server: StartServer) -> None:
    server = start_server(
        embedder="openai",
        embedding_dimensions=1536,
        openai_base_url="http://127.0.0.1:9/v1",
        openai_api_key="none",
        embedding_retries=0,
        metrics_listen="127.0.0.1:0",
    )
    request = pb.InsertVectorRequest(user_id="u", memory=pb.NewMemory(content="something to embed"))
    with pytest.raises(grpc.RpcError):
        server.stub.InsertVector(request, timeout=10)
    scrape = Scrape(metrics_address(server))
    assert scrape("memory_embedding_failures_total", reason="unavailable") == 1
    assert scrape("memory_embedding_seconds_count") == 1


@pytest.mark.slow
def test_recall_is_measured_while_serving(start_server: StartServer, new_database: NewDatabase) -> None:
    dimensions, rows = 768, 1_200
    url = new_database(dimensions=dimensions)
    server = start_server(
        database_url=url, embedding_dimensions=dimensions, metrics_listen="127.0.0.1:0", recall_probe_fraction=1
    )
    generator = np.random.default_rng(1)

    def vector() -> pb.Vector:
        return pb.Vector(f32_le=generator.normal(size=dimensions).astype("<f4").tobytes())

    for _ in range(rows // 200):
        memories = [pb.NewMemory(embedding=vector()) for _ in range(200)]
        server.stub.BatchInsertVectors(pb.BatchInsertVectorsRequest(user_id="u", memories=memories), timeout=60)
    with psycopg.connect(url, autocommit=True) as connection:
        # What was written in the last half minute is not compared.
        connection.execute("UPDATE memory_entries SET updated_at = updated_at - interval '1 hour'")
        connection.execute("VACUUM (ANALYZE) memory_entries")
    address = metrics_address(server)

    def search_approximately() -> None:
        request = pb.SearchSimilarRequest(user_id="u", embedding=vector(), limit=3)
        assert server.stub.SearchSimilar(request, timeout=10).plan == pb.SEARCH_PLAN_QUANTIZED

    search_approximately()
    eventually(lambda: Scrape(address)("memory_search_recall_probes_total", outcome="measured") == 1)
    # Straight after a probe there is no other: it has used up its share of the time for a while.
    for _ in range(3):
        search_approximately()
    scrape = Scrape(address)
    assert scrape("memory_search_recall_probes_total", outcome="dropped") == 3
    assert scrape("memory_search_total", plan="quantized") == 4
    assert 0.0 <= scrape("memory_search_recall", plan="quantized") <= 1.0
    assert scrape("memory_search_recall_measured_count", plan="quantized") == 1


def test_metrics_are_off_by_default(start_server: StartServer) -> None:
    server = start_server()
    assert server.log.events("serving_metrics") == []
    assert server.stop() == 0


def test_openmetrics_is_served_to_those_who_ask(address: str) -> None:
    text, content_type = read(address, Accept="application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n")
    assert "_created" not in text
    _, content_type = read(address)
    assert content_type.startswith("text/plain")


def test_a_client_that_asks_nothing_keeps_nobody_waiting(address: str) -> None:
    host, port = address.split(":")
    with socket.create_connection((host, int(port))):
        assert "grpc_server_started_total" in read(address)[0]


@pytest.mark.long
def test_each_worker_is_a_target_of_its_own(start_server: StartServer) -> None:
    first = free_ports(2)
    server = start_server(workers=2, metrics_listen=f"127.0.0.1:{first}")
    server.log.wait_for("serving_metrics", count=2)
    addresses = sorted(event["listen"] for event in server.log.events("serving_metrics"))
    assert addresses == [f"127.0.0.1:{first}", f"127.0.0.1:{first + 1}"]
    for number in range(6):
        with grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            call: Any = channel.unary_unary(
                f"/{SERVICE}/GetStats", pb.GetStatsRequest.SerializeToString, pb.GetStatsResponse.FromString
            )
            call(pb.GetStatsRequest(user_id=f"u{number}"), timeout=10)
    handled = [
        Scrape(address)("grpc_server_handled_total", grpc_method="GetStats", grpc_code="OK") for address in addresses
    ]
    assert sum(handled) == 6


def free_ports(count: int) -> int:
    """Returns the first of so many free ports in a row."""
    for first in range(20_000, 30_000, 10):
        try:
            for port in range(first, first + count):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return first
    raise AssertionError("no ports are free")


def test_a_taken_port_is_told_before_anything_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        process = start_process(
            "serve",
            metrics_listen=address,
            embedder="none",
            embedding_dimensions=8,
            listen="127.0.0.1:0",
            ops_listen="off",
        )
        _, error = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"cannot listen on {address}: the port is taken" in error


def test_a_listener_says_why_it_cannot_listen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(AddressError, match="taken by another process"):
        MetricsListener(f"127.0.0.1:{taken.getsockname()[1]}", CollectorRegistry())


def test_ports_of_workers() -> None:
    assert [nth("127.0.0.1:9464", index) for index in (0, 3)] == ["127.0.0.1:9464", "127.0.0.1:9467"]
    assert nth("[::1]:9464", 1) == "[::1]:9465"
    assert nth("127.0.0.1:0", 3) == "127.0.0.1:0"
    assert nth("off", 3) == "off"


def test_ports_of_workers_end_at_the_last_one() -> None:
    config.load(embedder="local", workers=2, metrics_listen="127.0.0.1:65534")
    with pytest.raises(ConfigurationError, match="MEMORY_METRICS_LISTEN leaves no ports for MEMORY_WORKERS=3"):
        config.load(embedder="local", workers=3, metrics_listen="127.0.0.1:65534")


def test_metrics_follow_the_naming_conventions() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    for family in registry.collect():
        assert re.fullmatch(r"(grpc_server|memory)_[a-z_]+[a-z]", family.name)
        assert not re.search(r"_(ms|milliseconds|total)$", family.name)
        assert family.documentation.endswith(".")
