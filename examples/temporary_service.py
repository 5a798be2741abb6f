"""A service for a while: its own process, its own empty database in a temporary folder, both gone in the end."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0


@contextmanager
def temporary_service() -> Iterator[str]:
    """Runs a service on a free port with a new database; yields its address, and stops it by SIGTERM in the end."""
    with tempfile.TemporaryDirectory(prefix="memory-demo-") as folder:
        address = free_address()
        log = Path(folder) / "service.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "memory_service", "serve"],
                env=environment(address, Path(folder) / "data"),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the demo, which then stops the service itself
            )
        try:
            wait_until_ready(address, process, log)
            yield address
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_address() -> str:
    """Returns a loopback address whose port nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def environment(address: str, data_dir: Path) -> dict[str, str]:
    """Returns this process's environment with the service's settings replaced: nobody's database gets the demo."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MEMORY_", "OPENAI_")) and name != "DATABASE_URL"
    }
    return kept | {"MEMORY_LISTEN": address, "MEMORY_OPS_LISTEN": "off", "MEMORY_DATA_DIR": str(data_dir)}


def wait_until_ready(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Returns once the service answers; ends the program with the service's last words where it does not."""
    deadline = time.monotonic() + START_TIMEOUT_S
    with grpc.insecure_channel(address) as channel:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                MemoryServiceStub(channel).GetServerInfo(pb.GetServerInfoRequest(), timeout=1, wait_for_ready=True)
            except grpc.RpcError:
                continue
            return
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
    sys.exit("the service did not start; its last words:\n" + "\n".join(lines))
