"""Thousands of calls cancelled at random moments: none hurts another, and the connections come back."""

import random
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import grpc
import pytest

from memory_service.v1 import memory_pb2 as pb
from tests.api.messages import axis, insert
from tests.api.waiting import eventually
from tests.fix_database import Databases
from tests.fix_server import ServerProcess, running_servers

CALLERS = 8
CALLS = 2_000 // CALLERS
POOL = 4


@pytest.fixture(scope="module")
def server(databases: Databases, module_database_url: str) -> Iterator[ServerProcess]:
    """A service of few connections, which says how they are."""
    with running_servers(databases) as start:
        yield start(database_url=module_database_url, pool_max_size=POOL, metrics_listen="127.0.0.1:0")


def metric(server: ServerProcess, name: str) -> float:
    """Returns the value of a metric without labels."""
    address = server.log.wait_for("serving_metrics")["listen"]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as page:
        lines = page.read().decode().splitlines()
    [line] = [line for line in lines if line.startswith(f"{name} ")]
    return float(line.split()[-1])


def cancel_calls(server: ServerProcess, number: int) -> tuple[int, int]:
    """Makes one caller's calls, for a user of its own; returns how many were cancelled and how many answered."""
    user_id, moments = f"caller-{number}", random.Random(number)  # noqa: S311 - no secrets
    mine = insert(server.stub, user_id, "mine", embedding=axis(number)).id
    search = pb.SearchSimilarRequest(user_id=user_id, embedding=axis(number))
    calls: list[Any] = [
        lambda: server.stub.SearchSimilar.future(search, timeout=10),
        lambda: server.stub.GetVector.future(pb.GetVectorRequest(user_id=user_id, id=mine), timeout=10),
        lambda: server.stub.UpdateVector.future(
            pb.UpdateVectorRequest(user_id=user_id, id=mine, memory=pb.Memory(importance=3)), timeout=10
        ),
    ]
    cancelled = answered = 0
    for _ in range(CALLS):
        future = moments.choice(calls)()
        time.sleep(moments.uniform(0, 0.004))
        future.cancel()
        try:
            reply = future.result()
        except grpc.FutureCancelledError:
            cancelled += 1
        except grpc.RpcError as error:
            if cast("grpc.Call", error).code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
        else:
            answered += 1
            found = [result.memory for result in reply.results] if hasattr(reply, "results") else [reply.memory]
            assert [(memory.user_id, memory.id) for memory in found] == [(user_id, mine)]
    return cancelled, answered


def test_cancelled_calls_hurt_no_others(server: ServerProcess) -> None:
    with ThreadPoolExecutor(CALLERS) as threads:
        ends = list(threads.map(lambda number: cancel_calls(server, number), range(CALLERS)))
    assert sum(cancelled for cancelled, _ in ends) > CALLS

    eventually(lambda: metric(server, 'memory_calls{kind="read"}') == 0)
    eventually(lambda: metric(server, "memory_pool_requests_waiting") == 0)
    eventually(lambda: metric(server, "memory_pool_available") == metric(server, "memory_pool_size"))
    assert metric(server, "memory_pool_returns_bad_total") == 0
    # One after the other over every connection: none is hit by a cancel request that came late.
    for number in range(CALLERS):
        search = pb.SearchSimilarRequest(user_id=f"caller-{number}", embedding=axis(number))
        for _ in range(POOL):
            assert len(server.stub.SearchSimilar(search, timeout=5).results) == 1
    assert not server.log.events("internal_error")
    assert not server.log.events("database_connection_lost")
