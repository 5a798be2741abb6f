"""A pid file says nothing by itself: whom the embedded PostgreSQL takes for its server, and whom it leaves alone."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from db.embedded import EmbeddedPostgres, postmaster
from tests.fix_database import FAST
from tests.storage.concurrency import wait_for
from tests.storage.embedded_calls import IS_ROOT, query


@pytest.fixture
def sleeper(data_dir: Path) -> Iterator[Callable[[], int]]:
    """Starts processes of the account that owns the data: a number PostgreSQL itself would take for a server's."""
    processes: list[subprocess.Popen[bytes]] = []

    def start() -> int:
        owner = (data_dir / "postgres").stat().st_uid
        options = {"user": owner} if IS_ROOT else {}
        processes.append(subprocess.Popen(["sleep", "60"], **options))  # type: ignore[call-overload] # noqa: S607 - kwargs by name
        return processes[-1].pid

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_a_pid_file_naming_a_stranger_is_removed(data_dir: Path, sleeper: Callable[[], int]) -> None:
    EmbeddedPostgres.start(data_dir, settings=FAST).close()
    stranger = sleeper()
    write_pid_files(data_dir, stranger)
    with EmbeddedPostgres.start(data_dir, settings=FAST) as postgres:
        assert query(postgres.url, "SELECT 1") == 1
    assert psutil.Process(stranger).is_running()


def test_a_pid_file_naming_a_zombie_is_removed(data_dir: Path, sleeper: Callable[[], int]) -> None:
    EmbeddedPostgres.start(data_dir, settings=FAST).close()
    zombie = sleeper()
    os.kill(zombie, signal.SIGKILL)
    wait_for(lambda: psutil.Process(zombie).status() == psutil.STATUS_ZOMBIE)
    write_pid_files(data_dir, zombie)
    with EmbeddedPostgres.start(data_dir, settings=FAST) as postgres:
        assert query(postgres.url, "SELECT 1") == 1


def test_a_process_that_is_ending_is_no_server(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(process: psutil.Process) -> str:
        raise FileNotFoundError(2, "No such file or directory", f"/proc/{process.pid}/cwd")

    with EmbeddedPostgres.start(data_dir, settings=FAST), monkeypatch.context() as patched:
        patched.setattr(psutil.Process, "cwd", gone)
        found = postmaster.find(data_dir / "postgres")
        assert found is not None
        assert found.pid is None  # whoever answers on the socket, it is not this process


def test_a_pid_file_naming_the_postgres_of_other_data_is_removed(data_dir: Path, postgres: EmbeddedPostgres) -> None:
    EmbeddedPostgres.start(data_dir, settings=FAST).close()
    other = query(postgres.database_url("postgres"), "SELECT pg_read_file('postmaster.pid')")
    write_pid_files(data_dir, int(str(other).splitlines()[0]))
    with EmbeddedPostgres.start(data_dir, settings=FAST) as mine:
        assert query(mine.url, "SHOW data_directory") == str(data_dir / "postgres")
    assert postgres.is_running()


@pytest.mark.parametrize("content", ["", "nonsense\n"])
def test_a_damaged_pid_file_is_removed(data_dir: Path, content: str) -> None:
    EmbeddedPostgres.start(data_dir, settings=FAST).close()
    (data_dir / "postgres" / "postmaster.pid").write_text(content)
    with EmbeddedPostgres.start(data_dir, settings=FAST) as postgres:
        assert query(postgres.url, "SELECT 1") == 1


def write_pid_files(data_dir: Path, pid: int) -> None:
    cluster = data_dir / "postgres"
    lines = [pid, cluster, int(time.time()), 5432, cluster, "", "  1234567    98765", "ready   "]
    (cluster / "postmaster.pid").write_text("\n".join(map(str, lines)) + "\n")
    (cluster / ".s.PGSQL.5432.lock").write_text(f"{pid}\n")


def test_a_server_in_another_process_namespace_is_attached_to_and_left_alone(data_dir: Path) -> None:
    with EmbeddedPostgres.start(data_dir, settings=FAST):
        pid_file = data_dir / "postgres" / "postmaster.pid"
        seen_from_outside = pid_file.read_text()
        # What a container sharing the folder sees: a number that is nobody or somebody else, and a socket that answers.
        pid_file.write_text(str(os.getpid()) + seen_from_outside[seen_from_outside.index("\n") :])
        assert postmaster.find(data_dir / "postgres") == postmaster.Postmaster(
            None, data_dir / "postgres", is_ready=True
        )
        with EmbeddedPostgres.start(data_dir) as attached:
            assert query(attached.url, "SELECT 1") == 1
        pid_file.write_text(seen_from_outside)
