"""Approximate indexes as a caller sees them: searched, therefore built, listed, used, and no reason to stop slowly."""

import time
from typing import Any

import pytest

from db.ann_catalog import IndexState, name_of, progress
from db.ann_session import AnnSession
from memory_service.v1 import memory_pb2 as pb
from tests.fix_database import NewDatabase
from tests.fix_server import ServerProcess, StartServer
from tests.storage import clustered
from tests.storage.clustered import DIMENSIONS, indexes_of
from tests.storage.concurrency import wait_for

OWNER = "it's 100% \\ жанна"
ROWS = 1_500
SETTINGS: dict[str, Any] = {
    "embedding_dimensions": DIMENSIONS,
    "ann_min_rows": 1_000,
    "ann_drop_rows": 500,
    "ann_maintenance_interval_s": 0.2,
    "hnsw_ef_construction": 64,
}


@pytest.fixture
def url(new_database: NewDatabase) -> str:
    """A database with a user large enough for an index."""
    url = new_database(dimensions=DIMENSIONS)
    clustered.store(url, OWNER, clustered.clustered(ROWS))
    clustered.store(url, "small", clustered.clustered(50))
    clustered.analyze(url)
    return url


def search(server: ServerProcess, user_id: str = OWNER) -> pb.SearchSimilarResponse:
    query = pb.Vector(f32_le=clustered.clustered(1, seed=7)[0].tobytes())
    request = pb.SearchSimilarRequest(user_id=user_id, embedding=query, limit=10)
    reply: pb.SearchSimilarResponse = server.stub.SearchSimilar(request, timeout=30)
    return reply


def listed(server: ServerProcess) -> list[pb.AnnIndex]:
    return list(server.stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=30).ann_indexes)


def test_a_large_user_who_is_searched_gets_an_index(url: str, start_server: StartServer) -> None:
    server = start_server(database_url=url, **SETTINGS)
    assert listed(server) == []
    exact = search(server)
    search(server, "small")
    assert exact.plan == pb.SEARCH_PLAN_EXACT
    # Entered, built within a round, and known to the registry a few seconds later.
    wait_for(lambda: search(server).plan == pb.SEARCH_PLAN_ANN)
    found = {hit.memory.id for hit in search(server).results}
    assert len(found & {hit.memory.id for hit in exact.results}) >= 9
    [index] = listed(server)
    assert (index.name, index.method, index.state) == (name_of(OWNER), "hnsw", pb.ANN_INDEX_STATE_READY)
    assert index.bytes > ROWS * 2 * DIMENSIONS
    assert not getattr(index, "global")
    wait_for(lambda: listed(server)[0].scans > 0)
    assert OWNER not in server.log.text


@pytest.mark.long
def test_processes_leave_maintenance_to_one(url: str, start_server: StartServer) -> None:
    servers = [start_server(database_url=url, **SETTINGS) for _ in range(2)]
    for server in servers:
        search(server)
    wait_for(lambda: [index.state for index in indexes_of(url).values()] == [IndexState.READY])
    wait_for(lambda: any(server.log.events("ann_step_done") for server in servers))
    [leader] = [server for server in servers if server.log.events("ann_maintenance_leads")]
    [follower] = [server for server in servers if server is not leader]
    assert not follower.log.events("ann_step_done")
    leader.process.kill()
    leader.process.wait()
    leader.close()
    follower.log.wait_for("ann_maintenance_leads")


@pytest.mark.long
def test_stopping_does_not_wait_for_a_build(url: str, start_server: StartServer) -> None:
    clustered.wish(url, OWNER)
    server = start_server(database_url=url, **{**SETTINGS, "hnsw_ef_construction": 1_000})
    with AnnSession(url) as onlooker:
        wait_for(lambda: (seen := onlooker.query(progress)) is not None and seen.done > 0)
    assert [index.state for index in listed(server)] == [pb.ANN_INDEX_STATE_BUILDING]
    started_at = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - started_at < 5
    assert [index.state for index in indexes_of(url).values()] == [IndexState.INVALID]
    # The next one repairs it.
    repaired = start_server(database_url=url, **SETTINGS)
    wait_for(lambda: [index.state for index in listed(repaired)] == [pb.ANN_INDEX_STATE_READY])


def test_the_index_across_users_is_listed_as_such(url: str, start_server: StartServer) -> None:
    server = start_server(database_url=url, **SETTINGS, global_search="on", ann_index="off")
    wait_for(lambda: [getattr(index, "global") for index in listed(server)] == [True])
    search(server)
    assert [index.name for index in listed(server)] == ["memory_ann_global"]
