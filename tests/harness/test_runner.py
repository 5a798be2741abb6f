"""Every part of a run is run, whatever befell those before it, and whoever watches is told how it ended."""

import signal
import time
from collections.abc import Callable, Iterable

import pytest

from harness.attempt import Attempt, NotPossible, attempt
from harness.runner import run_parts
from harness.time_limit import TookTooLong, time_limit


def raising(error: Exception) -> Callable[[], int]:
    def run() -> int:
        raise error

    return run


def slow() -> int:
    time.sleep(10)
    return 1


def test_time_limit_ends_what_it_surrounds() -> None:
    with pytest.raises(TookTooLong), time_limit(0.05):
        time.sleep(10)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_every_part_is_run_and_kept(capsys: pytest.CaptureFixture[str]) -> None:
    kept: dict[str, Attempt[int]] = {}

    def keep(name: str, ended: Attempt[int]) -> Iterable[str]:
        kept[name] = ended
        return [] if ended.result is None else [f"found {ended.result}"]

    parts = {
        "broken": raising(ValueError("no\n  good")),
        "absent": raising(NotPossible("no compiler")),
        "slow": slow,
        "whole": lambda: 7,
    }
    assert run_parts(parts, keep, limit_s=0.05) == ["broken", "slow"]
    assert [(ended.result, ended.skipped, ended.failed) for ended in kept.values()] == [
        (None, "", "ValueError: no good"),
        (None, "no compiler", ""),
        (None, "", "TookTooLong: took longer than 0 s"),
        (7, "", ""),
    ]
    assert capsys.readouterr().err.splitlines() == [
        "[1/4] broken ...",
        "  failed after 0 s: ValueError: no good",
        "[2/4] absent ...",
        "  skipped: no compiler",
        "[3/4] slow ...",
        "  failed after 0 s: TookTooLong: took longer than 0 s",
        "[4/4] whole ...",
        "  0 s",
        "  found 7",
    ]


def test_an_attempt_tells_how_long_it_took() -> None:
    circumstances = attempt(lambda: time.sleep(0.05)).circumstances
    assert 0.05 <= circumstances.duration_s < 5
    assert len(circumstances.as_json()["load_average"]["before"]) == 3


def test_ctrl_c_ends_the_run() -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempt(interrupted)
