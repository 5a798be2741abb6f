"""Watching the database: asks it every second and tells when it goes and when it comes back."""

import threading
from collections.abc import Callable

import structlog

from db.errors import DatabaseError

log = structlog.get_logger(__name__)

INTERVAL_S = 1.0
# Asked more often while it is down, to be back soon after it is.
INTERVAL_WHEN_DOWN_S = 0.5


class DatabaseMonitor:
    """A thread that runs `check` and reports what changed; unlike a flapping status, `report` hears only changes."""

    def __init__(
        self,
        check: Callable[[], None],
        *,
        report: Callable[[bool], None],
        on_down: Callable[[], None] | None = None,
    ) -> None:
        """Prepares to call `check`, which raises while the database is down.

        `on_down` may bring the database back; it is called after each failed check, once that has been reported.
        """
        self._check = check
        self._report = report
        self._on_down = on_down
        self._up: bool | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="database-monitor", daemon=True)

    def start(self) -> None:
        """Asks for the first time, and then starts the thread: what is reported is true when this returns."""
        self._is_up()
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, waiting for a check under way."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def _loop(self) -> None:
        up = self._up
        while not self._closing.wait(INTERVAL_S if up else INTERVAL_WHEN_DOWN_S):
            up = self._is_up()
            if not up and self._on_down is not None and not self._closing.is_set():
                self._bring_back(self._on_down)
                up = self._is_up()

    def _is_up(self) -> bool:
        try:
            self._check()
        except Exception as error:  # a defect in the check must not leave SERVING standing
            if self._up is not False:
                log.exception("database_down", error=str(error), exc_info=not isinstance(error, DatabaseError))
            self._changed(up=False)
            return False
        if self._up is False:
            log.info("database_back")
        self._changed(up=True)
        return True

    def _changed(self, *, up: bool) -> None:
        if up != self._up:
            self._up = up
            self._report(up)

    def _bring_back(self, on_down: Callable[[], None]) -> None:
        try:
            on_down()
        except Exception:  # it will be tried again: the thread outlives a failed attempt
            log.exception("database_restart_failed")
