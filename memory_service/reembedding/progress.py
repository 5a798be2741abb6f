"""How far a back-fill is: a bar with rate and time left on a terminal, a line of the log now and then elsewhere."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TextIO

import structlog

from memory_service.bulk.progress import CLEAR, REDRAW_S
from memory_service.index_progress import LOG_EVERY_S, bar_of
from memory_service.text_table import minutes

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Meter:
    """Counts memories, and tells what follows from that."""

    total: int
    """How many there are."""
    done: int
    """How many of them were done before, or are by now."""
    clock: Callable[[], float] = time.monotonic
    _done_before: int = field(init=False)
    _started_at: float = field(init=False)

    def __post_init__(self) -> None:
        self._done_before = self.done
        self._started_at = self.clock()

    def add(self, count: int) -> None:
        """Counts so many more; memories written meanwhile make the total grow."""
        self.done += count
        self.total = max(self.total, self.done)

    @property
    def share(self) -> float:
        """Which part is done, 0 to 1."""
        return self.done / self.total if self.total else 1.0

    @property
    def rate(self) -> float:
        """Memories a second since the beginning."""
        return (self.done - self._done_before) / max(self.clock() - self._started_at, 1e-6)

    @property
    def left_s(self) -> float | None:
        """The seconds left at this rate; None as long as nobody knows."""
        return (self.total - self.done) / self.rate if self.rate else None


class View(Protocol):
    """Where progress is shown."""

    def show(self, meter: Meter) -> None:
        """Shows how far it is."""

    def end(self) -> None:
        """Clears up."""


class Bar:
    """One line of a terminal, written over and over."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._drawn_at = 0.0

    def show(self, meter: Meter) -> None:
        """Draws the bar anew, ten times a second at most."""
        if meter.clock() - self._drawn_at < REDRAW_S:
            return
        self._drawn_at = meter.clock()
        left = "" if meter.left_s is None else f", {minutes(meter.left_s)} left"
        self._stream.write(
            f"{CLEAR}{bar_of(meter.share)}  {meter.done:,} of {meter.total:,} memories, {meter.rate:,.0f}/s{left}"
        )
        self._stream.flush()

    def end(self) -> None:
        """Clears the line."""
        self._stream.write(CLEAR)
        self._stream.flush()


class Log:
    """The log: a line every few seconds."""

    def __init__(self) -> None:
        self._said_at = 0.0

    def show(self, meter: Meter) -> None:
        """Logs how far it is, if that was long ago."""
        now = meter.clock()
        if now - self._said_at < LOG_EVERY_S:
            return
        self._said_at = now
        log.info(
            "reembedding_progress",
            done=meter.done,
            total=meter.total,
            percent=round(100 * meter.share),
            per_second=round(meter.rate),
            left_s=None if meter.left_s is None else round(meter.left_s),
        )

    def end(self) -> None:
        """Has nothing to clear."""


def view_on(stream: TextIO) -> View:
    """Returns the view that suits the stream."""
    return Bar(stream) if stream.isatty() else Log()
