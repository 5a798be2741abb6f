"""Several server processes on one port: starts them, replaces those that die, and stops them together.

They are spawned, never forked: gRPC does not survive a fork (grpc/grpc#16001). The kernel spreads connections over
all that listen on the port with SO_REUSEPORT.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress

import structlog

from memory_service.addresses import nth, reserve
from memory_service.config import Settings
from memory_service.failures import CUT_OFF, FAILED

log = structlog.get_logger(__name__)

# -P: the folder we happen to be started in must not shadow our packages.
COMMAND = (sys.executable, "-P", "-m", "memory_service.worker")
READY = b"ready\n"

POLL_S = 0.1
FIRST_DELAY_S = 0.25
MAX_DELAY_S = 10.0
# A worker that ends sooner than this after its start counts as one more failure in a row.
SOON_S = 10.0
MAX_FAILED_STARTS = 3
# On top of the time that the workers give their calls.
STOP_MARGIN_S = 15.0


class Supervisor:
    """Runs `settings.workers` processes until it is told to stop."""

    def __init__(self, settings: Settings, *, database_url: str, stop: threading.Event) -> None:
        self._settings = settings
        self._database_url = database_url
        self._stop = stop

    def run(self) -> int:
        """Returns the exit status: once `stop` was set 0, or CUT_OFF when a worker had to cut calls off; else FAILED.

        Raises:
            AddressError: When a port cannot be bound.
        """
        with ExitStack() as sockets:
            # Kept bound, not listening, so that nobody else takes the ports while a worker is replaced.
            listen = _reserve(sockets, self._settings.listen)
            ops_listen = _reserve(sockets, self._settings.ops_listen)
            environment = {**os.environ, **self._overrides(listen, ops_listen)}
            workers = [
                # Each is a target of its own for Prometheus: scraped through a shared port, now one would answer and
                # now another.
                _Worker(index, environment | {"MEMORY_METRICS_LISTEN": nth(self._settings.metrics_listen, index)})
                for index in range(self._settings.workers)
            ]
            try:
                succeeded = self._serve(workers, listen=listen, ops_listen=ops_listen)
            finally:
                statuses = self._stop_all(workers)
        if not succeeded or statuses - {0, CUT_OFF}:
            return FAILED
        return max(statuses)

    def _overrides(self, listen: str, ops_listen: str) -> dict[str, str]:
        """Returns the settings that workers must not find out themselves: flags were given to us alone.

        In the environment, not on the command line: `ps` shows that to every user of the machine.
        """
        settings = self._settings
        return {
            "MEMORY_DATABASE_URL": self._database_url,
            "MEMORY_LISTEN": listen,
            "MEMORY_OPS_LISTEN": ops_listen,
            "MEMORY_INSECURE": str(settings.insecure),
            "MEMORY_AUTH": settings.auth,
            "MEMORY_TLS_CERTIFICATE": str(settings.tls_certificate or ""),
            "MEMORY_TLS_KEY": str(settings.tls_key or ""),
            "MEMORY_TLS_CLIENT_CA": str(settings.tls_client_ca or ""),
            "MEMORY_WORKERS": str(settings.workers),
            "MEMORY_LOG_LEVEL": settings.log_level,
            "MEMORY_LOG_FORMAT": settings.log_format,
        }

    def _serve(self, workers: list["_Worker"], *, listen: str, ops_listen: str) -> bool:
        """Keeps the workers running; returns whether that ended because it was asked to."""
        announced = False
        while not self._stop.wait(POLL_S):
            for worker in workers:
                worker.attend()
            ready = sum(worker.ready for worker in workers)
            if ready == len(workers) and not announced:
                announced = True
                log.info("serving", listen=listen, ops_listen=ops_listen, workers=ready)
            # While others serve, the reason may pass (a database that is down); when none does, tell the operator.
            if not ready and any(worker.failures >= MAX_FAILED_STARTS for worker in workers):
                log.error("workers_do_not_start", attempts=MAX_FAILED_STARTS)
                return False
        return True

    def _stop_all(self, workers: list["_Worker"]) -> set[int]:
        """Ends the workers; returns their exit statuses."""
        for worker in workers:
            worker.terminate()
        patience_s = self._settings.drain_delay_s + self._settings.drain_grace_s + STOP_MARGIN_S
        deadline_at = time.monotonic() + patience_s
        return {worker.wait(until=deadline_at) for worker in workers}


class _Worker:
    """One worker's place: its process, and after that one's death the next."""

    def __init__(self, index: int, environment: Mapping[str, str]) -> None:
        self._index = index
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._start_at = 0.0
        self.ready = False
        """Whether the process serves."""
        self.failures = 0
        """How many processes in a row ended soon after their start."""

    def attend(self) -> None:
        """Starts the process when it is time, and notes what has become of it."""
        if self._process is None:
            if time.monotonic() >= self._start_at:
                self._spawn()
        elif (status := self._process.poll()) is not None:
            self._bury(self._process, status)
        elif not self.ready and self._process.stdout is not None:
            self.ready = self._process.stdout.read() == READY

    def terminate(self) -> None:
        """Asks the process to drain."""
        if self._process is not None:
            self._process.terminate()

    def wait(self, *, until: float) -> int:
        """Waits for the process to end, killing it at `until` (time.monotonic()); returns its exit status."""
        if (process := self._process) is None:
            return 0
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))
        if process.poll() is None:
            log.error("worker_killed", worker=self._index, pid=process.pid)
            process.kill()
        status = process.wait()
        self._release(process)
        # Until it has taken the signal over, SIGTERM ends it by itself: nothing was begun by then.
        return 0 if status == -signal.SIGTERM else status

    def _spawn(self) -> None:
        self._started_at = time.monotonic()
        self._process = subprocess.Popen(  # noqa: S603 - a constant
            COMMAND,
            bufsize=0,
            env=self._environment,
            # A pipe whose other end is ours alone: it closes when we die, however we die, and the worker drains.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Ctrl-C reaches the whole foreground group: a second signal to workers that we have told already.
            process_group=0,
        )
        if self._process.stdout is not None:
            os.set_blocking(self._process.stdout.fileno(), False)

    def _bury(self, process: subprocess.Popen[bytes], status: int) -> None:
        ran_s = time.monotonic() - self._started_at
        self.failures = self.failures + 1 if ran_s < SOON_S else 0
        delay_s = min(MAX_DELAY_S, FIRST_DELAY_S * 2**self.failures)
        log.error("worker_died", worker=self._index, pid=process.pid, status=status, restart_in_s=delay_s)
        self._release(process)
        self._start_at = time.monotonic() + delay_s

    def _release(self, process: subprocess.Popen[bytes]) -> None:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        self._process = None
        self.ready = False


def _reserve(sockets: ExitStack, address: str) -> str:
    if address == "off":
        return address
    sock, bound = reserve(address)
    sockets.enter_context(sock)
    return bound
