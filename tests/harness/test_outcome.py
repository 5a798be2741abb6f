"""Results of several runs merge, a failure replaces none of them, and numbers are kept as they were measured."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.scale import TINY
from harness.attempt import Circumstances
from harness.outcome import Outcome, PartResult
from harness.results_file import rounded
from harness.targets import at_least, at_most

WHEN = Circumstances(
    started_at=datetime(2026, 11, 21, tzinfo=UTC), duration_s=60.0, load_before=[0.1], load_after=[1.5], revision="abc"
)
MACHINE = {"processor": "a processor", "cores": 2, "memory_bytes": 2**34, "python": "3.11"}
POSTGRES = {"server_version": "18.4", "shared_buffers": "4GB"}


@pytest.mark.parametrize(("measured", "reached"), [(1.9, False), (2.0, True), (2.1, True)])
def test_targets_include_their_bound(measured: float, *, reached: bool) -> None:
    assert at_least("a", measured, 2.0).reached is reached
    assert at_most("a", -measured, -2.0).reached is reached


def results_in(folder: Path) -> Outcome:
    return Outcome(folder / "tiny.json", TINY, machine=MACHINE, postgres=POSTGRES)


def test_parts_of_several_runs_merge(tmp_path: Path) -> None:
    results_in(tmp_path).add("one", PartResult({"rate": 1.23456789}, [at_least("rate", 1.2, 1.0)]), WHEN)
    second = results_in(tmp_path)
    second.add("two", PartResult({"rate": 2.0}), WHEN)
    second.add("one", PartResult({"rate": 3.0}), WHEN)
    parts = json.loads((tmp_path / "tiny.json").read_text())["parts"]
    assert {name: part["figures"]["rate"] for name, part in parts.items()} == {"one": 3.0, "two": 2.0}
    assert parts["one"]["targets"] == []


def test_failure_does_not_replace_a_result(tmp_path: Path) -> None:
    results = results_in(tmp_path)
    results.fail("one", "RuntimeError: no", WHEN)
    assert not results.has("one")
    assert "Not measured: one (RuntimeError: no)" in report.as_markdown(results.data)
    results.add("one", PartResult({"rate": 3.0}), WHEN)
    results.fail("one", "RuntimeError: no", WHEN)
    assert results.has("one")


def test_results_of_other_sizes_do_not_mix(tmp_path: Path) -> None:
    results_in(tmp_path).add("one", PartResult({}), WHEN)
    other = Outcome(tmp_path / "tiny.json", replace(TINY, rounds=9), machine=MACHINE, postgres=POSTGRES)
    assert other.starts_anew
    assert not other.has("one")


def test_numbers_are_rounded_to_what_was_measured() -> None:
    assert rounded({"a": [1.23456789, 7], "b": (0.000123456,)}) == {"a": [1.2346, 7], "b": [0.00012346]}
