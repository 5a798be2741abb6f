"""How many calls are being worked on: what a drain waits for."""

import threading
from types import TracebackType
from typing import Self


class CallsInFlight:
    """Counts the calls being worked on; entered and left by each."""

    def __init__(self) -> None:
        # Entering the condition itself takes three times as long.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._count = 0

    def __enter__(self) -> Self:
        with self._lock:
            self._count += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._count -= 1
            if not self._count:
                self._changed.notify_all()

    @property
    def count(self) -> int:
        """How many there are now."""
        return self._count

    def wait_for_none(self, *, timeout_s: float) -> bool:
        """Waits until there is none; returns whether that came true in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._count, timeout_s)
