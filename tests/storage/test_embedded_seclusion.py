"""Who reaches the embedded PostgreSQL: its own account, through a private folder. Its log tells no data."""

import os
import pwd
import socket
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import psycopg
import pytest

from db.embedded import EmbeddedPostgres, EmbeddedPostgresError, account, socket_dir
from tests.fix_database import FAST
from tests.storage.embedded_calls import IS_ROOT, kill_postmaster, pid_of, query


def test_users_data_stay_out_of_the_log(data_dir: Path) -> None:
    with EmbeddedPostgres.start(data_dir, settings=FAST) as postgres:
        query(postgres.url, "CREATE TABLE secrets (secret text PRIMARY KEY)")
        query(postgres.url, "INSERT INTO secrets VALUES ('xyzzy')")
        with pytest.raises(psycopg.errors.UniqueViolation):
            query(postgres.url, "INSERT INTO secrets VALUES ('xyzzy')")
    # Read after the stop: the process that writes the log is a little behind.
    logged = "".join(path.read_text() for path in (data_dir / "postgres" / "log").iterdir())
    assert "duplicate key value" in logged
    assert "xyzzy" not in logged


def test_only_its_account_reaches_the_socket(data_dir: Path) -> None:
    with EmbeddedPostgres.start(data_dir, settings=FAST) as postgres:
        cluster = data_dir / "postgres"
        assert stat.S_IMODE(cluster.stat().st_mode) == 0o700
        assert stat.S_IMODE((cluster / ".s.PGSQL.5432").stat().st_mode) == 0o700
        assert query(postgres.url, "SELECT count(*) FROM pg_hba_file_rules WHERE type <> 'local'") != 0
        with socket.socket() as client, pytest.raises(ConnectionRefusedError):
            client.connect(("127.0.0.1", 5432))


@pytest.fixture
def long_data_dir(empty_data_dir: Path) -> Path:
    """A data directory whose path is too long for a socket, and that has the characters URLs and settings mind."""
    return empty_data_dir / ("a, 'b' & 100% " + "x" * 100)


def test_a_path_too_long_for_a_socket_gets_a_private_folder(long_data_dir: Path) -> None:
    with EmbeddedPostgres.start(long_data_dir, settings=FAST) as postgres:
        folder = Path(str(query(postgres.url, "SHOW unix_socket_directories")).strip('"'))
        assert folder.parent == Path("/tmp")  # noqa: S108 - the place chosen
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert folder.stat().st_uid == (long_data_dir / "postgres").stat().st_uid
        kill_postmaster(postgres, long_data_dir)
        postgres.ensure_running()
        assert query(postgres.url, "SELECT 1") == 1
    assert not folder.exists()


def test_a_socket_folder_open_to_others_is_refused(long_data_dir: Path) -> None:
    folder = socket_dir.choose_socket_dir(
        long_data_dir / "postgres", account.choose(long_data_dir / "postgres", long_data_dir)
    )
    folder.mkdir(mode=0o700)
    folder.chmod(0o777)
    try:
        with pytest.raises(EmbeddedPostgresError, match="MEMORY_DATA_DIR to a shorter path"):
            EmbeddedPostgres.start(long_data_dir, settings=FAST)
    finally:
        folder.rmdir()


@pytest.mark.skipif(not IS_ROOT, reason="only root may choose another account")
def test_root_runs_it_as_the_owner_of_the_data(empty_data_dir: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    os.chown(empty_data_dir, nobody.pw_uid, nobody.pw_gid)
    with EmbeddedPostgres.start(empty_data_dir, settings=FAST) as postgres:
        server = psutil.Process(pid_of(empty_data_dir))
        assert server.uids().effective == nobody.pw_uid
        assert 0 not in {server.gids().effective, *psutil_groups(server)}
        assert (empty_data_dir / "lock").stat().st_uid == nobody.pw_uid
        assert query(postgres.url, "SELECT 1") == 1


def psutil_groups(process: psutil.Process) -> set[int]:
    status = Path(f"/proc/{process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("Groups:"))
    return {int(group) for group in line.split()[1:]}


@pytest.mark.skipif(not IS_ROOT, reason="only root may become another account")
def test_another_account_can_neither_connect_nor_start(data_dir: Path) -> None:
    with EmbeddedPostgres.start(data_dir, settings=FAST) as postgres:
        assert "Permission denied" in as_nobody(f"import psycopg; psycopg.connect({postgres.url!r})")
    said = as_nobody(
        f"from db.embedded import EmbeddedPostgres as E; from pathlib import Path as P; E.start(P('{data_dir}'))"
    )
    assert "belongs to another user" in said


@pytest.mark.skipif(not IS_ROOT, reason="only root may become an account that permissions hold for")
def test_a_folder_of_ones_own_that_cannot_be_written_is_no_other_s(empty_data_dir: Path) -> None:
    os.chown(empty_data_dir, pwd.getpwnam("nobody").pw_uid, -1)
    empty_data_dir.chmod(0o500)
    said = as_nobody(
        f"from db.embedded import EmbeddedPostgres as E; from pathlib import Path as P; E.start(P('{empty_data_dir}'))"
    )
    assert "the folder's mode is 0500; set MEMORY_DATA_DIR to another folder, or chmod u+rwx" in said


def as_nobody(code: str) -> str:
    """Runs Python code as nobody, in a process that has imported what it needs while it was root."""
    nobody = pwd.getpwnam("nobody")
    drop = (
        f"import os, psycopg, db.embedded; os.setgroups([]); os.setgid({nobody.pw_gid}); os.setuid({nobody.pw_uid}); "
    )
    done = subprocess.run([sys.executable, "-c", drop + code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    return done.stderr
