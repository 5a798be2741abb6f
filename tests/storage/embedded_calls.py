"""The embedded PostgreSQL as tests look at it from outside: its process, and what it answers."""

import os
import signal
from pathlib import Path

import psycopg

from db.embedded import EmbeddedPostgres, postmaster
from tests.storage.concurrency import wait_for

IS_ROOT = os.geteuid() == 0


def pid_of(data_dir: Path) -> int:
    server = postmaster.find(data_dir / "postgres")
    assert server is not None
    assert server.pid is not None
    return server.pid


def query(url: str, statement: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
    return row[0] if row else None


def kill_postmaster(postgres: EmbeddedPostgres, data_dir: Path) -> None:
    os.kill(pid_of(data_dir), signal.SIGKILL)
    wait_for(lambda: not postgres.is_running())
