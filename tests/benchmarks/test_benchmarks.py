"""The benchmark judges rightly, keeps what it found, and its page is current."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import outcome, page, plots, report
from benchmarks.__main__ import PARTS
from benchmarks.callers import Round
from benchmarks.clustered import ClusteredSpace
from benchmarks.collection import Collection, UserPlan, clustered_collection, id_of, row_of
from benchmarks.comparison import Comparison
from benchmarks.outcome import Circumstances, Outcome, rounded
from benchmarks.part import PartResult
from benchmarks.parts.mixed import growth_after_warm_up
from benchmarks.question import Answer, Question, Restriction
from benchmarks.recall_truth import Truth, best_of, recall_at_k
from benchmarks.scale import TINY
from benchmarks.targets import at_least, at_most
from benchmarks.time_limit import TookTooLong, time_limit

ROOT = Path(__file__).parents[2]
SAMPLE = Path(__file__).with_name("sample_results.json")
WHEN = Circumstances(
    started_at=datetime(2026, 11, 21, tzinfo=UTC), duration_s=60.0, load_before=[0.1], load_after=[1.5], revision="abc"
)
MACHINE = {"processor": "a processor", "cores": 2, "memory_bytes": 2**34, "python": "3.11"}
POSTGRES = {"server_version": "18.4", "shared_buffers": "4GB"}


def collection() -> Collection:
    plan = [UserPlan("small", 40, 3), UserPlan("other", 60, 2)]
    return clustered_collection(ClusteredSpace(16, seed=1), plan, texts=["a text"], seed=1)


def answer(rows: list[int]) -> Answer:
    return Answer([str(id_of(row)) for row in rows])


def round_of(p50_s: float, calls_per_s: float) -> Round:
    return Round(np.array([p50_s / 2, p50_s, p50_s * 9]), [Answer([])] * 3, [0, 1, 2], calls_per_s)


def test_recall_counts_ties_either_way_and_repetitions_once() -> None:
    best = best_of(np.array([0.9, 0.5, 0.5, 0.1], np.float32), 2)
    assert best.wanted == 2
    assert recall_at_k(best, [(0, 0.9), (1, 0.5)]) == recall_at_k(best, [(0, 0.9), (2, 0.5)]) == 1.0
    assert recall_at_k(best, [(0, 0.9), (0, 0.9)]) == 0.5
    assert recall_at_k(best, [(0, 0.9), (3, 0.1)]) == 0.5
    assert recall_at_k(best, []) == 0.0
    assert recall_at_k(best_of(np.array([], np.float32), 2), []) == 1.0


def test_truth_agrees_with_sorting_everything() -> None:
    rows = collection()
    user, truth = rows.users[1], Truth(rows)
    for restriction in (Restriction(), Restriction(tenth=3), Restriction(importance=7)):
        question = Question(user.name, user.questions[0], restriction)
        visible = rows.visible(user, restriction)
        ranked = visible[np.argsort(-(rows.vectors[visible] @ question.vector))].tolist()
        assert truth.recall([question], [answer(ranked[:10])]).mean == 1.0
        wanted = min(10, len(ranked))
        missing_one = truth.recall([question], [answer(ranked[: wanted - 1])])
        assert missing_one.mean == pytest.approx(1 - 1 / wanted)
        assert missing_one.short_answers == 1


def test_truth_gives_nothing_for_rows_of_others() -> None:
    rows = collection()
    question = Question("small", rows.users[0].questions[0])
    theirs = list(range(rows.users[1].first, rows.users[1].first + 10))
    assert Truth(rows).recall([question], [answer(theirs)]).mean == 0.0


def test_questions_are_not_among_the_memories() -> None:
    rows = collection()
    for user in rows.users:
        assert float((rows.vectors[user.rows] @ user.questions.T).max()) < 0.999


@pytest.mark.parametrize("row", [0, 1, 123_456_789])
def test_ids_tell_rows(row: int) -> None:
    assert row_of(str(id_of(row))) == row


def test_ratios_are_medians_of_pairs() -> None:
    floor = [round_of(0.001, 1_000), round_of(0.002, 500), round_of(0.001, 1_000)]
    service = [round_of(0.002, 600), round_of(0.002, 400), round_of(0.009, 100)]
    compared = Comparison(floor, service)
    assert compared.latency_ratio() == pytest.approx(2.0)
    assert compared.throughput_ratio() == pytest.approx(0.6)
    assert compared.service_p50_ms() == pytest.approx(2.0)


@pytest.mark.parametrize(("measured", "reached"), [(1.9, False), (2.0, True), (2.1, True)])
def test_targets_include_their_bound(measured: float, *, reached: bool) -> None:
    assert at_least("a", measured, 2.0).reached is reached
    assert at_most("a", -measured, -2.0).reached is reached


def test_memory_growth_leaves_the_warm_up_out() -> None:
    flat = [(calls, 50 if calls < 20 else 100) for calls in range(101)]
    leaking = [(calls, 100 + calls) for calls in range(101)]
    assert growth_after_warm_up(flat) == 1.0
    assert growth_after_warm_up(leaking) == pytest.approx(195 / 125)


def test_time_limit_ends_what_it_surrounds() -> None:
    with pytest.raises(TookTooLong), time_limit(0.05):
        time.sleep(10)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


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


@pytest.fixture
def sample() -> Any:
    """The results of a tiny run of all parts."""
    return json.loads(SAMPLE.read_text())


def test_report_holds_every_target_and_part(sample: Any) -> None:
    text = report.as_markdown(sample)
    assert set(sample["parts"]) == set(PARTS)
    for name, part in sample["parts"].items():
        assert f"### {name}" in text
        for target in part["targets"]:
            assert f"| {target['name']} | {report.number(target['measured'])}" in text


def test_plots_are_drawn_and_small(sample: Any, tmp_path: Path) -> None:
    drawn = plots.draw(sample, tmp_path)
    assert len(drawn) == 3
    for path in drawn:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size < 150 * 1024


def test_nothing_is_drawn_from_nothing(sample: Any, tmp_path: Path) -> None:
    assert plots.draw({**sample, "parts": {}}, tmp_path) == []


def test_performance_page_is_current() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.fill(text, outcome.read(page.DATA)) == text, "run `make docs`"


def test_page_takes_its_numbers_from_the_results(sample: Any) -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    filled = page.fill(text, sample)
    assert "Not measured yet" not in filled
    p50 = sample["parts"]["large-user"]["figures"]["answers"]["p50_ms"]
    assert f"| no filter | {report.number(p50)} |" in filled
    assert page.fill(filled, sample) == filled
    for part in PARTS:
        sparse = {**sample, "parts": {name: body for name, body in sample["parts"].items() if name != part}}
        assert page.fill(text, sparse) != filled


def test_page_without_a_section_is_noticed(sample: Any) -> None:
    with pytest.raises(ValueError, match="targets"):
        page.fill("a page without sections", sample)


@pytest.mark.long
def test_a_part_runs_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Runs the part that needs the least: fresh databases, both sides, a ratio."""
    # Not within pytest's own folder: when another pytest starts, it takes away other accounts' way through that.
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks", "--mode", "tiny", "--only", "mixed", "--out", str(tmp_path / "out")],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": folder},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        left = [path.name for path in Path(folder).iterdir() if path.name.startswith("memory-service-benchmark")]
    assert done.returncode == 0, done.stderr
    assert left == []
    data = json.loads((tmp_path / "out" / "tiny.json").read_text())
    assert data["parts"]["mixed"]["figures"]["calls"] == TINY.mixed_calls
    assert (tmp_path / "out" / "tiny.md").is_file()
    assert (tmp_path / "out" / "tiny-memory-against-calls.png").is_file()
