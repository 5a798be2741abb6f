"""The results of a scale as a Markdown page for reading."""

from collections.abc import Mapping

from harness.report import circumstances, number, target_table
from harness.results_file import Json

METHOD = """\
- Floor and service are measured in alternating rounds of the same questions; a ratio is the median over the pairs of
  rounds, after one round of warm-up. Latencies are medians over rounds of the round's percentile.
- Callers are processes of their own, in closed loops; the floor runs in the caller's process. Client, server and
  PostgreSQL share the cores.
- Recall is against brute force over the float32 originals in numpy, over the same visible rows, with questions that
  are not among the memories. Users' rows are stored in random order among those of all others.
- PostgreSQL is the embedded one with the settings it has in production, fsync included, on a warm cache.
"""


def as_markdown(data: Json) -> str:
    """Returns the page."""
    parts = data["parts"]
    lines = [
        f"# Benchmark, {data['scale']['name']}",
        "",
        circumstances(data),
        "",
        *target_table(data),
        "",
        *(f"Not measured: {name} ({part['failed']}).\n" for name, part in parts.items() if "failed" in part),
        "## Method",
        "",
        METHOD,
        "## Figures",
        "",
    ]
    for name, part in parts.items():
        if "figures" in part:
            when = f"{part['started_at']}, {part['duration_s']:.0f} s, revision {part['revision'] or 'unknown'}"
            lines += [f"### {name}", "", f"{when}.", "", *_bullets(part["figures"]), ""]
    return "\n".join(lines)


def _bullets(figures: Mapping[str, object], indent: int = 0) -> list[str]:
    lines = []
    for name, value in figures.items():
        start = "  " * indent + f"- {name.replace('_', ' ')}:"
        if isinstance(value, Mapping) and any(isinstance(inner, Mapping | list) for inner in value.values()):
            lines += [start, *_bullets(value, indent + 1)]
        elif isinstance(value, list):
            lines += [start, *("  " * (indent + 1) + f"- {_inline(item)}" for item in value)]
        else:
            lines.append(f"{start} {_inline(value)}")
    return lines


def _inline(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name.replace('_', ' ')} {_inline(inner)}" for name, inner in value.items())
    return number(value) if isinstance(value, int | float) else str(value)
