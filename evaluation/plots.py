"""Draws results: NDCG@10 against the weight of the dense side, and against latency."""

from pathlib import Path

from matplotlib.figure import Figure

from evaluation.targets import SETS
from harness.panels import DPI, FLOOR_COLOUR, OTHER_COLOUR, SERVICE_COLOUR, line, name_axes, side_by_side
from harness.results_file import Json

AGAINST_WEIGHT = "ndcg-against-dense-weight"
AGAINST_LATENCY = "ndcg-against-latency"


def draw(data: Json, folder: Path) -> list[Path]:
    """Draws what the results allow, and returns the files."""
    found = {
        title: data["parts"][part]["figures"]
        for part, title in SETS.items()
        if "figures" in data["parts"].get(part, {})
    }
    if not found:
        return []
    drawn = []
    for name, figure in ((AGAINST_WEIGHT, _against_weight(found)), (AGAINST_LATENCY, _against_latency(found))):
        path = folder / f"{data['scale']['name']}-{name}.png"
        figure.savefig(path, dpi=DPI)
        drawn.append(path)
    return drawn


def _against_weight(found: Json) -> Figure:
    figure, axes = side_by_side(len(found))
    for ax, (title, figures) in zip(axes, found.items(), strict=True):
        sweep = figures["dense_weight"]
        weights = [point["value"] for point in sweep["points"]]
        for half, colour, label in (
            ("tuning", FLOOR_COLOUR, "questions that tune"),
            ("held_out", SERVICE_COLOUR, "questions held out"),
        ):
            line(ax, weights, [point[half] for point in sweep["points"]], colour, label)
        ax.axvline(sweep["chosen"]["value"], color=OTHER_COLOUR, linestyle="--", label="chosen by those that tune")
        ax.axvline(figures["default_dense_weight"], color=OTHER_COLOUR, linestyle=":", label="the server's default")
        name_axes(ax, "dense_weight (0: words alone, 1: meaning alone)", "NDCG@10", title)
    return figure


def _against_latency(found: Json) -> Figure:
    figure, axes = side_by_side(len(found))
    for ax, (title, figures) in zip(axes, found.items(), strict=True):
        for name, mode in figures["modes"].items():
            ax.plot(mode["p50_ms"], mode["all"]["ndcg_at_10"], marker="o", linestyle="", label=name)
        ax.set_xlim(left=0)
        name_axes(ax, "p50 of a search through gRPC, ms", "NDCG@10", title)
    return figure
