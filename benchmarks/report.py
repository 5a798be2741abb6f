"""The results of a scale as a Markdown page for reading."""

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.outcome import Json

METHOD = """\
- Floor and service are measured in alternating rounds of the same questions; a ratio is the median over the pairs of
  rounds, after one round of warm-up. Latencies are medians over rounds of the round's percentile.
- Callers are processes of their own, in closed loops; the floor runs in the caller's process. Client, server and
  PostgreSQL share the cores.
- Recall is against brute force over the float32 originals in numpy, over the same visible rows, with questions that
  are not among the memories. Users' rows are stored in random order among those of all others.
- PostgreSQL is the embedded one with the settings it has in production, fsync included, on a warm cache.
"""
THOUSAND = 1_000


def as_markdown(data: Json) -> str:
    """Returns the page."""
    parts = data["parts"]
    lines = [
        f"# Benchmark, {data['scale']['name']}",
        "",
        circumstances(data),
        "",
        *target_table(targets(parts.values())),
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


def targets(parts: Iterable[Json]) -> list[Json]:
    """Returns the targets of all parts."""
    return [target for part in parts for target in part.get("targets", [])]


def circumstances(data: Json) -> str:
    """Returns a sentence on when and where."""
    machine, parts = data["machine"], list(data["parts"].values())
    days = sorted({part["started_at"][:10] for part in parts})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    busiest = max(part["load_average"]["before"][0] for part in parts)
    minutes = sum(part["duration_s"] for part in parts) / 60
    return (
        f"{when}, {minutes:.0f} minutes. {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB; load average before a part at most {busiest:g}. "
        f"PostgreSQL {data['postgres'].get('server_version', '')}, shared_buffers "
        f"{data['postgres'].get('shared_buffers', '')}. Python {machine['python']}."
    )


def target_table(found: Sequence[Json]) -> list[str]:
    """Returns the lines of a table that sets what was reached against what was to be."""
    rows = [
        (
            target["name"],
            f"{number(target['measured'])} {target['unit']}".rstrip(),
            f"{target['direction']} {number(target['reach'])}",
            target["verdict"],
        )
        for target in found
    ]
    return table(("what", "measured", "reach", ""), rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Returns the lines of a Markdown table."""
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]


def number(value: float) -> str:
    """Returns a number as people read it."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= THOUSAND else f"{value:.4g}"


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
