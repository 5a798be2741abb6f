"""The database goes and comes back: the probe notices, health tells, and the embedded one is started again."""

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import psutil
import psycopg
import pytest
from structlog.testing import capture_logs

from db import migrate, revisions
from db.embedded import EmbeddedPostgres
from db.errors import DatabaseError, DatabaseUnavailable, SchemaMismatch
from db.probe import Probe
from db.schema import EmbeddingSpace
from memory_service.failures import CUT_OFF
from memory_service.monitor import DatabaseMonitor
from memory_service.v1 import memory_pb2 as pb
from tests.fix_database import DIMENSIONS, FAST, MODEL
from tests.fix_server import ServerProcess, StartServer


def wait_for(condition: Callable[[], bool], *, within_s: float) -> float:
    """Returns after how many seconds `condition` came true; fails the test if it does not in time."""
    started_at = time.monotonic()
    while not condition():
        assert time.monotonic() - started_at < within_s
        time.sleep(0.02)
    return time.monotonic() - started_at


@pytest.fixture
def probe(database_url: str) -> Iterator[Probe]:
    """A probe of a migrated database, which has asked once."""
    probe = Probe(database_url, revision=revisions.head())
    probe.check()
    yield probe
    probe.close()


def sessions_of_probes(database_url: str, column: str) -> list[int]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        rows = connection.execute(
            f"SELECT {column} FROM pg_stat_activity"  # noqa: S608 - the test's own words
            " WHERE application_name = 'memory-service health' AND datname = current_database()"
        )
        return [row[0] for row in rows]


def test_a_lost_session_is_replaced_within_one_check(probe: Probe, database_url: str) -> None:
    [pid] = sessions_of_probes(database_url, "pid")
    assert sessions_of_probes(database_url, "pg_terminate_backend(pid)") == [True]
    wait_for(lambda: not psutil.pid_exists(pid), within_s=5)
    probe.check()
    assert sessions_of_probes(database_url, "pid") != [pid]


def test_a_frozen_server_is_noticed_in_time(probe: Probe, database_url: str) -> None:
    [pid] = sessions_of_probes(database_url, "pid")
    os.kill(pid, signal.SIGSTOP)
    try:
        started_at = time.monotonic()
        with pytest.raises(DatabaseUnavailable, match="did not answer within 1 s"):
            probe.check()
        assert time.monotonic() - started_at < 2
    finally:
        os.kill(pid, signal.SIGCONT)
    probe.check()


def test_a_database_that_takes_no_writes_is_not_available(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    probe = Probe(database_url, revision=revisions.head())
    with pytest.raises(DatabaseUnavailable, match="does not accept writes"):
        probe.check()
    probe.close()


@pytest.mark.parametrize(("revision", "will_do"), [("0000", False), ("9999", True), ("elsewhere", False)])
def test_an_older_schema_will_not_do_and_a_newer_one_will(
    probe: Probe, database_url: str, revision: str, *, will_do: bool
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE alembic_version SET version_num = %s", [revision])
    if will_do:
        probe.check()
    else:
        with pytest.raises(SchemaMismatch, match="memory-service migrate"):
            probe.check()


def test_a_database_without_schema_will_not_do(empty_database_url: str) -> None:
    probe = Probe(empty_database_url, revision=revisions.head())
    with pytest.raises(SchemaMismatch, match="memory-service migrate"):
        probe.check()
    probe.close()


def test_a_server_that_is_not_there_is_not_available(tmp_path: Path) -> None:
    probe = Probe(f"host={tmp_path} dbname=memory user=nobody password=hunter2", revision="0001")
    with pytest.raises(DatabaseUnavailable) as caught:
        probe.check()
    assert "hunter2" not in str(caught.value)


class Switch:
    """A check that fails while it is off."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def __call__(self) -> None:
        """Raises while it is off."""
        if self.error is not None:
            raise self.error


def test_a_monitor_reports_changes_and_brings_back() -> None:
    switch, reports, restarted = Switch(), list[bool](), threading.Event()

    def bring_back() -> None:
        assert reports[-1] is False, "NOT_SERVING has to come first: this may take long"
        restarted.set()
        switch.error = None

    monitor = DatabaseMonitor(switch, report=reports.append, on_down=bring_back)
    with capture_logs() as events:
        monitor.start()
        assert reports == [True]
        switch.error = DatabaseUnavailable("gone")
        assert restarted.wait(3)
        wait_for(lambda: len(reports) == 3, within_s=3)
        monitor.close()
    assert reports == [True, False, True]
    assert [event["event"] for event in events] == ["database_down", "database_back"]


@pytest.mark.parametrize("error", [DatabaseError("no"), ZeroDivisionError()], ids=repr)
def test_a_monitor_outlives_failures_of_the_check_and_of_bringing_back(error: Exception) -> None:
    switch, reports, attempts = Switch(), list[bool](), list[int]()

    def fail() -> None:
        attempts.append(1)
        raise OSError

    switch.error = error
    monitor = DatabaseMonitor(switch, report=reports.append, on_down=fail)
    with capture_logs():
        monitor.start()
        wait_for(lambda: len(attempts) >= 2, within_s=4)
        switch.error = None
        wait_for(lambda: reports == [False, True], within_s=3)
        monitor.close()


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A folder that PostgreSQL's own account can reach."""
    with tempfile.TemporaryDirectory(prefix="memory-service-tests-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def get_stats(server: ServerProcess) -> grpc.StatusCode:
    try:
        server.stub.GetStats(pb.GetStatsRequest(user_id="u"), timeout=5)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.long
def test_health_follows_a_database_that_goes_and_comes_back(start_server: StartServer, data_dir: Path) -> None:
    postgres = EmbeddedPostgres.start(data_dir, settings=FAST)
    try:
        migrate.upgrade(postgres.url, EmbeddingSpace(MODEL, DIMENSIONS))
        server = start_server(database_url=postgres.url)
        assert server.health() == "SERVING"

        postgres.close()
        wait_for(lambda: server.health() == "NOT_SERVING", within_s=3)
        assert server.health("memory_service.v1.MemoryService") == "NOT_SERVING"
        assert server.health("liveness") == "SERVING"
        assert get_stats(server) is grpc.StatusCode.UNAVAILABLE

        postgres = EmbeddedPostgres.start(data_dir, settings=FAST)
        wait_for(lambda: server.health() == "SERVING", within_s=3)
        wait_for(lambda: get_stats(server) is grpc.StatusCode.OK, within_s=5)
    finally:
        postgres.close()


@pytest.mark.long
def test_the_embedded_database_is_started_again_when_it_is_killed(start_server: StartServer, data_dir: Path) -> None:
    server = start_server(data_dir=data_dir)
    assert get_stats(server) is grpc.StatusCode.OK
    pid = server.log.wait_for("embedded_postgres_running")["pid"]

    os.kill(pid, signal.SIGKILL)

    server.log.wait_for("database_down", timeout_s=5)
    server.log.wait_for("database_back", timeout_s=20)
    assert server.log.wait_for("embedded_postgres_running", count=2)["pid"] != pid
    assert server.health() == "SERVING"
    wait_for(lambda: get_stats(server) is grpc.StatusCode.OK, within_s=5)
    assert server.stop() == 0
    assert server.log.wait_for("embedded_postgres_stopped")


@pytest.mark.long
def test_a_call_that_hangs_in_a_frozen_database_does_not_keep_the_process(
    start_server: StartServer, data_dir: Path
) -> None:
    with EmbeddedPostgres.start(data_dir, settings=FAST) as postgres:
        migrate.upgrade(postgres.url, EmbeddingSpace(MODEL, DIMENSIONS))
        server = start_server(database_url=postgres.url, drain_grace_s=0.2)
        get_stats(server)
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            rows = connection.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'memory-service'")
            pids = [pid for [pid] in rows]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            call = server.stub.GetStats.future(pb.GetStatsRequest(user_id="u"))
            time.sleep(0.5)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(20) == CUT_OFF
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        assert server.log.wait_for("calls_do_not_end")["calls"] == 1
        assert not call.done() or call.code() is not grpc.StatusCode.OK
