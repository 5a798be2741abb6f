"""Writes the results of the last full run into docs/performance.md, or with --check tells whether it is stale."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

from harness.generated_sections import filled, write_or_check
from harness.report import circumstances, figures_of, number, table, target_table
from harness.results_file import Json, read

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results"
DATA = RESULTS / "full.json"

COMPARED = ("p50_ms", "p99_ms", "calls_per_s")
COMPARED_HEAD = ("", "p50, ms", "p99, ms", "calls/s")


def fill(text: str, data: Json | None) -> str:
    """Returns `text` with what stands between its markers renewed from the results of a full run.

    Raises:
        ValueError: When a section's markers are missing.
    """
    lines = {name: _absent() if data is None else section(data) for name, section in SECTIONS.items()}
    return filled(text, lines)


def _absent() -> list[str]:
    return ["No full run is committed yet: `make bench-full` makes one, and `make docs` then puts its figures here."]


def _targets(data: Json) -> list[str]:
    missing = [name for name, part in data["parts"].items() if "failed" in part]
    lines = [circumstances(data), "", *target_table(data)]
    return [*lines, "", f"Not measured: {', '.join(missing)}."] if missing else lines


def _small_users(data: Json) -> list[str]:
    if (figures := figures_of(data, "small-users")) is None:
        return _not_measured("small-users")
    answers = figures["answers"]
    summary = (
        f"{figures['users']:,} users of 100 and 250 memories ({figures['vectors']}), drawn at random; recall@10 "
        f"{number(answers['recall_at_10'])}, plans {_plans(answers['plans'])}."
    )
    rows: list[Sequence[str]] = []
    for key, title in (("callers_1", "1 caller"), ("callers_8", "8 callers")):
        rows += _sides(figures[key], {"floor": f"{title}, floor", "service": f"{title}, service"})
    return [summary, "", *table(COMPARED_HEAD, rows)]


def _middle_user(data: Json) -> list[str]:
    if (figures := figures_of(data, "middle-user")) is None:
        return _not_measured("middle-user")
    lines: list[str] = []
    for kind, found in figures.items():
        sides = {"floor": f"{kind}, exact inline scan", "service": f"{kind}, service"}
        lines += [
            f"{kind} ({found['vectors']}): {number(found['speed_up'])} times as fast as the exact inline scan.",
            "",
        ]
        lines += [*table(COMPARED_HEAD, _sides(found["comparison"], sides)), ""]
        lines += [*_sweep(found["by_candidates"], "candidates"), ""]
    return [*lines, *_picture(data, "recall-against-latency", "Recall against latency")]


def _large_user(data: Json) -> list[str]:
    if (figures := figures_of(data, "large-user")) is None:
        return _not_measured("large-user")
    rows = [("no filter", *_answers(figures["answers"]))]
    rows += [(f"filter on {title}", *_answers(found)) for title, found in figures["filtered"].items()]
    summary = (
        f"{figures['memories']:,} memories ({figures['vectors']}) in a table of {figures['rows_in_table']:,}; the "
        f"index was built in {figures['index_built_in_s']:.0f} s. The exact scan takes "
        f"{number(figures['comparison']['floor']['p50_ms'])} ms."
    )
    return [
        summary,
        "",
        *table(("", "p50, ms", "recall@10", "short answers", "plans"), rows),
        "",
        *_sweep(figures["by_ef_search"], "ef_search"),
    ]


def _growth(data: Json) -> list[str]:
    lines: list[str] = []
    if (figures := figures_of(data, "user-growth")) is not None:
        rows = [
            (
                number(point["memories"]),
                number(point["floor"]["p50_ms"]),
                number(point["service"]["p50_ms"]),
                number(point["recall_at_10"]),
                _plans(point["plans"]),
            )
            for point in figures["by_user_size"]
        ]
        lines += table(("memories of the user", "floor p50, ms", "service p50, ms", "recall@10", "plans"), rows)
    if (figures := figures_of(data, "table-growth")) is not None:
        steps = [
            (
                number(point["rows_in_table"]),
                *(
                    number(point[kind][side]["p50_ms"])
                    for kind in ("search", "insert")
                    for side in ("floor", "service")
                ),
            )
            for point in figures["by_table_size"]
        ]
        head = ("rows in the table", "search floor, ms", "search service, ms", "insert floor, ms", "insert service, ms")
        lines += ["", f"Users of {figures['memories_of_each_user']} memories, p50:", "", *table(head, steps)]
    if not lines:
        return _not_measured("user-growth")
    return [*lines, "", *_picture(data, "latency-against-size", "Latency against size")]


def _other(data: Json) -> list[str]:
    lines: list[str] = []
    if (figures := figures_of(data, "import")) is not None:
        lines.append(
            f"- Import of {figures['memories']:,} memories: {number(figures['service_memories_per_s'])} a second "
            f"through ImportVectors, {number(figures['floor_memories_per_s'])} by COPY BINARY in process."
        )
    if (figures := figures_of(data, "batch")) is not None:
        for kind, title in (("small_user", "a small user"), ("middle_user", "a middle user")):
            found = figures[kind]
            lines.append(
                f"- {figures['searches_a_batch']} searches of {title}: {number(found['batch']['p50_ms'])} ms in one "
                f"call, {number(found['single_calls']['p50_ms'])} ms in single calls."
            )
    if (figures := figures_of(data, "workers")) is not None:
        rate = {side: number(figures["comparison"][side]["calls_per_s"]) for side in ("workers_1", "workers_2")}
        lines.append(
            f"- {figures['callers']} callers of small users: {rate['workers_1']} calls/s with one server process, "
            f"{rate['workers_2']} with `MEMORY_WORKERS=2`."
        )
    if (figures := figures_of(data, "mixed")) is not None:
        last = figures["resident_bytes"][-1]
        lines.append(
            f"- {last['calls']:,} mixed calls: {last['bytes'] / 2**20:.0f} MiB resident at the end, "
            f"{number(figures['growth_after_warm_up'])} times what it was after a fifth of them."
        )
    if (figures := figures_of(data, "overload")) is not None:
        lines.append(_overload(figures))
    return [*lines, "", *_picture(data, "memory-against-calls", "Memory against calls")] if lines else _absent()


def _overload(figures: Json) -> str:
    def middle(name: str) -> str:
        return number(median(turn[name] for turn in figures["rounds"]))

    return (
        f"- Five times as many calls as it can answer (heavy ones, of ten searches or ten memories to store): "
        f"{middle('answered_calls_per_s')} answered a second of {middle('offered_calls_per_s')} offered, where callers "
        f"that wait for each answer reach {middle('peak_calls_per_s')}; p99 of those answered "
        f"{middle('answered_p99_ms')} ms, of health checks {number(figures['health']['ops']['p99_ms'])} ms on the ops "
        f"address and {number(figures['health']['main']['p99_ms'])} ms on the main one."
    )


SECTIONS: dict[str, Callable[[Json], list[str]]] = {
    "targets": _targets,
    "small users": _small_users,
    "middle user": _middle_user,
    "large user": _large_user,
    "growth": _growth,
    "other": _other,
}


def _not_measured(part: str) -> list[str]:
    return [f"Not measured yet: `python -m benchmarks --mode full --only {part}`."]


def _sides(comparison: Json, titles: Mapping[str, str]) -> list[Sequence[str]]:
    return [(title, *(number(comparison[side][key]) for key in COMPARED)) for side, title in titles.items()]


def _sweep(points: Iterable[Json], knob: str) -> list[str]:
    rows = [(str(point[knob]), number(point["p50_ms"]), number(point["recall_at_10"])) for point in points]
    return table((f"`{knob}`", "p50, ms", "recall@10"), rows)


def _answers(found: Json) -> tuple[str, ...]:
    numbers = (number(found[key]) for key in ("p50_ms", "recall_at_10", "short_answers"))
    return (*numbers, _plans(found["plans"]))


def _plans(plans: Mapping[str, int]) -> str:
    return ", ".join(f"{plan} {count:,}" for plan, count in plans.items())


def _picture(data: Json, name: str, title: str) -> list[str]:
    return [f"![{title}](../benchmarks/results/{data['scale']['name']}-{name}.png)"]


if __name__ == "__main__":
    write_or_check(PAGE, lambda text: fill(text, read(DATA)), about=__doc__ or "")
