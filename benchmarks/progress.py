"""Says how far something is: a bar on a terminal, now and then a line elsewhere."""

import sys
import time

WIDTH = 30
REDRAW_S = 0.1
LINE_S = 10.0


class Progress:
    """Counts towards `total`."""

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._drawn_at = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def advance(self, count: int = 1) -> None:
        """Counts on; a bar is removed at the end."""
        self._done += count
        now = time.monotonic()
        if self._terminal and self._done >= self._total:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
        elif now - self._drawn_at > (REDRAW_S if self._terminal else LINE_S):
            self._drawn_at = now
            sys.stderr.write(f"\r{self}" if self._terminal else f"{self}\n")
            sys.stderr.flush()

    def __str__(self) -> str:
        filled = WIDTH * self._done // max(1, self._total)
        return f"  {self._what} [{'#' * filled}{'.' * (WIDTH - filled)}] {self._done:,} of {self._total:,}"


def say(line: str) -> None:
    """Writes a line for whoever watches the run."""
    sys.stderr.write(f"  {line}\n")
    sys.stderr.flush()
