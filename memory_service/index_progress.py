"""Showing how far the build of an index is: a bar that moves on a terminal, lines of the log elsewhere."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Protocol, TextIO

import structlog

from db.ann_catalog import BuildProgress

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 0.25
LOG_EVERY_S = 10.0
CANCEL_EVERY_S = 0.2
BAR_WIDTH = 30


class View(Protocol):
    """Where progress is shown."""

    def show(self, progress: BuildProgress) -> None:
        """Shows how far it is."""

    def end(self) -> None:
        """Clears up."""


class Bar:
    """One line of a terminal, written over and over."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream = stream
        self._name = name
        self._width = 0

    def show(self, progress: BuildProgress) -> None:
        """Shows the phase, and a bar where its length is known."""
        text = f"{self._name}  {progress.phase}"
        if (share := share_of(progress)) is not None:
            text += f"  {bar_of(share)}"
        self._write(text)

    def end(self) -> None:
        """Clears the line."""
        self._write("")
        self._stream.write("\r")
        self._stream.flush()

    def _write(self, text: str) -> None:
        self._stream.write("\r" + text.ljust(self._width))
        self._stream.flush()
        self._width = len(text)


class Log:
    """The log: a line for each phase, and one every few seconds of a long one."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._phase = ""
        self._said_at = 0.0

    def show(self, progress: BuildProgress) -> None:
        """Logs the phase, and how much of it is done where that is known."""
        now = time.monotonic()
        if progress.phase == self._phase and now - self._said_at < LOG_EVERY_S:
            return
        self._phase, self._said_at = progress.phase, now
        share = share_of(progress)
        percent = None if share is None else round(100 * share)
        log.info("ann_index_progress", index=self._name, phase=progress.phase, percent=percent)

    def end(self) -> None:
        """Has nothing to clear."""


def bar_of(share: float) -> str:
    """Returns a bar of which this share, 0 to 1, is filled, with the share in percent."""
    filled = round(share * BAR_WIDTH)
    return f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {share:4.0%}"


def share_of(progress: BuildProgress) -> float | None:
    """Returns which part of the phase is done, None where nobody knows."""
    return min(1.0, progress.done / progress.total) if progress.total else None


def follow(
    work: Callable[[], None], *, look: Callable[[], BuildProgress | None], view: View, cancel: Callable[[], None]
) -> None:
    """Runs `work` on a thread of its own and shows how far it is until it ends; raises what it raises.

    Interrupted (Ctrl-C), it has `cancel` end the work and waits for that.
    """
    over = threading.Event()
    with ThreadPoolExecutor(1, thread_name_prefix="index-build") as threads:
        future = threads.submit(work)
        future.add_done_callback(lambda _: over.set())
        try:
            while not wait([future], LOOK_EVERY_S).done:
                if (progress := look()) is not None:
                    view.show(progress)
        except BaseException:
            cancel()
            while not over.wait(CANCEL_EVERY_S):  # a request between two statements stops neither
                cancel()
            raise
        finally:
            view.end()
        future.result()
