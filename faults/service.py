"""The service as its users run it, a process of its own that can be killed, stopped and started again."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from faults.client import DIMENSIONS, describe, open_channel
from harness.service_process import environment
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub

START_LIMIT_S = 90.0
STOP_LIMIT_S = 60.0
READ_LIMIT_S = 10.0
LOG_LINES = 20_000

_POOL = re.compile(r"^memory_pool_(size|available|requests_waiting|max_size) (\S+)$", re.MULTILINE)

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Footprint:
    """What the service holds of what can leak."""

    threads: int
    """Of all its processes."""
    files: int
    """Open files and sockets of all its processes."""


class Service:
    """A running service; stopped on leaving."""

    def __init__(self, database_url: str = "", *, listen: str = "127.0.0.1:0", **settings: Any) -> None:
        """Starts it and waits until it serves.

        Args:
            database_url: A migrated database; empty for the embedded one of the setting `data_dir`.
            listen: Where; port 0 takes a free one.
            settings: More settings, named as in `Settings`.

        Raises:
            RuntimeError: When it does not come to serve; the message holds the end of its log.
        """
        chosen = {"listen": listen, "ops_listen": "127.0.0.1:0", "drain_grace_s": 5, **settings}
        if chosen.get("workers", 1) == 1:
            chosen = {"metrics_listen": "127.0.0.1:0", **chosen}
        preload = chosen.pop("preload", {})
        self._process = subprocess.Popen(
            [sys.executable, "-m", "memory_service", "serve"],
            env=environment(database_url, dimensions=DIMENSIONS, **chosen) | preload,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self._events: list[Event] = []
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        try:
            serving = self.wait_for("serving", timeout_s=START_LIMIT_S)
        except BaseException:  # a time limit or Ctrl-C: nobody else would stop it
            self.kill()
            raise
        self.address = str(serving["listen"])
        """host:port of the gRPC service."""
        self._ops_channel = grpc.insecure_channel(str(serving["ops_listen"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Of the process that was started; with several workers their supervisor."""
        return self._process.pid

    def workers(self) -> list[psutil.Process]:
        """Returns the processes that serve, where there are several."""
        children = psutil.Process(self.pid).children()
        return [child for child in children if "memory_service.worker" in child.cmdline()]

    def health(self) -> str:
        """Returns what the ops address reports: "SERVING", "NOT_SERVING"."""
        stub = health_pb2_grpc.HealthStub(self._ops_channel)
        response = stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))

    def says_it_serves(self) -> list[str]:
        """Returns what is wrong with its health while its database is down: nothing, or that it reports SERVING."""
        status = self.health()
        return [f"health is {status}"] if status != "NOT_SERVING" else []

    def refuses_reads(self) -> list[str]:
        """Returns what is wrong with reading: nothing, or how it fails."""
        with open_channel(self.address) as channel:
            try:
                MemoryServiceStub(channel).GetRecent(pb.GetRecentRequest(user_id="reader"), timeout=READ_LIMIT_S)
            except grpc.RpcError as error:
                return [f"reads are refused: {describe(error)}"]
        return []

    def pool(self) -> dict[str, int]:
        """Returns the state of the connection pool: size, available, requests_waiting, max_size."""
        address = self.wait_for("serving_metrics")["listen"]
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
            text = response.read().decode()
        return {name: int(float(value)) for name, value in _POOL.findall(text)}

    def footprint(self) -> Footprint:
        """Returns what it holds now."""
        members = [psutil.Process(self.pid), *self.workers()]
        return Footprint(sum(member.num_threads() for member in members), sum(member.num_fds() for member in members))

    def events(self, name: str) -> list[Event]:
        """Returns the events called so that were logged so far."""
        with self._changed:
            return [event for event in self._events if event.get("event") == name]

    def wait_for(self, name: str, *, count: int = 1, timeout_s: float = 10.0) -> Event:
        """Returns the `count`-th event called `name`.

        Raises:
            RuntimeError: When it does not come in time.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                found = [event for event in self._events if event.get("event") == name]
                if len(found) >= count:
                    return found[count - 1]
                if self._ended or not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    raise RuntimeError(f"no {name!r} in the log:\n{self.log_tail()}")

    def log_tail(self) -> str:
        """Returns the end of its log."""
        return "".join(list(self._log)[-30:])

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """Ends the process by SIGKILL, and returns when it has gone."""
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def stop(self) -> int:
        """Sends SIGTERM, and SIGKILL to a process that does not end; returns the exit status."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._ops_channel.close()
        status = self._process.wait()
        self._reader.join()
        return status

    def _read_log(self) -> None:
        stream = self._process.stderr
        if stream is None:
            return
        with stream:
            for line in stream:
                self._log.append(line)
                if (event := _parsed(line)) is not None:
                    with self._changed:
                        self._events.append(event)
                        self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def _parsed(line: str) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    # One line a refused call would fill the memory.
    return event if isinstance(event, dict) and event.get("event") != "call" else None
