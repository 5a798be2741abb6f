"""The embedded PostgreSQL of a data directory as processes that can be killed, frozen and stopped."""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg

from db import migrate
from db.embedded import EmbeddedPostgres, postmaster
from db.schema import EmbeddingSpace
from faults.client import DIMENSIONS

SPACE = EmbeddingSpace("caller", DIMENSIONS)

END_LIMIT_S = 30.0

FAST, IMMEDIATE = signal.SIGINT, signal.SIGQUIT
"""Shutdown modes, see PostgreSQL's documentation, "Shutting Down the Server"."""


def cluster(data_dir: Path) -> Path:
    """Returns the folder that PostgreSQL calls its data directory."""
    return data_dir / "postgres"


def main_process(data_dir: Path) -> psutil.Process:
    """Returns the postmaster."""
    found = postmaster.find(cluster(data_dir))
    if found is None or found.pid is None:
        raise RuntimeError(f"no PostgreSQL runs in {data_dir}")
    return psutil.Process(found.pid)


def processes(data_dir: Path) -> list[psutil.Process]:
    """Returns the postmaster and its children."""
    parent = main_process(data_dir)
    return [parent, *parent.children(recursive=True)]


def kill(data_dir: Path) -> None:
    """Ends all processes by SIGKILL."""
    for process in processes(data_dir):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def kill_main_process(data_dir: Path) -> None:
    """Ends the postmaster alone by SIGKILL; its children notice and leave when they can."""
    main_process(data_dir).kill()


def kill_client_backend(data_dir: Path) -> None:
    """Ends one process that serves a client by SIGKILL; PostgreSQL then ends all others and recovers."""
    for process in main_process(data_dir).children():
        with suppress(psutil.NoSuchProcess):
            if "[local]" in " ".join(process.cmdline()):
                process.kill()
                return
    raise RuntimeError("PostgreSQL serves no client")


def stop(data_dir: Path, mode: signal.Signals) -> None:
    """Shuts PostgreSQL down and returns when it has gone."""
    parent = main_process(data_dir)
    os.kill(parent.pid, mode)
    parent.wait(END_LIMIT_S)


def restart(postgres: EmbeddedPostgres, data_dir: Path, mode: signal.Signals) -> None:
    """Shuts PostgreSQL down, starts it again, and returns when it accepts connections."""
    stop(data_dir, mode)
    postgres.ensure_running()


def freeze(data_dir: Path, *, seconds: float) -> None:
    """Stops all processes without ending them, as a paused machine or a hung disk does, and lets them go on."""
    stopped = processes(data_dir)
    for process in stopped:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    try:
        time.sleep(seconds)
    finally:
        for process in stopped:
            with suppress(psutil.NoSuchProcess):
                process.resume()


@dataclass(frozen=True, slots=True)
class Instance:
    """A PostgreSQL that is the scenario's own, apart from the service."""

    postgres: EmbeddedPostgres
    data_dir: Path

    @property
    def url(self) -> str:
        """Of the migrated database."""
        return self.postgres.url

    def administer(self) -> psycopg.Connection[Any]:
        """Returns a connection whose statements take effect at once, whatever the server's defaults for writing."""
        return psycopg.connect(self.url, autocommit=True, options="-c default_transaction_read_only=off")


@contextmanager
def own_instance(**settings: str) -> Iterator[Instance]:
    """Yields a PostgreSQL with a migrated database; `settings` are PostgreSQL's, in place of ours."""
    with folder() as data_dir, EmbeddedPostgres.start(data_dir, settings=settings) as postgres:
        migrate.upgrade(postgres.url, SPACE)
        yield Instance(postgres, data_dir)


@contextmanager
def folder() -> Iterator[Path]:
    """Yields a data directory; what is left of a PostgreSQL in it is ended and removed."""
    data_dir = Path(tempfile.mkdtemp(prefix="memory-service-faults-"))
    data_dir.chmod(0o711)  # for root, PostgreSQL runs under another account
    try:
        yield data_dir
    finally:
        end(data_dir)
        shutil.rmtree(data_dir)


def end(data_dir: Path) -> None:
    """Ends the PostgreSQL of a data directory that may have been left running, and what it left."""
    if not cluster(data_dir).exists():
        return
    found = postmaster.find(cluster(data_dir))
    if found is not None and found.pid is not None:
        stop(data_dir, IMMEDIATE)
    postmaster.clear_remains(cluster(data_dir), cluster(data_dir))
