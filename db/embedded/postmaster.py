"""Says whether a PostgreSQL serves a data directory, and clears what a killed one left behind.

PostgreSQL's own evidence is the file postmaster.pid. Its number alone proves nothing: after a reboot or in a new
container it may be another process, and a killed postmaster whose parent does not collect it stays as a zombie.
PostgreSQL takes either for a running server and refuses to start, so we look closer and remove the file.
"""

import hashlib
import os
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    import psutil

log = structlog.get_logger(__name__)

PORT = 5432  # names the socket file; there is no TCP port
SOCKET_NAME = f".s.PGSQL.{PORT}"

# Line numbers of postmaster.pid, from 0 (src/include/utils/pidfile.h).
PID_LINE, SOCKET_DIR_LINE, STATUS_LINE = 0, 4, 7

ORPHANS_LEAVE_S = 5.0
ORPHANS_QUIT_S = 5.0
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Postmaster:
    """A running PostgreSQL."""

    pid: int | None
    """None: it answers on its socket, but from a process namespace (a container) that we cannot see into."""
    socket_dir: Path | None
    """None early in its start."""
    is_ready: bool
    """Whether it accepts connections."""


def label(cluster: Path) -> str:
    """Returns the cluster_name that marks the processes of `cluster` in their titles."""
    return "memory-" + hashlib.sha256(os.fsencode(cluster)).hexdigest()[:12]


def find(cluster: Path) -> Postmaster | None:
    """Returns the PostgreSQL that serves `cluster`, or None."""
    lines = _read_lines(cluster)
    pid = _number(lines, PID_LINE)
    if pid is None:
        return None
    socket_dir = Path(lines[SOCKET_DIR_LINE]) if len(lines) > SOCKET_DIR_LINE and lines[SOCKET_DIR_LINE] else None
    if _is_of(pid, cluster):
        is_ready = len(lines) > STATUS_LINE and lines[STATUS_LINE] == "ready"
        return Postmaster(pid, socket_dir, is_ready=is_ready and socket_dir is not None)
    if socket_dir is not None and _accepts(socket_dir / SOCKET_NAME):
        return Postmaster(None, socket_dir, is_ready=True)
    return None


def clear_remains(cluster: Path, socket_dir: Path) -> None:
    """Ends the orphans of a killed postmaster and removes its lock files; call it only after `find` said None.

    The orphans leave by themselves when they notice, between two statements; one in the middle of a long
    computation does not, and PostgreSQL starts only when the last has gone.
    """
    _end_orphans(cluster)
    for lock_file in (cluster / "postmaster.pid", socket_dir / f"{SOCKET_NAME}.lock"):
        with suppress(FileNotFoundError):
            lock_file.unlink()
            log.info("embedded_postgres_stale_file_removed", file=str(lock_file))


def _read_lines(cluster: Path) -> list[str]:
    try:
        return [line.strip() for line in (cluster / "postmaster.pid").read_text().splitlines()]
    except FileNotFoundError:
        return []


def _number(lines: list[str], line: int) -> int | None:
    with suppress(ValueError, IndexError):
        return abs(int(lines[line]))  # negative: a single-user backend
    return None


def _is_of(pid: int, cluster: Path) -> bool:
    """Returns whether `pid` is a living PostgreSQL process of `cluster`."""
    import psutil  # noqa: PLC0415 - comes with the `embedded` extra

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            _collect(pid)
            return False
        return _belongs(process, cluster)
    except (psutil.NoSuchProcess, FileNotFoundError):  # one that is ending has let go of its folder
        return False


def _belongs(process: "psutil.Process", cluster: Path) -> bool:
    """Returns whether `process` is a PostgreSQL of `cluster`.

    PostgreSQL insists on owning its data directory and makes it its working directory. Where the system hides that
    (root in a container may not look into other accounts' processes), the command line tells: `-D <cluster>` for
    the postmaster, our label in the others' titles.
    """
    import psutil  # noqa: PLC0415 - as above

    if process.name() != "postgres" or process.uids().effective != cluster.stat().st_uid:
        return False
    try:
        return Path(process.cwd()) == cluster
    except psutil.AccessDenied:
        command = process.cmdline()
        return str(cluster) in command or any(label(cluster) in part for part in command)


def _collect(pid: int) -> None:
    """Collects the zombie `pid` where it is our child: we adopt orphans when we are process 1 of a container."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1.0)
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def _end_orphans(cluster: Path) -> None:
    for patience_s, next_signal in ((ORPHANS_LEAVE_S, signal.SIGQUIT), (ORPHANS_QUIT_S, signal.SIGKILL)):
        if not _wait_for_orphans(cluster, patience_s):
            return
        for process in _processes_of(cluster):
            log.warning("embedded_postgres_orphan_signalled", pid=process.pid, signal=next_signal.name)
            _signal(process, next_signal)
    _wait_for_orphans(cluster, ORPHANS_QUIT_S)


def _wait_for_orphans(cluster: Path, patience_s: float) -> bool:
    """Waits until no process of `cluster` is left; returns whether some still are."""
    deadline = time.monotonic() + patience_s
    while _processes_of(cluster):
        if time.monotonic() > deadline:
            return True
        time.sleep(POLL_S)
    return False


def _processes_of(cluster: Path) -> "list[psutil.Process]":
    import psutil  # noqa: PLC0415 - as above

    return [process for process in psutil.process_iter() if _is_of(process.pid, cluster)]


def _signal(process: "psutil.Process", number: signal.Signals) -> None:
    import psutil  # noqa: PLC0415 - as above

    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)
