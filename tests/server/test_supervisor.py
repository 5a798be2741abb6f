"""Several workers: they share the port, are replaced when they die, and end with their supervisor."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import grpc
import psutil
import pytest
from structlog.testing import capture_logs

from memory_service import config, supervisor
from memory_service.failures import CUT_OFF
from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.fix_server import ServerProcess, StartServer, open_channel

# Starting two interpreters on a busy machine.
READY_LIMIT_S = 40.0


def workers_of(server: ServerProcess) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children()


def ask(server: ServerProcess) -> bool:
    """Returns whether a call over a connection of its own succeeds."""
    with open_channel(server.address) as channel:
        try:
            MemoryServiceStub(channel).GetStats(pb.GetStatsRequest(user_id="u"), timeout=5, wait_for_ready=True)
        except grpc.RpcError:
            return False
    return True


@pytest.mark.slow
def test_workers_share_a_port_and_a_dead_one_is_replaced(start_server: StartServer) -> None:
    server = start_server(workers=2)
    assert server.log.wait_for("serving")["workers"] == 2
    assert {event["listen"] for event in server.log.events("worker_ready")} == {server.address}
    assert all(ask(server) for _ in range(10))
    assert server.health() == "SERVING"

    before = workers_of(server)
    assert len(before) == 2
    before[0].kill()
    died = server.log.wait_for("worker_died")
    assert (died["pid"], died["status"]) == (before[0].pid, -signal.SIGKILL)
    server.log.wait_for("worker_ready", count=3, timeout_s=READY_LIMIT_S)
    after = workers_of(server)
    assert len(after) == 2
    assert before[1] in after
    assert all(ask(server) for _ in range(10))

    assert server.stop() == 0
    assert [event["drained"] for event in server.log.events("stopped")] == [True, True]
    assert not any(worker.is_running() for worker in after)


@pytest.mark.long
def test_workers_drain_when_their_supervisor_is_killed(start_server: StartServer) -> None:
    server = start_server(workers=2)
    workers = workers_of(server)
    server.process.kill()
    server.process.wait()
    _, alive = psutil.wait_procs(workers, timeout=15)
    assert not alive
    server.log.wait_for_end()
    assert len(server.log.events("supervisor_gone")) == 2
    assert [event["drained"] for event in server.log.events("stopped")] == [True, True]


def test_the_database_url_is_on_no_command_line(start_server: StartServer) -> None:
    server = start_server(workers=2)
    lines = [" ".join(process.cmdline()) for process in [psutil.Process(server.process.pid), *workers_of(server)]]
    assert len(lines) == 3
    assert not any("postgresql://" in line for line in lines)


def supervise(monkeypatch: pytest.MonkeyPatch, script: str, stop: threading.Event) -> int:
    """Runs a supervisor of workers that run `script`, and returns its exit status."""
    monkeypatch.setattr(supervisor, "COMMAND", (sys.executable, "-c", script))
    settings = config.load(
        listen="127.0.0.1:0",
        ops_listen="off",
        workers=2,
        embedder="none",
        embedding_dimensions=8,
        drain_grace_s=0.0,
    )
    return supervisor.Supervisor(settings, database_url="postgresql:///nowhere", stop=stop).run()


def test_it_gives_up_when_no_worker_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_DELAY_S", 0.01)
    with capture_logs() as events:
        assert supervise(monkeypatch, "raise SystemExit(3)", threading.Event()) == 1
    names = [event["event"] for event in events]
    assert names[-1] == "workers_do_not_start"
    assert names.count("worker_died") >= supervisor.MAX_FAILED_STARTS
    assert {event["status"] for event in events if event["event"] == "worker_died"} == {3}


def supervise_and_stop(monkeypatch: pytest.MonkeyPatch, on_sigterm: str, folder: Path) -> int:
    """Tells a supervisor to stop once its two workers, which take SIGTERM so, run; returns its exit status."""
    script = (
        "import os, pathlib, signal, time\n"
        f"signal.signal(signal.SIGTERM, {on_sigterm})\n"
        f"pathlib.Path({str(folder)!r}, str(os.getpid())).touch()\n"
        "time.sleep(60)\n"
    )
    stop = threading.Event()

    def stop_when_running() -> None:
        deadline_at = time.monotonic() + READY_LIMIT_S
        while len(list(folder.iterdir())) < 2 and time.monotonic() < deadline_at:
            time.sleep(0.05)
        stop.set()

    threading.Thread(target=stop_when_running).start()
    return supervise(monkeypatch, script, stop)


def test_a_worker_that_does_not_stop_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(supervisor, "STOP_MARGIN_S", 0.3)
    with capture_logs() as events:
        assert supervise_and_stop(monkeypatch, "signal.SIG_IGN", tmp_path) == 1
    killed = {event["pid"] for event in events if event["event"] == "worker_killed"}
    assert killed == {int(path.name) for path in tmp_path.iterdir()}
    assert not any(psutil.pid_exists(pid) for pid in killed)


def test_workers_told_to_stop_while_they_start_have_failed_at_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with capture_logs() as events:
        assert supervise_and_stop(monkeypatch, "signal.SIG_DFL", tmp_path) == 0
    assert not events


def test_calls_that_a_worker_cut_off_show_in_the_exit_status(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert supervise_and_stop(monkeypatch, f"lambda *_: os._exit({CUT_OFF})", tmp_path) == CUT_OFF


def test_workers_get_what_was_decided_on_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(supervisor, "FIRST_DELAY_S", 0.01)
    script = (
        "import json, os, pathlib\n"
        f"path = pathlib.Path({str(tmp_path)!r}, str(os.getpid()))\n"
        "path.write_text(json.dumps(dict(os.environ)))\n"
        "raise SystemExit(1)\n"
    )
    with capture_logs():
        supervise(monkeypatch, script, threading.Event())
    environments = [json.loads(path.read_text()) for path in tmp_path.iterdir()]
    ports = {environment["MEMORY_LISTEN"] for environment in environments}
    assert len(ports) == 1
    assert not ports.pop().endswith(":0")
    assert {environment["MEMORY_DATABASE_URL"] for environment in environments} == {"postgresql:///nowhere"}
    assert {environment["MEMORY_OPS_LISTEN"] for environment in environments} == {"off"}
    assert os.environ.get("MEMORY_DATABASE_URL") is None
