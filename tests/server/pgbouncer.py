"""A real PgBouncer in transaction mode before the PostgreSQL of the test run, where the machine has one."""

import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psycopg

from tests.storage.concurrency import wait_for

# Debian puts it where only administrators look.
PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")

# Of the protocol's prepared statements it knows since 1.21, of DEALLOCATE ALL, which psycopg sends, since 1.22.
KNOWS_PREPARED = (1, 22)

CONFIGURATION = """
[databases]
* = host={host} port={port} user={user}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {sessions}
{more}
"""


@cache
def version() -> tuple[int, ...] | None:
    """Returns the version of the machine's PgBouncer, None where there is none."""
    if PROGRAM is None:
        return None
    said = subprocess.run([PROGRAM, "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"PgBouncer (\d+)\.(\d+)", said)
    return None if found is None else tuple(map(int, found.groups()))


@dataclass(frozen=True, slots=True)
class PgBouncer:
    """One that runs."""

    port: int
    sessions: int
    """How many sessions it shares among the clients of a database."""
    knows_prepared: bool
    """Whether statements may stay prepared."""

    def url(self, url: str) -> str:
        """Returns the way through it to the database at `url`."""
        name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
        return f"postgresql://somebody@127.0.0.1:{self.port}/{name}"

    def each_session(self, url: str, statement: bytes) -> list[psycopg.rows.TupleRow]:
        """Returns what a statement returns in each of its sessions at `url`: what the next transaction would find."""
        clients = [psycopg.connect(self.url(url), prepare_threshold=None) for _ in range(self.sessions)]
        try:
            # Nobody ends a transaction before all have begun theirs, each in another session.
            return [row for client in clients for row in client.execute(statement).fetchall()]
        finally:
            for client in clients:
                client.rollback()  # or PgBouncer ends the session, and what is left in it
                client.close()


@contextmanager
def pgbouncer(url: str, *, sessions: int, max_prepared_statements: int = 0) -> Iterator[PgBouncer]:
    """Runs it before the PostgreSQL at `url`, for all databases there."""
    assert PROGRAM is not None
    target = psycopg.conninfo.conninfo_to_dict(url)
    sockets = Path(str(target["host"]))
    known = version()
    assert known is not None
    knows_prepared = known >= KNOWS_PREPARED
    port = _free_port()
    folder = Path(tempfile.mkdtemp(prefix="memory-service-pgbouncer-"))
    folder.chmod(0o755)  # for the account below
    configuration = folder / "pgbouncer.ini"
    configuration.write_text(
        CONFIGURATION.format(
            host=sockets,
            port=target["port"],
            user=target["user"],
            listen_port=port,
            sessions=sessions,
            more=f"max_prepared_statements = {max_prepared_statements}" if knows_prepared else "",
        )
    )
    # It refuses to run as root, and PostgreSQL's socket is open to its own account alone.
    owner = sockets.stat()
    account: dict[str, Any] = (
        {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": ()} if os.geteuid() == 0 else {}
    )
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([PROGRAM, configuration], stdout=log, stderr=log, **account)
    try:
        wait_for(lambda: process.poll() is None and _accepts(port))
        yield PgBouncer(port, sessions, knows_prepared=max_prepared_statements > 0)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _accepts(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
