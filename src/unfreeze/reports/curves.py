"""Plots of a run as PNG, with a light and a dark theme."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from unfreeze.reports.charts import Curve, PlotPanel
from unfreeze.runtime.output_files import GENERATOR

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKED = 25  # curves with fewer points get markers
MARGIN = 0.03  # of the span, around the curves
TINY = 1e-3  # below it, tick labels are scaled by a power of ten
RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
# inches of a panel and of its margins; fixed, because measuring text takes half of the time
PANEL, LEFT, RIGHT, TOP, BOTTOM = (4.2, 3.1), 0.68, 0.14, 0.42, 0.52


@dataclass(frozen=True)
class Theme:
    """Colours of a plot; curves cycle through `series`."""

    paper: str
    ink: str
    quiet: str
    rule: str
    series: tuple[str, ...]


LIGHT = Theme("#ffffff", "#1f2328", "#6b7280", "#e3e5e8", ("#2563a8", "#c2571a", "#3f7d4e"))
DARK = Theme("#16181b", "#e6e6e3", "#9aa0a6", "#33373c", ("#6fa8dc", "#e39a5f", "#86c08f"))


def draw(panels: Sequence[PlotPanel], theme: Theme = LIGHT, *, columns: int = 3) -> bytes:
    """One PNG of all panels, in at most `columns` columns."""
    rows = -(-len(panels) // columns)
    columns = -(-len(panels) // rows)  # four panels: 2 x 2, not 3 + 1
    width, height = PANEL[0] * columns, PANEL[1] * rows
    figure = Figure(figsize=(width, height), dpi=160, facecolor=theme.paper)
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        left, bottom = PANEL[0] * column + LEFT, height - PANEL[1] * (row + 1) + BOTTOM
        size = (PANEL[0] - LEFT - RIGHT) / width, (PANEL[1] - BOTTOM - TOP) / height
        _panel(figure.add_axes((left / width, bottom / height, *size)), panel, theme)
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": GENERATOR})
    return buffer.getvalue()


def _panel(axes: "Axes", panel: PlotPanel, theme: Theme) -> None:
    colours = dict(zip((line.name for line in panel.lines), theme.series * 4, strict=False))
    for line in panel.lines:
        _line(axes, line, theme.quiet if line.faint else colours[line.name])
    axes.set_ylim(*y_limits(panel))
    if panel.level is not None:
        _level(axes, *panel.level, theme)
    _style(axes, panel, theme)
    if len(panel.lines) > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=theme.ink, handlelength=1.2)


def _line(axes: "Axes", line: Curve, colour: str) -> None:
    if line.spread is not None:
        style = {"marker": "o", "markersize": 4.0, "capsize": 2.5, "linewidth": 1.5}
        axes.errorbar(line.x, line.y, line.spread, color=colour, label=line.name, **style)  # type: ignore[arg-type]
        return
    marker = "o" if len(line.y) < MARKED else ""
    axes.plot(line.x, line.y, color=colour, lw=1.5, marker=marker, markersize=3, label=line.name)


def y_limits(panel: PlotPanel) -> tuple[float, float]:
    """Limits of the y axis: all values, at least the panel's span, within its bounds."""
    values = [*panel.shows, *(v for line in panel.lines for v in line.y)]
    values += [
        y + sign * error
        for line in panel.lines
        for y, error in zip(line.y, line.spread or (), strict=False)
        for sign in (-1, 1)
    ]
    if panel.level is not None:
        values.append(panel.level[0])
    low, high = min(values), max(values)
    span = max(high - low, panel.span) or abs(high) or 1.0
    extra = (span - (high - low)) / 2
    low, high = low - extra, high + extra
    # shift the range back inside the bounds
    if low < panel.low:
        low, high = panel.low, min(panel.high, high + panel.low - low)
    if high > panel.high:
        low, high = max(panel.low, low - (high - panel.high)), panel.high
    edge = MARGIN * span
    return low - edge, high + edge


def _level(axes: "Axes", value: float, name: str, theme: Theme) -> None:
    axes.axhline(value, color=theme.quiet, lw=1, ls=(0, (4, 3)))
    low, high = axes.get_ylim()
    below = value > low + 0.8 * (high - low)
    axes.annotate(
        name,
        (1, value),
        xycoords=("axes fraction", "data"),
        xytext=(-2, -3 if below else 3),
        textcoords="offset points",
        ha="right",
        va="top" if below else "bottom",
        fontsize=8,
        color=theme.quiet,
    )


def _style(axes: "Axes", panel: PlotPanel, theme: Theme) -> None:
    axes.set_facecolor(theme.paper)
    axes.set_xlabel(panel.x_name, fontsize=8.5, color=theme.quiet)
    axes.tick_params(colors=theme.quiet, labelsize=8.5, length=0)
    axes.grid(axis="y", color=theme.rule, lw=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.rule)
    positions, labels, _ = ticks(*axes.get_xlim(), share=panel.x_share)
    axes.set_xticks(positions, labels)
    positions, labels, unit = ticks(*axes.get_ylim(), share=panel.share)
    axes.set_yticks(positions, labels)
    axes.set_title(panel.title + unit, loc="left", fontsize=10.5, color=theme.ink)


def ticks(low: float, high: float, *, share: bool = False) -> tuple[list[float], list[str], str]:
    """Tick positions, tick labels, and the unit (a power of ten) for the axis title.

    All labels have the same number of digits, as few as distinguish them.
    """
    scale = 100.0 if share else 1.0
    candidates = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low * scale, high * scale)
    inside = [float(v) for v in candidates if low * scale <= v <= high * scale]
    largest = max((abs(v) for v in inside), default=0.0)
    power = math.floor(math.log10(largest)) if largest and largest < TINY else 0
    shown = [v / 10**power for v in inside]
    digits = next(
        (
            n
            for n in range(9)
            if all(abs(round(v, n) - v) < 1e-9 * max(map(abs, shown)) for v in shown)
        ),
        9,
    )
    labels = [f"{v + 0.0:,.{digits}f}{' %' if share else ''}" for v in shown]
    unit = f" (×10{str(power).translate(RAISED)})" if power else ""
    return [v / scale for v in inside], labels, unit
