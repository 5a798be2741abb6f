"""Fixtures: the listeners of the service in this process, around a servicer of the test's own; a user; imports."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from prometheus_client import CollectorRegistry

from memory_service import config
from memory_service.access.admission import OPEN, Admission
from memory_service.access.refusals import CountRefusal, uncounted
from memory_service.certificates import Certificates
from memory_service.errors import to_status
from memory_service.metrics.calls import CallMetrics
from memory_service.server import Addresses, Server
from memory_service.v1.memory_pb2_grpc import MemoryServiceServicer, MemoryServiceStub
from tests.fix_server import ServerProcess, open_channel
from tests.server.bulk_files import Import, run_here

Behaviour = Callable[[Any, grpc.ServicerContext], Any]


def servicer_of(**behaviours: Behaviour) -> MemoryServiceServicer:
    """Returns a servicer with these methods; the others are UNIMPLEMENTED."""
    methods = {name: staticmethod(behaviour) for name, behaviour in behaviours.items()}
    servicer: MemoryServiceServicer = type("Servicer", (MemoryServiceServicer,), methods)()
    return servicer


class Listener:
    """A started Server and channels to it."""

    def __init__(self, server: Server, addresses: Addresses, closing: ExitStack) -> None:
        self.server = server
        self.addresses = addresses
        self._closing = closing
        self.channel = self.open_channel(addresses.listen)
        self.stub = MemoryServiceStub(self.channel)

    def open_channel(self, address: str) -> grpc.Channel:
        """Returns a channel that is closed after the test."""
        return self._closing.enter_context(open_channel(address))

    def ops_channel(self) -> grpc.Channel:
        """Returns a channel to the ops address."""
        assert self.addresses.ops_listen is not None
        return self.open_channel(self.addresses.ops_listen)


StartListener = Callable[..., Listener]


@pytest.fixture
def user_id() -> str:
    """A user that no other test knows."""
    return f"user-{uuid4().hex[:12]}"


@pytest.fixture
def import_file(server: ServerProcess, user_id: str) -> Import:
    """A function running `memory-service import` on a file for the test's user; returns the exit status."""

    def run(path: Path, *arguments: str) -> int:
        return run_here("import", str(path), "--user", user_id, "--address", server.address, *arguments)

    return run


@pytest.fixture
def start_listener() -> Iterator[StartListener]:
    """A function that serves a servicer in this process: `start_listener(servicer, threads=1)`."""
    with ExitStack() as closing:

        def start(
            servicer: MemoryServiceServicer | None = None,
            *,
            admission: Admission = OPEN,
            certificates: Certificates | None = None,
            count_refusal: CountRefusal = uncounted,
            **settings: Any,
        ) -> Listener:
            settings = {"embedder": "none", "embedding_dimensions": 8, "drain_grace_s": 5.0, **settings}
            configured = config.load(**{"listen": "127.0.0.1:0", "ops_listen": "127.0.0.1:0", **settings})
            server = Server(
                configured,
                servicer or servicer_of(),
                to_status=to_status,
                metrics=CallMetrics(CollectorRegistry()),
                admission=admission,
                certificates=certificates,
                count_refusal=count_refusal,
            )
            closing.callback(server.close)
            return Listener(server, server.start(), closing)

        yield start
