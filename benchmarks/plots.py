"""Draws results: recall against latency, latency against size, and memory against calls."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from harness.panels import DPI, FLOOR_COLOUR, OTHER_COLOUR, SERVICE_COLOUR, line, name_axes, side_by_side
from harness.results_file import Json


def draw(data: Json, folder: Path) -> list[Path]:
    """Draws what the results allow, and returns the files."""
    figures = {name: part["figures"] for name, part in data["parts"].items() if "figures" in part}
    drawn = []
    for name, figure in (
        ("recall-against-latency", _recall_against_latency(figures)),
        ("latency-against-size", _latency_against_size(figures)),
        ("memory-against-calls", _memory_against_calls(figures)),
    ):
        if figure is not None:
            path = folder / f"{data['scale']['name']}-{name}.png"
            figure.savefig(path, dpi=DPI)
            drawn.append(path)
    return drawn


def _recall_against_latency(figures: Json) -> Figure | None:
    sweeps: list[tuple[str, str, Sequence[Json]]] = []
    if "large-user" in figures:
        large = figures["large-user"]
        sweeps.append((f"{large['memories']:,} memories, HNSW, by ef_search", "ef_search", large["by_ef_search"]))
    for kind, middle in figures.get("middle-user", {}).items():
        sweeps.append(
            (f"{middle['memories']:,} memories, {kind}, by candidates", "candidates", middle["by_candidates"])
        )
    if not sweeps:
        return None
    figure, axes = side_by_side(1)
    for label, knob, points in sweeps:
        in_order = sorted(points, key=lambda point: point[knob])
        [ax] = axes
        ax.plot([p["p50_ms"] for p in in_order], [p["recall_at_10"] for p in in_order], marker="o", label=label)
        for point in in_order:
            ax.annotate(
                str(point[knob]),
                (point["p50_ms"], point["recall_at_10"]),
                xytext=(3, -9),
                textcoords="offset points",
                fontsize=7,
            )
    name_axes(axes[0], "p50 of a search through gRPC, ms", "recall@10", "Recall against latency")
    return figure


def _latency_against_size(figures: Json) -> Figure | None:
    panels = [
        (figures[part][series], x, title)
        for part, series, x, title in (
            ("user-growth", "by_user_size", "memories", "By size of the user"),
            ("table-growth", "by_table_size", "rows_in_table", "By size of the table (250-memory users)"),
        )
        if part in figures
    ]
    if not panels:
        return None
    figure, axes = side_by_side(len(panels))
    for ax, (points, x, title) in zip(axes, panels, strict=True):
        sizes = [point[x] for point in points]
        searches = [point.get("search", point) for point in points]
        line(ax, sizes, [s["floor"]["p50_ms"] for s in searches], FLOOR_COLOUR, "search, psycopg in process, exact")
        line(ax, sizes, [s["service"]["p50_ms"] for s in searches], SERVICE_COLOUR, "search through the service")
        if "insert" in points[0]:
            inserts = [point["insert"]["service"]["p50_ms"] for point in points]
            line(ax, sizes, inserts, OTHER_COLOUR, "insert through the service")
        ax.set_xscale("log")
        ax.set_yscale("log")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter("{x:,g}")
            axis.set_minor_formatter(NullFormatter())
        name_axes(ax, "memories", "p50, ms", title)
    return figure


def _memory_against_calls(figures: Json) -> Figure | None:
    if "mixed" not in figures:
        return None
    samples = figures["mixed"]["resident_bytes"]
    figure, [ax] = side_by_side(1)
    line(ax, [s["calls"] for s in samples], [s["bytes"] / 2**20 for s in samples], SERVICE_COLOUR, "server process")
    ax.set_ylim(bottom=0)
    name_axes(ax, "mixed calls", "resident memory, MiB", "Memory against calls")
    return figure
