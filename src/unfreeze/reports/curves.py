"""A run's curves as pictures, for light pages and dark ones."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from unfreeze.reports.panels import Line, Panel
from unfreeze.runtime.outputs import GENERATOR

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTH_FROM = 60  # points; fewer are drawn as they are
# inches of a panel and of the margins inside it; fixed, because measuring text costs half the time
PANEL, LEFT, RIGHT, TOP, BOTTOM = (4.2, 3.1), 0.68, 0.14, 0.42, 0.52


@dataclass(frozen=True)
class Theme:
    """Colours of a drawing; lines take `series` in turn."""

    paper: str
    ink: str
    quiet: str
    rule: str
    series: tuple[str, ...]


LIGHT = Theme("#ffffff", "#1f2328", "#6b7280", "#e3e5e8", ("#2563a8", "#c2571a", "#3f7d4e"))
DARK = Theme("#16181b", "#e6e6e3", "#9aa0a6", "#33373c", ("#6fa8dc", "#e39a5f", "#86c08f"))


def draw(panels: Sequence[Panel], theme: Theme = LIGHT, *, columns: int = 3) -> bytes:
    """One PNG of all panels, `columns` beside each other at most."""
    rows = -(-len(panels) // columns)
    columns = -(-len(panels) // rows)  # four stand two by two, not three and one
    width, height = PANEL[0] * columns, PANEL[1] * rows
    figure = Figure(figsize=(width, height), dpi=160, facecolor=theme.paper)
    for place, panel in enumerate(panels):
        row, column = divmod(place, columns)
        left, bottom = PANEL[0] * column + LEFT, height - PANEL[1] * (row + 1) + BOTTOM
        size = (PANEL[0] - LEFT - RIGHT) / width, (PANEL[1] - BOTTOM - TOP) / height
        _panel(figure.add_axes((left / width, bottom / height, *size)), panel, theme)
    FigureCanvasAgg(figure)
    held = io.BytesIO()
    figure.savefig(held, format="png", metadata={"Software": GENERATOR})
    return held.getvalue()


def _panel(axes: "Axes", panel: Panel, theme: Theme) -> None:
    colours = dict(zip((line.name for line in panel.lines), theme.series * 4, strict=False))
    for line in panel.lines:
        _line(axes, line, theme.quiet if line.faint else colours[line.name])
    if panel.level is not None:
        _level(axes, *panel.level, theme)
    _dress(axes, panel, theme)
    if len(panel.lines) > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=theme.ink, handlelength=1.2)


def _line(axes: "Axes", line: Line, colour: str) -> None:
    if line.spread is not None:
        style = {"marker": "o", "markersize": 4.0, "capsize": 2.5, "linewidth": 1.5}
        axes.errorbar(line.x, line.y, line.spread, color=colour, label=line.name, **style)  # type: ignore[arg-type]
        return
    if line.exact or len(line.y) < SMOOTH_FROM:
        marker = "o" if len(line.y) < 25 else ""
        axes.plot(
            line.x, line.y, color=colour, lw=1.5, marker=marker, markersize=3, label=line.name
        )
        return
    axes.plot(line.x, line.y, color=colour, lw=0.8, alpha=0.3)
    axes.plot(line.x, smoothed(line.x, line.y), color=colour, lw=1.5, label=line.name)


def smoothed(x: Sequence[float], y: Sequence[float]) -> list[float]:
    """The mean of the points within a sixtieth of the whole range on either side.

    By range and not by count: the first steps of a run are recorded far more densely.
    """
    place, sums = np.asarray(x), np.concatenate([[0.0], np.cumsum(y)])
    reach = (place[-1] - place[0]) / 60
    low, high = (
        np.searchsorted(place, place - reach),
        np.searchsorted(place, place + reach, "right"),
    )
    return [float(v) for v in (sums[high] - sums[low]) / np.maximum(high - low, 1)]


def _level(axes: "Axes", value: float, name: str, theme: Theme) -> None:
    axes.axhline(value, color=theme.quiet, lw=1, ls=(0, (4, 3)))
    axes.annotate(
        name,
        (1, value),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 3),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color=theme.quiet,
    )
    axes.margins(y=0.12)


def _dress(axes: "Axes", panel: Panel, theme: Theme) -> None:
    axes.set_facecolor(theme.paper)
    axes.set_title(panel.title, loc="left", fontsize=10.5, color=theme.ink)
    axes.set_xlabel(panel.x_name, fontsize=8.5, color=theme.quiet)
    axes.tick_params(colors=theme.quiet, labelsize=8.5, length=0)
    axes.grid(axis="y", color=theme.rule, lw=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.rule)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=not panel.x_share))
    if panel.x_share:
        axes.xaxis.set_major_formatter(FuncFormatter(_percent))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    written = _percent if panel.share else _plain
    axes.yaxis.set_major_formatter(FuncFormatter(written))


def _percent(value: float, place: int | None) -> str:
    return f"{100 * value:.3g} %"


def _plain(value: float, place: int | None) -> str:
    return f"{value:.4g}"
