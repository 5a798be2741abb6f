"""The service as its users run it: `memory-service serve`, a process of its own on a free loopback port."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

ROOT = Path(__file__).resolve().parents[1]
START_LIMIT_S = 60.0
STOP_LIMIT_S = 60.0
LAST_LINES = 30
SCRUBBED = ("MEMORY_", "OPENAI_", "PG", "DATABASE_URL")


def environment(database_url: str, *, dimensions: int, **settings: Any) -> dict[str, str]:
    """Returns the variables for a command of the service: ours, less what would configure it, with the settings."""
    chosen = {
        "database_url": database_url,
        "embedder": "none",
        "embedding_dimensions": dimensions,
        "log_format": "json",
        **settings,
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(SCRUBBED)}
    inherited["PYTHONPATH"] = str(ROOT)  # this checkout is measured, whichever is installed
    return inherited | {f"MEMORY_{name.upper()}": str(value) for name, value in chosen.items()}


class ServiceProcess:
    """One running service; stopped by its process id on leaving."""

    def __init__(self, database_url: str, *, dimensions: int, **settings: Any) -> None:
        """Starts it and waits until it serves.

        Args:
            database_url: A migrated database.
            dimensions: Of that database.
            settings: More settings, named as in `Settings`; everything else has its production default.

        Raises:
            RuntimeError: When it does not come to serve; the message holds the end of its log.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-m", "memory_service", "serve"],
            env=environment(
                database_url, dimensions=dimensions, **{"listen": "127.0.0.1:0", "ops_listen": "off", **settings}
            ),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._serving: queue.Queue[dict[str, str]] = queue.Queue()
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        serving = self._wait_until_serving()
        self.address = serving["listen"]
        """host:port of the gRPC service."""
        self.ops_address = serving["ops_listen"]
        """host:port of the ops address, "off" for none."""

    def _read_log(self) -> None:
        stream = self._process.stderr
        if stream is None:
            return
        with stream:
            for line in stream:
                self._last_lines.append(line)
                if '"serving"' in line:
                    self._serving.put(json.loads(line))
        self._serving.put({})  # it has ended: no use in waiting any longer

    def _wait_until_serving(self) -> dict[str, str]:
        try:
            serving = self._serving.get(timeout=START_LIMIT_S)
        except queue.Empty:
            serving = {}
        except BaseException:  # a time limit or Ctrl-C: nobody else would stop it
            self.stop()
            raise
        if not serving:
            self.stop()
            raise RuntimeError(f"the service did not start:\n{''.join(self._last_lines)}")
        return serving

    def resident_bytes(self) -> int:
        """Returns the resident memory of the process and its workers."""
        process = psutil.Process(self._process.pid)
        return int(sum(member.memory_info().rss for member in (process, *process.children(recursive=True))))

    def log_tail(self) -> str:
        """Returns the last lines of its log."""
        return "".join(self._last_lines)

    def stop(self) -> None:
        """Sends SIGTERM, and SIGKILL to a process that does not end."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
