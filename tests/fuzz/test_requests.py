"""Requests and wire bytes against a real service: whatever comes, it answers as the contract says and goes on."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from memory_service.allocator import ARENAS
from tests.fix_database import Databases
from tests.fix_server import ServerProcess, running_servers
from tests.fuzz import campaign
from tests.fuzz.footprint import MIB, Footprint, arenas_of, footprint_of
from tests.fuzz.growth import grew
from tests.fuzz.mutations import parse, write
from tests.fuzz.population import populate
from tests.fuzz.services import rpcs
from tests.fuzz.target import Finding, Target, load

SEED = 1
REQUESTS_EACH = 11


@pytest.fixture(scope="module")
def server(databases: Databases) -> Iterator[ServerProcess]:
    """A service with an embedder and all that is off by default."""
    with running_servers(databases) as start:
        yield start(embedder="local", global_search="on", environment="development")


def test_no_input_brings_the_service_down(server: ServerProcess) -> None:
    target = Target(server.channel)
    population = populate(server.channel)
    before = footprint_of(server.process.pid)

    for _ in campaign.run(target, population, numbers=[SEED], requests_each=REQUESTS_EACH):
        pass

    assert target.findings == []
    assert target.inputs >= 2_000
    assert server.process.poll() is None
    assert [event for event in server.log.events() if event.get("level") in {"error", "critical"}] == []
    after = footprint_of(server.process.pid)
    assert after.threads <= before.threads + 16, "beyond what serves so many calls at once"
    assert after.rss_bytes - before.rss_bytes < 150 * MIB
    assert sys.platform != "linux" or arenas_of(server.process.pid) <= ARENAS, "what is freed would be kept in each"
    # Requests come far, and are refused as well.
    for rpc in rpcs():
        assert target.answers[rpc.name]["OK"] > 0, rpc.name
        assert len(target.answers[rpc.name]) > 1 or not rpc.request.fields, rpc.name


def test_an_input_that_failed_can_be_sent_again(tmp_path: Path) -> None:
    finding = Finding("/memory_service.v1.MemoryService/GetStats", b"\x0a\xff", "INTERNAL")
    assert load(finding.save(tmp_path)) == (finding.rpc, finding.data)


def test_growth_is_noticed() -> None:
    def footprints(*sizes_mib: int, threads: int = 40) -> list[Footprint]:
        return [Footprint(size * MIB, 40) for size in sizes_mib[:-1]] + [Footprint(sizes_mib[-1] * MIB, threads)]

    assert not grew(footprints(100, 170, 180, 186), 16 * MIB)
    assert grew(footprints(100, 170, 180, 187), 16 * MIB)
    assert not grew(footprints(100, 170), 16 * MIB)
    assert grew(footprints(170, 170, 170, threads=45), 16 * MIB)


def test_wire_bytes_are_taken_apart_and_put_together() -> None:
    fields = [(1, 2, b"abc"), (3, 0, b"\xff\x01"), (2, 5, b"\0\0\x80\x3f"), (200, 1, b"\0" * 8)]
    assert parse(write(fields)) == fields
    assert parse(b"\xff\xff\xff") is None
    assert parse(b"\x0a\x7fshort") is None
