"""A periodic thread: it goes on whatever its task raises, and ends when told to."""

import threading

import pytest
import structlog

from db.errors import DatabaseUnavailable
from db.periodic import PeriodicThread
from tests.storage.concurrency import LIMIT_S, wait_for


class Task:
    """Counts its runs, and raises what it is told to."""

    def __init__(self, *errors: Exception) -> None:
        self.runs = 0
        self._errors = list(errors)

    def __call__(self) -> None:
        """Runs once."""
        self.runs += 1
        if self._errors:
            raise self._errors.pop(0)


def test_runs_until_closed() -> None:
    task = Task()
    thread = PeriodicThread("test", task, interval_s=0.001).start()
    wait_for(lambda: task.runs >= 3)
    thread.close()
    runs = task.runs
    thread.close()
    assert task.runs == runs
    assert not [one for one in threading.enumerate() if one.name == "test"]


def test_a_woken_thread_runs_now_and_once_more_after_a_run_under_way() -> None:
    started, release = threading.Event(), threading.Event()
    runs: list[bool] = []

    def task() -> None:
        started.set()
        runs.append(release.wait(LIMIT_S))

    thread = PeriodicThread("test", task, interval_s=3_600).start()
    thread.wake()
    assert started.wait(LIMIT_S)
    thread.wake()
    thread.wake()
    release.set()
    wait_for(lambda: len(runs) == 2)
    thread.close()
    assert runs == [True, True]


@pytest.mark.parametrize(("final_run", "runs"), [(True, 1), (False, 0)])
def test_last_run_on_close(*, final_run: bool, runs: int) -> None:
    task = Task()
    thread = PeriodicThread("test", task, interval_s=3_600, final_run=final_run).start()
    thread.close()
    assert task.runs == runs


def test_close_waits_for_a_run_under_way() -> None:
    started, release = threading.Event(), threading.Event()
    ended: list[bool] = []

    def task() -> None:
        started.set()
        ended.append(release.wait(LIMIT_S))

    thread = PeriodicThread("test", task, interval_s=0.001).start()
    assert started.wait(LIMIT_S)
    threading.Timer(0.05, release.set).start()
    thread.close()
    assert all(ended)
    assert ended


def test_errors_are_logged_and_survived() -> None:
    task = Task(DatabaseUnavailable("it is down"), ZeroDivisionError("a defect"))
    with structlog.testing.capture_logs() as events:
        thread = PeriodicThread("test", task, interval_s=0.001).start()
        wait_for(lambda: task.runs >= 3)
        thread.close()
    assert events == [
        {"event": "periodic_task_failed", "task": "test", "error": "it is down", "log_level": "warning"},
        {"event": "periodic_task_failed", "task": "test", "exc_info": True, "log_level": "error"},
    ]
