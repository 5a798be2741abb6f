"""One of the processes that `serve` spawns when there are several: `python -m memory_service.worker`."""

import os
import sys
import threading
from contextlib import suppress

import structlog

from memory_service import config, logs, service
from memory_service.failures import end_process, exit_status_of
from memory_service.server import Addresses
from memory_service.signals import stop_on_signal
from memory_service.supervisor import READY

log = structlog.get_logger("memory_service.worker")


def run() -> int:
    """Serves with the settings in the environment until told to stop, or until the supervisor is gone."""
    settings = config.load()
    logs.configure(level=settings.log_level, log_format=settings.log_format)
    stop = stop_on_signal()
    threading.Thread(target=_watch_supervisor, args=(stop,), name="supervisor-watch", daemon=True).start()
    if settings.database_url is None:
        raise config.ConfigurationError("a worker is started by `memory-service serve`, which names the database")
    return service.run(
        settings,
        database_url=settings.database_url.get_secret_value(),
        stop=stop,
        serving=_announce,
        share_ports=True,
    )


def _watch_supervisor(stop: threading.Event) -> None:
    """Waits for the end of standard input: the supervisor holds its other end, and never writes."""
    os.read(sys.stdin.fileno(), 1)
    if not stop.is_set():
        log.warning("supervisor_gone")
    stop.set()


def _announce(addresses: Addresses) -> None:
    log.info("worker_ready", listen=addresses.listen, pid=os.getpid())
    with suppress(BrokenPipeError):  # the supervisor is gone, see above
        os.write(sys.stdout.fileno(), READY)


if __name__ == "__main__":
    end_process(exit_status_of(run))
