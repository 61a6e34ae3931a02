"""Plots of benchmark results: every round of ours and of a peer, and their ratios."""

import statistics
from collections.abc import Mapping, Sequence
from itertools import cycle

from matplotlib.figure import Figure

Rounds = Mapping[str, Mapping[str, Sequence[float]]]  # case -> variant -> one value per round
COLOURS = ("#7a7a7a", "#1f5fa8", "#c8641e", "#3b8a3e", "#8a3b7c", "#b8a100")


def draw_rounds(path: str, cases: Rounds, unit: str, *, peer: str = "", less: bool = False) -> None:
    """Plot one row per case: a dot per round, a bar at the median, and the ratios to `peer`.

    Axes start at 0. `less`: lower values are better (seconds); a ratio above 1 always means that
    the peer is slower. Without `peer` no ratios are plotted.
    """
    panels = 2 if peer else 1
    shape = (5.6 * panels, 0.6 + 2.9 * len(cases))
    figure = Figure(figsize=shape, dpi=110, layout="constrained")
    grid = figure.subplots(len(cases), panels, squeeze=False)
    for row, (case, variants) in zip(grid, cases.items(), strict=True):
        colours = dict(zip(variants, cycle(COLOURS), strict=False))
        _panel(row[0], variants, unit, colours)
        row[0].set_title(case, loc="left", fontsize=10)
        if peer:
            _panel(row[1], _ratios(variants, peer, less), f"times as fast as {peer}", colours)
            row[1].axhline(1, color=COLOURS[0], linewidth=1, linestyle=":")
    figure.savefig(path)


def _ratios(
    variants: Mapping[str, Sequence[float]], peer: str, less: bool
) -> dict[str, Sequence[float]]:
    return {
        name: [(b / a) if less else (a / b) for a, b in zip(values, variants[peer], strict=True)]
        for name, values in variants.items()
        if name != peer
    }


def _panel(
    axes, variants: Mapping[str, Sequence[float]], unit: str, colours: Mapping[str, str]
) -> None:
    """One column of dots per variant, annotated with the median."""
    for index, (name, values) in enumerate(variants.items()):
        colour = colours[name]
        spread = [index + 0.3 * (k / max(1, len(values) - 1) - 0.5) for k in range(len(values))]
        axes.plot(spread, values, "o", color=colour, markersize=4, alpha=0.8)
        middle = statistics.median(values)
        axes.plot([index - 0.3, index + 0.3], [middle, middle], color=colour, linewidth=2)
        axes.annotate(
            f"{middle:.3g}", (index + 0.32, middle), va="center", fontsize=9, color=colour
        )
    axes.set_xticks(
        range(len(variants)), [name.replace(" ", "\n", 1) for name in variants], fontsize=9
    )
    axes.set_xlim(-0.6, len(variants) - 0.2)
    axes.set_ylim(0, 1.12 * max(max(values) for values in variants.values()))
    axes.set_ylabel(unit)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
