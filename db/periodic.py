"""A thread that does something every so often until it is closed, whatever goes wrong in between."""

import threading
from collections.abc import Callable
from typing import Self

import structlog

from db.errors import DatabaseError

log = structlog.get_logger(__name__)


class PeriodicThread:
    """Runs `task` every `interval_s` seconds; `close` runs it a last time where `final_run` says so."""

    def __init__(self, name: str, task: Callable[[], object], *, interval_s: float, final_run: bool = False) -> None:
        self._name = name
        self._task = task
        self._interval_s = interval_s
        self._final_run = final_run
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)

    def start(self) -> Self:
        """Starts the thread."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Ends the thread, waiting for a run under way."""
        self._closing.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._closing.wait(self._interval_s):
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
