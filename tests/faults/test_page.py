"""The page on reliability is current, and says of broken promises that they were broken."""

from typing import Any

import pytest

from faults import page
from faults.catalog import SCENARIOS
from faults.record import RESULTS
from harness.results_file import read

FIGURES: dict[str, Any] = {
    "recovery_s": 1.25,
    "longest_answer_s": 0.5,
    "acknowledged": {"insert": 900, "search": 334},
    "refused": {"UNAVAILABLE DATABASE_UNAVAILABLE": 20, "a": 3, "b": 2, "c": 1},
    "lost": 0,
    "doubled": 0,
    "strangers": 0,
    "wrong_reads": 0,
    "threads": {"before": 60, "after": 61},
    "files": {"before": 70, "after": 70},
    "pool": {"size": 4, "available": 4, "requests_waiting": 0, "max_size": 16},
}


def data(**entry: Any) -> dict[str, Any]:
    circumstances = {"started_at": "2026-11-21T16:00:00+00:00", "duration_s": 30.0, "load_average": [1.5, 1.0, 1.0]}
    machine = {"processor": "a processor", "cores": 2}
    return {"machine": machine, "scenarios": {SCENARIOS[0].name: {**circumstances, **entry}}}


def test_page_is_current() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.fill(text, read(RESULTS)) == text, "run `make docs`"


def test_page_tells_what_was_measured() -> None:
    text = page.fill(page.PAGE.read_text(encoding="utf-8"), data(figures=FIGURES, shortfalls=[]))
    assert "Served again after **1.2 s**. 1,234 calls acknowledged; lost 0" in text
    assert "UNAVAILABLE DATABASE_UNAVAILABLE 20, a 3, b 2, others 1" in text
    assert "| 60, 61 | 70, 70 | 4 of 4 | 0.5 |" in text
    assert "broken" not in text.split("<!-- faults")[1].split("<!-- end of faults")[0]


def test_page_tells_of_failure() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert "**broken: lost: 1**" in page.fill(text, data(figures=FIGURES, shortfalls=["lost: 1"]))
    assert "failed: it did not start" in page.fill(text, data(failed="it did not start"))
    assert "not measured" in page.fill(text, None)


def test_missing_markers_are_noticed() -> None:
    with pytest.raises(ValueError, match="faults"):
        page.fill("a page without tables", None)


def test_scenarios_have_names_of_their_own() -> None:
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)
