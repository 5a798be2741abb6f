"""The embedded PostgreSQL: one server a data directory, whoever starts it and however processes end."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest

from db.embedded import EmbeddedPostgres, EmbeddedPostgresError, postmaster
from tests.fix_database import FAST
from tests.storage.concurrency import wait_for
from tests.storage.embedded_calls import kill_postmaster, pid_of, query

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


def test_ctrl_c_does_not_reach_it(data_dir: Path) -> None:
    with EmbeddedPostgres.start(data_dir, settings=FAST):
        assert os.getsid(pid_of(data_dir)) != os.getsid(0)


def test_after_close_it_is_not_started_again(data_dir: Path) -> None:
    postgres = EmbeddedPostgres.start(data_dir, settings=FAST)
    postgres.close()
    with pytest.raises(EmbeddedPostgresError, match="was closed"):
        postgres.ensure_running()
    assert not postgres.is_running()
