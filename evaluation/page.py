"""Writes the results of the last evaluation into docs/quality.md, or with --check tells whether it is stale."""

from collections.abc import Sequence
from pathlib import Path

from evaluation import plots, tuning
from evaluation.targets import SETS
from evaluation.tuning import Point
from harness.generated_sections import filled, write_or_check
from harness.report import circumstances, figures_of, number, table, target_table
from harness.results_file import Json, read

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "quality.md"
RESULTS = ROOT / "evaluation" / "results"
DATA = RESULTS / "quality.json"

SCORES = ("ndcg_at_10", "recall_at_10", "mrr_at_10")
SCORES_HEAD = ("NDCG@10", "recall@10", "MRR@10")


def fill(text: str, data: Json | None) -> str:
    """Returns `text` with what stands between its markers renewed from the results.

    Raises:
        ValueError: When a section's markers are missing.
    """
    if data is None:
        absent = ["No run is committed yet: `make eval` makes one, and `make docs` then puts its figures here."]
        return filled(text, dict.fromkeys(("targets", *SETS, "weights", "speed"), absent))
    sections = {"targets": _targets(data), "weights": _weights(data), "speed": _speed(data)}
    return filled(text, sections | {part: _set(data, part) for part in SETS})


def _targets(data: Json) -> list[str]:
    missing = [f"{name} ({part['failed']})" for name, part in data["parts"].items() if "failed" in part]
    lines = [circumstances(data), "", *target_table(data)]
    return [*lines, "", f"Not measured: {', '.join(missing)}."] if missing else lines


def _set(data: Json, part: str) -> list[str]:
    if (figures := figures_of(data, part)) is None:
        return _not_measured(part)
    modes = figures["modes"]
    rows = [
        (
            name,
            f"{mode['all']['ndcg_at_10']:.3f} ± {mode['all']['ndcg_at_10_error']:.3f}",
            *(f"{mode['all'][score]:.3f}" for score in SCORES[1:]),
            f"{mode['tuning']['ndcg_at_10']:.3f}",
            f"{mode['held_out']['ndcg_at_10']:.3f}",
            number(mode["p50_ms"]),
            number(mode["p95_ms"]),
        )
        for name, mode in modes.items()
    ]
    head = ("", *SCORES_HEAD, "NDCG@10, tuning half", "NDCG@10, held-out half", "p50, ms", "p95, ms")
    lines = [_about(figures), "", *table(head, rows), "", *_gains(figures)]
    if any("categories" in mode for mode in modes.values()):
        lines += ["", "NDCG@10 by category:", "", *_categories(modes)]
    return lines


def _about(figures: Json) -> str:
    users = "one user" if figures["users"] == 1 else f"{figures['users']} users"
    left_out = f" Left out: {'; '.join(figures['left_out'])}." if figures["left_out"] else ""
    return (
        f"{figures['memories']:,} memories of {users}, {figures['questions']} questions, model "
        f"`{figures['embedding_model']}`, the server's `dense_weight` {figures['default_dense_weight']:g}. ± is the "
        f"standard error over questions.{left_out}"
    )


def _gains(figures: Json) -> list[str]:
    return [
        f"- HYBRID over {side}: {gain['difference']:+.3f} NDCG@10, 95 % interval {gain['low']:+.3f} to "
        f"{gain['high']:+.3f} (paired bootstrap over questions)."
        for side, gain in figures["hybrid_over"].items()
    ]


def _categories(modes: Json) -> list[str]:
    [first, *_] = modes.values()
    head = ("", *(f"{name} ({found['questions']})" for name, found in first["categories"].items()))
    rows = [
        (name, *(f"{found['ndcg_at_10']:.3f}" for found in mode["categories"].values())) for name, mode in modes.items()
    ]
    return table(head, rows)


def _weights(data: Json) -> list[str]:
    measured = {title: found for part, title in SETS.items() if (found := figures_of(data, part)) is not None}
    if not measured:
        return _not_measured("conversations")
    lines: list[str] = []
    for knob, title in (("dense_weight", "`dense_weight`"), ("rrf_k", "`rrf_k`")):
        halves = [f"{name}, {half}" for name in measured for half in ("tuning", "held out")]
        by_value = zip(*(found[knob]["points"] for found in measured.values()), strict=True)
        rows: list[Sequence[str]] = [
            (f"{at[0]['value']:g}", *(f"{point[half]:.3f}" for point in at for half in ("tuning", "held_out")))
            for at in by_value
        ]
        lines += [*table((title, *halves), rows), "", *_choice(measured, knob), ""]
    return [*lines, f"![NDCG against dense_weight](../evaluation/results/{_picture(data, plots.AGAINST_WEIGHT)})"]


def _choice(measured: Json, knob: str) -> list[str]:
    lines = [
        f"- {name}: the tuning half chooses {found[knob]['chosen']['value']:g}; the held-out half then has "
        f"{found[knob]['chosen']['held_out']:.3f}."
        for name, found in measured.items()
    ]
    if len(measured) == len(SETS):
        sweeps = [[Point(**point) for point in found[knob]["points"]] for found in measured.values()]
        value = tuning.chosen_for_all(sweeps)
        held_out = ", ".join(
            f"{next(point.held_out for point in sweep if point.value == value):.3f} ({name})"
            for name, sweep in zip(measured, sweeps, strict=True)
        )
        lines.append(f"- Both sets alike: the tuning halves choose **{value:g}**; the held-out halves have {held_out}.")
    return lines


def _speed(data: Json) -> list[str]:
    if (figures := figures_of(data, "speed")) is None:
        return _not_measured("speed")
    rows = [
        (name, number(mode["p50_ms"]), number(mode["p95_ms"]), number(mode["times_dense"]))
        for name, mode in figures["modes"].items()
    ]
    summary = (
        f"One user of {figures['memories']:,} memories, {figures['rounds']} alternating rounds of "
        f"{figures['calls_per_round']} questions; medians over rounds."
    )
    head = ("", "p50, ms", "p95, ms", "p50, times that of DENSE")
    picture = f"![Quality against latency](../evaluation/results/{_picture(data, plots.AGAINST_LATENCY)})"
    return [summary, "", *table(head, rows), "", picture]


def _not_measured(part: str) -> list[str]:
    return [f'Not measured yet: `make eval ARGS="--only {part}"`.']


def _picture(data: Json, name: str) -> str:
    return f"{data['scale']['name']}-{name}.png"


if __name__ == "__main__":
    write_or_check(PAGE, lambda text: fill(text, read(DATA)), about=__doc__ or "")
