"""A thread that does something every so often, or when it is woken, until it is closed, whatever goes wrong."""

import threading
from collections.abc import Callable
from typing import Self

import structlog

from db.errors import DatabaseError

log = structlog.get_logger(__name__)

# How long closing waits for a run under way, and for one that writes what is left.
RUN_S, FINAL_RUN_S = 3.0, 10.0


class PeriodicThread:
    """Runs `task` every `interval_s` seconds; `close` runs it a last time where `final_run` says so."""

    def __init__(self, name: str, task: Callable[[], object], *, interval_s: float, final_run: bool = False) -> None:
        self._name = name
        self._task = task
        self._interval_s = interval_s
        self._final_run = final_run
        self._closing = threading.Event()
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)

    def start(self) -> Self:
        """Starts the thread."""
        self._thread.start()
        return self

    def wake(self) -> None:
        """Runs the task now, or once more after a run under way. Never blocks."""
        self._woken.set()

    def close(self) -> None:
        """Ends the thread, waiting for a run under way, though not for ever: a frozen database never answers it."""
        self._closing.set()
        self._woken.set()
        self._thread.join(FINAL_RUN_S if self._final_run else RUN_S)
        if self._thread.is_alive():
            log.warning("periodic_task_does_not_end", task=self._name)

    def _loop(self) -> None:
        while True:
            self._woken.wait(self._interval_s)
            # In this order: who closes in between wakes the next wait.
            self._woken.clear()
            if self._closing.is_set():
                break
            self._run()
        if self._final_run:
            self._run()

    def _run(self) -> None:
        try:
            self._task()
        except DatabaseError as error:
            log.warning("periodic_task_failed", task=self._name, error=str(error))
        except Exception:  # the thread outlives a defect in one run
            log.exception("periodic_task_failed", task=self._name)
