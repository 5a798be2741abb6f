"""Makes a PostgreSQL cluster (the folder initdb fills) and writes our settings into it."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from db.embedded.account import Account, give, let_reach
from db.embedded.errors import EmbeddedPostgresError
from db.embedded.programs import MAJOR, ProgramFailed, Programs
from db.embedded.settings import render

INCLUDED = "memory_service.conf"
INCLUDE_LINE = f"include = '{INCLUDED}'"
LOG_TAIL_LINES = 15


def exists(cluster: Path) -> bool:
    """Returns whether `cluster` has been made."""
    return (cluster / "PG_VERSION").exists()


def make(cluster: Path, *, programs: Programs, account: Account) -> None:
    """Makes a cluster, beside its place first and moved there whole: a killed initdb leaves no half one.

    Raises:
        EmbeddedPostgresError: When initdb fails.
    """
    unfinished = cluster.with_name(f"{cluster.name}.new")
    with suppress(FileNotFoundError):
        shutil.rmtree(unfinished)
    unfinished.mkdir(mode=0o700)
    give(account, unfinished)
    let_reach(account, unfinished)
    try:
        programs.initdb(unfinished)
    except ProgramFailed as error:
        raise EmbeddedPostgresError(f"initdb failed in {unfinished}: {error}") from None
    unfinished.rename(cluster)


def require_our_major(cluster: Path) -> None:
    """Raises EmbeddedPostgresError when another major of PostgreSQL made `cluster`."""
    major = (cluster / "PG_VERSION").read_text().strip()
    if major != str(MAJOR):
        raise EmbeddedPostgresError(
            f"{cluster} was made by PostgreSQL {major}, but the one installed here is {MAJOR}. Set MEMORY_DATA_DIR to "
            f"another folder to start empty, or move the data: run PostgreSQL {major} on this folder, save them with "
            "pg_dump, and restore them into a new one with psql"
        )


def write_settings(cluster: Path, settings: Mapping[str, str], *, account: Account) -> None:
    """Writes `settings` to a file that the cluster's own configuration includes last."""
    # As root we write into a folder of another account: a new file moved into place follows no link set there.
    with tempfile.NamedTemporaryFile("w", dir=cluster.parent, delete=False) as file:
        file.write(render(settings))
    give(account, Path(file.name))
    Path(file.name).rename(cluster / INCLUDED)
    descriptor = os.open(cluster / "postgresql.conf", os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW)
    with open(descriptor, "r+") as configuration:  # noqa: PTH123 - pathlib cannot refuse links
        if INCLUDE_LINE not in configuration.read().splitlines():
            configuration.write(f"\n{INCLUDE_LINE}\n")


def log_tail(cluster: Path, start_log: Path) -> str:
    """Returns the last lines of what the server said at its start and of its newest log."""
    logs = sorted((cluster / "log").glob("*.log"), key=lambda path: path.stat().st_mtime)
    lines: list[str] = []
    for path in (start_log, *logs[-1:]):
        if path.exists():
            lines += path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    return "\n".join(lines)
