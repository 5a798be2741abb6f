"""Runs one part of a run within its time, and tells what came of it, under which circumstances."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from harness import machine
from harness.time_limit import time_limit

REASON_CHARACTERS = 300

Result = TypeVar("Result")


class NotPossible(Exception):
    """This machine lacks what the part needs; the message says what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """When and where a part was run."""

    started_at: datetime
    duration_s: float
    load_before: list[float]
    """Load averages over 1, 5 and 15 minutes: what else the machine was doing."""
    load_after: list[float]
    revision: str
    """The commit that was checked out."""

    def as_json(self) -> dict[str, Any]:
        """Returns them for a file of results."""
        return {
            "started_at": self.started_at.astimezone(UTC).isoformat(timespec="seconds"),
            "duration_s": self.duration_s,
            "load_average": {"before": self.load_before, "after": self.load_after},
            "revision": self.revision,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt(Generic[Result]):
    """What came of running a part: a result, or the reason why there is none."""

    circumstances: Circumstances
    result: Result | None = None
    skipped: str = ""
    """Why the part could not be run on this machine."""
    failed: str = ""
    """What went wrong, on one line and cut short."""


def attempt(run: Callable[[], Result], *, limit_s: float | None = None) -> Attempt[Result]:
    """Runs a part, which is given up after `limit_s`. Whatever it raises is its own end only: others are to be run."""
    started_at, began, load_before = datetime.now(UTC), time.monotonic(), machine.load_average()
    result, skipped, failed = None, "", ""
    try:
        with nullcontext() if limit_s is None else time_limit(limit_s):
            result = run()
    except NotPossible as error:
        skipped = str(error)
    except Exception as error:  # noqa: BLE001 - see above; the results say what befell this one
        failed = " ".join(f"{type(error).__name__}: {error}".split())[:REASON_CHARACTERS]
    circumstances = Circumstances(
        started_at=started_at,
        duration_s=time.monotonic() - began,
        load_before=load_before,
        load_after=machine.load_average(),
        revision=machine.revision(),
    )
    return Attempt(circumstances=circumstances, result=result, skipped=skipped, failed=failed)
