"""How plots of results look: panels side by side, their axes, lines and colours."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure  # figures of its own: no pyplot, no display, no global state

DPI = 100
FLOOR_COLOUR, SERVICE_COLOUR, OTHER_COLOUR = "#7f7f7f", "#1f77b4", "#d62728"


def side_by_side(count: int) -> tuple[Figure, list[Axes]]:
    """Returns a figure of `count` panels and their axes."""
    figure = Figure(figsize=(6.5 * count, 4.5), layout="constrained")
    return figure, [figure.add_subplot(1, count, 1 + panel) for panel in range(count)]


def line(ax: Axes, xs: Sequence[float], ys: Sequence[float], colour: str, label: str) -> None:
    """Draws one series."""
    ax.plot(xs, ys, marker=".", color=colour, label=label)


def name_axes(ax: Axes, x: str, y: str, title: str) -> None:
    """Names the axes and the panel, and shows grid and legend."""
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.set_title(title)
    ax.grid(visible=True, alpha=0.3)
    ax.legend(fontsize=8)
