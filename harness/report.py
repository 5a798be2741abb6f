"""What pages and terminals say of results: when and where they were found, what was reached, tables and numbers."""

from collections.abc import Iterable, Sequence

from harness.results_file import Json
from harness.targets import Target

THOUSAND = 1_000


def figures_of(data: Json, part: str) -> Json | None:
    """Returns the figures of a part of an outcome, None where it was not measured."""
    figures: Json | None = data["parts"].get(part, {}).get("figures")
    return figures


def circumstances(data: Json) -> str:
    """Returns a sentence on when and where an outcome was found."""
    machine, parts = data["machine"], list(data["parts"].values())
    busiest = max(part["load_average"]["before"][0] for part in parts)
    return (
        f"{period(parts)}. {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB; load average before a part at most {busiest:g}. "
        f"PostgreSQL {data['postgres'].get('server_version', '')}, shared_buffers "
        f"{data['postgres'].get('shared_buffers', '')}. Python {machine['python']}."
    )


def period(parts: Sequence[Json]) -> str:
    """Returns the days on which parts were run, and the minutes that they took together."""
    days = sorted({part["started_at"][:10] for part in parts})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    minutes = sum(part["duration_s"] for part in parts) / 60
    return f"{when}, {minutes:.0f} minutes"


def verdicts(targets: Iterable[Target]) -> list[str]:
    """Returns a line for each target: whether it was reached, and by what."""
    return [f"{target.verdict}: {target.name}: {number(target.measured)} {target.unit}" for target in targets]


def target_table(data: Json) -> list[str]:
    """Returns the lines of a table that sets what the parts of an outcome reached against what was to be."""
    rows = [
        (
            target["name"],
            f"{number(target['measured'])} {target['unit']}".rstrip(),
            f"{target['direction']} {number(target['reach'])}",
            target["verdict"],
        )
        for part in data["parts"].values()
        for target in part.get("targets", [])
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
