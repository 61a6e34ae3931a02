"""Images of what the benchmarks measured: every round of ours and of a peer, and the ratios."""

import statistics
from collections.abc import Mapping, Sequence
from itertools import cycle

from matplotlib.figure import Figure

Rounds = Mapping[str, Mapping[str, Sequence[float]]]  # case -> way -> a value for each round
COLOURS = ("#7a7a7a", "#1f5fa8", "#c8641e", "#3b8a3e", "#8a3b7c", "#b8a100")


def draw_rounds(path: str, cases: Rounds, unit: str, *, peer: str = "", less: bool = False) -> None:
    """Dots for rounds, a bar at each median, a row a case; beside it the ratios to `peer`.

    Axes begin at 0. `less`: little is good (seconds); a ratio above 1 always says that the peer is
    slower. Without a `peer` there are no ratios.
    """
    panels = 2 if peer else 1
    shape = (5.6 * panels, 0.6 + 2.9 * len(cases))
    figure = Figure(figsize=shape, dpi=110, layout="constrained")
    grid = figure.subplots(len(cases), panels, squeeze=False)
    for row, (case, ways) in zip(grid, cases.items(), strict=True):
        colours = dict(zip(ways, cycle(COLOURS), strict=False))
        _panel(row[0], ways, unit, colours)
        row[0].set_title(case, loc="left", fontsize=10)
        if peer:
            _panel(row[1], _ratios(ways, peer, less), f"times as fast as {peer}", colours)
            row[1].axhline(1, color=COLOURS[0], linewidth=1, linestyle=":")
    figure.savefig(path)


def _ratios(
    ways: Mapping[str, Sequence[float]], peer: str, less: bool
) -> dict[str, Sequence[float]]:
    return {
        name: [(b / a) if less else (a / b) for a, b in zip(values, ways[peer], strict=True)]
        for name, values in ways.items()
        if name != peer
    }


def _panel(
    axes, ways: Mapping[str, Sequence[float]], unit: str, colours: Mapping[str, str]
) -> None:
    """One column of dots a way, with its median in words."""
    for place, (name, values) in enumerate(ways.items()):
        colour = colours[name]
        spread = [place + 0.3 * (k / max(1, len(values) - 1) - 0.5) for k in range(len(values))]
        axes.plot(spread, values, "o", color=colour, markersize=4, alpha=0.8)
        middle = statistics.median(values)
        axes.plot([place - 0.3, place + 0.3], [middle, middle], color=colour, linewidth=2)
        axes.annotate(
            f"{middle:.3g}", (place + 0.32, middle), va="center", fontsize=9, color=colour
        )
    axes.set_xticks(range(len(ways)), [name.replace(" ", "\n", 1) for name in ways], fontsize=9)
    axes.set_xlim(-0.6, len(ways) - 0.2)
    axes.set_ylim(0, 1.12 * max(max(values) for values in ways.values()))
    axes.set_ylabel(unit)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
