"""A line that shows how far a transfer has come, redrawn in place on a terminal and left out elsewhere."""

import time
from collections.abc import Callable
from typing import TextIO

from memory_service.text_table import minutes

REDRAW_S = 0.1
CLEAR = "\r\x1b[K"


class Progress:
    """Shows a count and, where the total is known, a share and the time left; `say` writes lines above it."""

    def __init__(
        self, stream: TextIO, *, total: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self.total = total
        """What the position will be in the end; None as long as nobody knows."""
        self._clock = clock
        self._shown = stream.isatty()
        self._started_at = clock()
        self._drawn_at = 0.0
        self._line = ""

    @property
    def elapsed_s(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self._started_at

    def update(self, *, position: int, count: int) -> None:
        """Shows that `count` memories are done, and `position` of the total."""
        if not self._shown or self._clock() - self._drawn_at < REDRAW_S:
            return
        self._drawn_at = self._clock()
        self._line = self._describe(position, count)
        self._stream.write(CLEAR + self._line)
        self._stream.flush()

    def say(self, message: str) -> None:
        """Writes a line of its own."""
        self._stream.write(f"{CLEAR if self._line else ''}{message}\n{self._line}")
        self._stream.flush()

    def close(self) -> None:
        """Takes the line away."""
        if self._line:
            self._stream.write(CLEAR)
            self._stream.flush()
            self._line = ""

    def _describe(self, position: int, count: int) -> str:
        elapsed_s = max(self.elapsed_s, 1e-6)
        done = f"{count:,} memories, {count / elapsed_s:,.0f}/s"
        if not self.total or not position:
            return done
        share = min(1.0, position / self.total)
        return f"{share:4.0%}  {done}, {minutes(elapsed_s * (1 - share) / share)} left"
