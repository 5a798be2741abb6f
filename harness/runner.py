"""Runs the parts of a run one after the other, keeps what each found as soon as it has ended, and tells who watches."""

import logging
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from types import FrameType

import structlog

from harness.attempt import Attempt, Result, attempt


def prepare_process() -> None:
    """Lets only warnings into the log, and has SIGTERM end the process as an error does."""
    logging.basicConfig(level=logging.WARNING)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    signal.signal(signal.SIGTERM, _leave)


def _leave(_signal: int, _frame: FrameType | None) -> None:
    sys.exit("ended by SIGTERM")  # as an exception, so that servers and PostgreSQL are stopped on the way out


def run_parts(
    parts: Mapping[str, Callable[[], Result]],
    keep: Callable[[str, Attempt[Result]], Iterable[str]],
    *,
    limit_s: float | None = None,
) -> list[str]:
    """Runs parts in their order, whatever befalls each; returns the names of those that failed.

    Args:
        parts: What runs each part, by its name.
        keep: Takes what came of a part, and returns what to tell of its result, line by line.
        limit_s: A part that takes longer is given up.
    """
    failed = []
    for number, (name, run) in enumerate(parts.items(), start=1):
        say(f"[{number}/{len(parts)}] {name} ...")
        ended = attempt(run, limit_s=limit_s)
        told = list(keep(name, ended))
        for line in (_ending(ended), *told):
            say(f"  {line}")
        if ended.failed:
            failed.append(name)
    return failed


def _ending(ended: Attempt[Result]) -> str:
    if ended.skipped:
        return f"skipped: {ended.skipped}"
    after = f"{ended.circumstances.duration_s:.0f} s"
    return f"failed after {after}: {ended.failed}" if ended.failed else after


def say(line: str) -> None:
    """Writes a line for whoever watches the run."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
