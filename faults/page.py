"""Writes what the scenarios found into docs/reliability.md, or with --check tells whether it is stale."""

from collections.abc import Mapping
from pathlib import Path

from faults.catalog import SCENARIOS
from faults.record import RESULTS
from faults.scenario import Scenario
from harness.generated_sections import filled, write_or_check
from harness.report import period, table
from harness.results_file import Json, read

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reliability.md"

HEAD = ("fault", "what is promised", "how it is tested", "measured")
MOST_REFUSALS = 3


def fill(text: str, data: Json | None) -> str:
    """Returns `text` with what stands between its markers renewed from the results.

    Raises:
        ValueError: When a section's markers are missing.
    """
    found: Json = data["scenarios"] if data is not None else {}
    rows = [(one.fault, one.promise, one.how, _measured(one, found)) for one in SCENARIOS]
    lines = [*_circumstances(data), *table(HEAD, rows)]
    return filled(text, {"faults": lines, "held": _held(found)})


def _circumstances(data: Json | None) -> list[str]:
    if data is None or not data["scenarios"]:
        return ["No run is committed yet: `make faults` makes one, and `make docs` then puts its figures here.", ""]
    machine, found = data["machine"], list(data["scenarios"].values())
    load = max(one["load_average"][0] for one in found)
    return [
        (f"{period(found)}. {machine['processor']}, {machine['cores']} cores; load average up to {load:g}."),
        "",
    ]


def _measured(scenario: Scenario, found: Mapping[str, Json]) -> str:
    entry = found.get(scenario.name)
    if entry is None:
        return "not measured"
    if "failed" in entry:
        return f"failed: {entry['failed']}"
    figures = entry["figures"]
    acknowledged = sum(figures["acknowledged"].values())
    sentences = [
        f"Served again after **{figures['recovery_s']:.1f} s**",
        (
            f"{acknowledged:,} calls acknowledged; lost {figures['lost']}, doubled {figures['doubled']}, of other "
            f"users {figures['strangers']}, wrong reads {figures['wrong_reads']}"
        ),
        f"refused and repeated: {_counts(figures['refused'])}",
    ]
    if entry["shortfalls"]:
        sentences.append(f"**broken: {'; '.join(entry['shortfalls'])}**")
    return ". ".join(sentences) + "."


def _counts(refused: Mapping[str, int]) -> str:
    shown = [f"{refusal} {count:,}" for refusal, count in list(refused.items())[:MOST_REFUSALS]]
    rest = sum(list(refused.values())[MOST_REFUSALS:])
    return ", ".join([*shown, f"others {rest:,}"] if rest else shown) or "none"


def _held(found: Mapping[str, Json]) -> list[str]:
    """Returns a table of what the service held before a fault and after it."""
    rows = []
    for scenario in SCENARIOS:
        if (figures := found.get(scenario.name, {}).get("figures")) is None:
            continue
        pool = figures["pool"]
        rows.append(
            (
                scenario.fault,
                _before_and_after(figures["threads"]),
                _before_and_after(figures["files"]),
                f"{pool['available']} of {pool['size']}",
                f"{figures['longest_answer_s']:.1f}",
            )
        )
    head = ("fault", "threads before and after", "open files before and after", "connections free", "slowest answer, s")
    return table(head, rows) if rows else ["Nothing is measured yet."]


def _before_and_after(counts: Mapping[str, int]) -> str:
    return f"{counts['before']}, {counts['after']}"


if __name__ == "__main__":
    write_or_check(PAGE, lambda text: fill(text, read(RESULTS)), about=__doc__ or "")
