"""The page, the plots and the targets say what the results say."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evaluation import page, parts, plots, speed, targets
from evaluation.__main__ import evaluate
from evaluation.sizes import FULL, Sizes
from harness import results_file
from harness.attempt import NotPossible

SAMPLE = Path(__file__).with_name("sample_results.json")
TINY = Sizes(name="tiny", memories=60, rounds=2, questions_a_round=3)


@pytest.fixture
def sample() -> Any:
    """The results of a run of all parts."""
    return json.loads(SAMPLE.read_text())


def test_quality_page_is_current() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.fill(text, results_file.read(page.DATA)) == text, "run `make docs`"


def test_check_leaves_the_page_alone() -> None:
    before = page.PAGE.read_bytes()
    done = subprocess.run(
        [sys.executable, "-m", "evaluation.page", "--check"], cwd=page.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert page.PAGE.read_bytes() == before


def test_page_takes_its_numbers_from_the_results(sample: Any) -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    filled = page.fill(text, sample)
    assert "Not measured" not in filled
    assert page.fill(filled, sample) == filled
    for part in targets.SETS:
        hybrid = sample["parts"][part]["figures"]["modes"]["HYBRID"]["all"]
        assert f"| HYBRID | {hybrid['ndcg_at_10']:.3f} ± {hybrid['ndcg_at_10_error']:.3f} |" in filled
    for part in parts.NAMES:
        sparse = {**sample, "parts": {name: body for name, body in sample["parts"].items() if name != part}}
        assert "Not measured yet" in page.fill(text, sparse)


def test_page_without_results_says_so() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.fill(text, None).count("No run is committed yet") == 5


def test_skipped_parts_are_named(sample: Any) -> None:
    failed = {**sample["parts"]["speed"], "failed": f"skipped: {parts.ABSENT}"}
    failed.pop("figures")
    skipped = {**sample, "parts": {**sample["parts"], "speed": failed}}
    assert f"Not measured: speed (skipped: {parts.ABSENT})" in page.fill(page.PAGE.read_text(encoding="utf-8"), skipped)


def test_plots_are_drawn_and_small(sample: Any, tmp_path: Path) -> None:
    drawn = plots.draw(sample, tmp_path)
    assert len(drawn) == 2
    for path in drawn:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size < 150 * 1024
    assert plots.draw({**sample, "parts": {}}, tmp_path) == []


def test_targets_are_those_of_the_issue(sample: Any) -> None:
    for part in parts.NAMES:
        figures = sample["parts"][part]["figures"]
        found = {target.name: target for target in targets.of(part, figures)}
        if part == "cranfield":
            assert found["Cranfield, LEXICAL, NDCG@10"].reach == 0.37
            assert found["Cranfield, HYBRID, NDCG@10"].reach == 0.40
            assert found["Cranfield, DENSE, NDCG@10, against outside the service"].reach == 0.328
        if part == "speed":
            [target] = found.values()
            assert (target.direction, target.reach) == ("at most", 3.0)
            assert target.measured == figures["modes"]["HYBRID"]["times_dense"]


def test_recombined_memories_are_the_same_each_time() -> None:
    sentences = ["one", "two", "three", "four"]
    made = speed.recombined(sentences, 5)
    assert made == speed.recombined(sentences, 5)
    assert len({document.id for document in made}) == 5
    for document in made:
        assert len(set(document.text.removesuffix(".").split(". "))) == 3


def test_without_the_collection_parts_are_skipped_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BENCHMARK_CRANFIELD", str(tmp_path))
    with pytest.raises(NotPossible, match="BENCHMARK_CRANFIELD"):
        parts.run("cranfield", None, FULL)  # type: ignore[arg-type]  # it is not to get as far as a database
    with pytest.raises(NotPossible, match="BENCHMARK_CRANFIELD"):
        parts.run("speed", None, FULL)  # type: ignore[arg-type]  # same


@pytest.mark.slow
def test_a_skipped_run_leaves_its_reason_and_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("BENCHMARK_CRANFIELD", str(folder))
    found, failed = evaluate(TINY, ["speed"], folder=tmp_path / "out")
    assert failed == []
    assert found.data["parts"]["speed"]["failed"] == f"skipped: {parts.ABSENT}"
    assert list(folder.iterdir()) == []
