"""Server fixtures: the real service as a process of its own (`python -m memory_service serve`), asked over a socket.

What to ask for:

* `server`: a running service, shared by the tests of one module, on a migrated database of that module with 8
  dimensions and no embedder. Keep tests apart by user_id.
* `start_server`: a function starting further services with other settings, each with a database of its own unless one
  is named; for tests that stop, kill or configure it. Settings are named as in `Settings`:

      server = start_server(embedder="local", embedding_dimensions=256)
      server = start_server(database_url=url, workers=2, drain_delay_s=1)

Both are a `ServerProcess`:

* `server.stub`: a MemoryServiceStub; `server.channel` is what it speaks over
* `server.address`, `server.ops_address`: "127.0.0.1:port"
* `server.health(service="")`: the status that Health.Check reports on the ops address
* `server.log`: what the process has logged; `server.log.wait_for("event_name")` returns the event as a dict,
  `server.log.events("event_name")` all such events so far, `server.log.text` everything
* `server.stop()`: SIGTERM, returns the exit status; `server.process` is the subprocess.Popen

Whatever a test leaves running is stopped by SIGTERM afterwards and has to exit with 0; a test that kills its server
calls `server.process.wait()` itself.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import IO, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from db import migrate
from db.schema import EmbeddingSpace
from memory_service import config
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.fix_database import DIMENSIONS, MODEL, Databases

COMMAND = (sys.executable, "-m", "memory_service")

START_LIMIT_S = 40.0
STOP_LIMIT_S = 30.0

DEFAULTS: dict[str, Any] = {
    "listen": "127.0.0.1:0",
    "ops_listen": "127.0.0.1:0",
    "embedder": "none",
    "log_format": "json",
    # The databases of all tests share one PostgreSQL and its max_connections.
    "pool_min_size": 1,
    "pool_max_size": 8,
    "drain_grace_s": 5,
}

StartServer = Callable[..., "ServerProcess"]
"""`start_server(*, database_url: str | None = None, wait: bool = True, **settings) -> ServerProcess`"""


class ServerLog:
    """What a process writes to standard error, read as it comes."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lines: list[str] = []
        self._ended = False
        self._changed = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def text(self) -> str:
        """Everything so far."""
        with self._changed:
            return "".join(self._lines)

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """Returns the events so far, those called `name` where it is given; lines that are no JSON are left out."""
        with self._changed:
            return [event for event in map(_parsed, self._lines) if event and name in {None, event.get("event")}]

    def wait_for(self, name: str, *, count: int = 1, timeout_s: float = 10.0) -> dict[str, Any]:
        """Returns the `count`-th event called `name`; fails the test when it does not come in time."""

        def arrived() -> bool:
            return self._ended or len(self.events(name)) >= count

        with self._changed:
            self._changed.wait_for(arrived, timeout_s)
        found = self.events(name)
        if len(found) < count:
            pytest.fail(f"no {name!r} in the log:\n{self.text}")
        return found[count - 1]

    def wait_for_end(self) -> None:
        """Waits until the process has closed its standard error."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended, STOP_LIMIT_S)

    def _read(self) -> None:
        with self._stream:
            for line in self._stream:
                with self._changed:
                    self._lines.append(line)
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


class ServerProcess:
    """A running service."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        self.process = process
        self.log = ServerLog(process.stderr)

    def wait_until_serving(self) -> None:
        """Waits for the service to accept calls."""
        self.log.wait_for("serving", timeout_s=START_LIMIT_S)

    @property
    def address(self) -> str:
        """Where the service listens."""
        return str(self.log.wait_for("serving")["listen"])

    @property
    def ops_address(self) -> str:
        """Where the ops server listens, "off" for nowhere."""
        return str(self.log.wait_for("serving")["ops_listen"])

    @cached_property
    def channel(self) -> grpc.Channel:
        """A channel to the service."""
        return open_channel(self.address)

    @cached_property
    def ops_channel(self) -> grpc.Channel:
        """A channel to the ops server."""
        return open_channel(self.ops_address)

    @cached_property
    def stub(self) -> MemoryServiceStub:
        """The service's stub."""
        return MemoryServiceStub(self.channel)

    def health(self, service: str = "") -> str:
        """Returns the status that the ops server reports: "SERVING", "NOT_SERVING"."""
        stub = health_pb2_grpc.HealthStub(self.ops_channel)
        response = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))

    def stop(self) -> int:
        """Sends SIGTERM and returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Waits for the process to end and returns its exit status; kills one that does not end."""
        try:
            return self.process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            pytest.fail(f"the server did not end:\n{self.log.text}")
        finally:
            self.close()

    def close(self) -> None:
        """Closes the channels and the log."""
        for name in ("channel", "ops_channel"):
            if name in self.__dict__:
                self.__dict__.pop(name).close()
        self.log.wait_for_end()


def open_channel(address: str) -> grpc.Channel:
    """Returns a channel with a connection of its own: by default, gRPC shares them between channels."""
    return grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])


def environment(**settings: Any) -> dict[str, str]:
    """Returns the environment for a process of the service with these settings."""
    return {**os.environ, **{f"MEMORY_{name.upper()}": str(value) for name, value in settings.items()}}


@contextmanager
def running_servers(databases: Databases) -> Iterator[StartServer]:
    """Yields a function that starts servers, and stops those that still run in the end."""
    with ExitStack() as ending:

        def start(*, database_url: str | None = None, wait: bool = True, **settings: Any) -> ServerProcess:
            settings = {**DEFAULTS, **settings}
            if settings["embedder"] == "none":
                settings = {"embedding_model": MODEL, "embedding_dimensions": DIMENSIONS, **settings}
            if database_url is None and "data_dir" not in settings:
                database_url = _create_database(databases, settings)
                ending.callback(databases.drop, database_url)
            if database_url is not None:
                settings["database_url"] = database_url
            server = ServerProcess(start_process("serve", **settings))
            ending.callback(_end, server)
            if wait:
                server.wait_until_serving()
            return server

        yield start


def start_process(*arguments: str, **settings: Any) -> subprocess.Popen[str]:
    """Starts `memory-service` with these arguments and settings, its standard error a pipe."""
    return subprocess.Popen(
        [*COMMAND, *arguments],
        env=environment(**settings),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _create_database(databases: Databases, settings: dict[str, Any]) -> str:
    if settings["embedder"] == "none":
        return databases.create(settings["embedding_dimensions"])
    names = ("embedder", "embedding_model", "embedding_dimensions", "openai_api_key", "openai_base_url")
    configured = config.load(**{name: settings[name] for name in names if name in settings})
    url = databases.create(None)
    migrate.upgrade(url, EmbeddingSpace(configured.model, configured.dimensions))
    return url


def _end(server: ServerProcess) -> None:
    if server.process.returncode is None:
        assert server.stop() == 0, server.log.text
    server.close()


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


@pytest.fixture(scope="module")
def server(databases: Databases, module_database_url: str) -> Iterator[ServerProcess]:
    """The service, shared by the tests of one module."""
    with running_servers(databases) as start:
        yield start(database_url=module_database_url)


@pytest.fixture
def start_server(databases: Databases) -> Iterator[StartServer]:
    """A function that starts services, see above."""
    with running_servers(databases) as start:
        yield start
