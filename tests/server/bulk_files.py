"""Files to import, and running `memory-service import` and `export` in this process."""

import json
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from memory_service.__main__ import main
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.fix_server import ServerProcess

TIMEOUT_S = 30.0

Import = Callable[..., int]
"""What the fixture import_file yields: `import_file(path, *arguments)`."""


def line(number: int, **fields: Any) -> dict[str, Any]:
    """Returns a memory as JSON, different for each number."""
    return {
        "content": f"number {number}",
        "embedding": [float(number + 1), *[1.0] * 7],
        "createdAt": f"2026-01-01T00:{number // 60 % 60:02}:{number % 60:02}Z",
        **fields,
    }


def write_lines(path: Path, lines: Sequence[Any]) -> Path:
    """Writes a file of these lines; what is no text becomes JSON."""
    texts = [text if isinstance(text, str) else json.dumps(text) for text in lines]
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


def run_here(*arguments: str) -> int:
    """Runs the command line in this process and returns its exit status."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def all_memories(stub: MemoryServiceStub, user_id: str, **fields: Any) -> list[pb.Memory]:
    """Returns all memories of a user, newest first."""
    request = pb.GetRecentRequest(user_id=user_id, page_size=1_000, **fields)
    found: list[pb.Memory] = []
    while True:
        page = stub.GetRecent(request, timeout=TIMEOUT_S)
        found += page.memories
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def count(server: ServerProcess, user_id: str) -> int:
    """Returns how many live memories a user has."""
    return server.stub.GetStats(pb.GetStatsRequest(user_id=user_id), timeout=TIMEOUT_S).live_count


def free_address() -> str:
    """Returns an address that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"
