"""The benchmark judges rightly, and its report, plots and page say what it found."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import page, plots, report
from benchmarks.__main__ import PARTS
from benchmarks.callers import Round
from benchmarks.clustered import ClusteredSpace
from benchmarks.collection import Collection, UserPlan, clustered_collection, id_of, row_of
from benchmarks.comparison import Comparison
from benchmarks.parts.mixed import growth_after_warm_up
from benchmarks.question import Answer, Question, Restriction
from benchmarks.recall_truth import Truth, best_of, recall_at_k
from benchmarks.scale import TINY
from harness import results_file
from harness.report import number

ROOT = Path(__file__).parents[2]
SAMPLE = Path(__file__).with_name("sample_results.json")


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


def test_memory_growth_leaves_the_warm_up_out() -> None:
    flat = [(calls, 50 if calls < 20 else 100) for calls in range(101)]
    leaking = [(calls, 100 + calls) for calls in range(101)]
    assert growth_after_warm_up(flat) == 1.0
    assert growth_after_warm_up(leaking) == pytest.approx(195 / 125)


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
            assert f"| {target['name']} | {number(target['measured'])}" in text


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
    assert page.fill(text, results_file.read(page.DATA)) == text, "run `make docs`"


def test_page_takes_its_numbers_from_the_results(sample: Any) -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    filled = page.fill(text, sample)
    assert "Not measured yet" not in filled
    p50 = sample["parts"]["large-user"]["figures"]["answers"]["p50_ms"]
    assert f"| no filter | {number(p50)} |" in filled
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
