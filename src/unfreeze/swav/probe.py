"""The probe before step 0: tries ways of computing a step, and never takes longer than it may.

Every step gets a limit and is cut off where it passes that, between two layers; a step that was cut
says that its way is slow, which is all there is to know.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from unfreeze.swav.ways import KNOBS, MARGIN, Choice, Round, Scope, Spent, Way, choose, tries

SECONDS = 5.0
SHARE = 0.05  # of the whole run, at most
RESERVE = 0.5  # seconds for ending what was started
LEAST = 0.1  # seconds left without which nothing more is begun
WORKERS_LEAST = 1.0  # the same for ways whose workers have to be started
FIRST = 2.0  # seconds that the first step of a way may take, which finds nothing in place
LONGEST = 1.2  # and any other
TARGET = 0.08  # seconds of a step that is long enough to measure
REPEATS = 3
HOPELESS = 3.0  # times the seconds of the fastest


class Measure(Protocol):
    """Makes steps that change nothing, and times them."""

    def __call__(self, way: Way, rows: int, limit: float) -> Spent:
        """One step of `rows` images in this way; cut off soon after `limit` seconds."""


def probe(
    usual: Way,
    scope: Scope,
    measure: Measure,
    *,
    rows: tuple[int, int],
    steps: int,
    clock: Callable[[], float] = time.monotonic,
) -> Choice:
    """What pays, by steps of `rows` (fewest, most) images; the run has so many `steps`.

    Ends within `SECONDS`, and earlier for a run that is soon over.
    """
    limited = _Limited(measure, clock, rows)
    way, rounds = usual, list[Round]()
    for knob in KNOBS:
        ways = tries(knob, way, scope)
        sized = limited.sized(ways[0], steps) if ways else None
        if sized is None:
            continue
        size, spent = sized
        if knob == "workers" and spent.whole and spent.data < MARGIN * spent.total:
            ways = ways[:1]  # nothing to win
        found = limited.in_turn(ways, size) if len(ways) > 1 else {ways[0]: spent}
        if found is not None:
            rounds.append(Round(knob, size, found))
            way = choose(rounds, usual, scope).way
    return replace(choose(rounds, usual, scope, limited.ended), seconds=limited.elapsed)


class _Limited:
    """Measurements, as long as there is time for them."""

    def __init__(self, measure: Measure, clock: Callable[[], float], rows: tuple[int, int]) -> None:
        self.measure, self.clock, self.rows = measure, clock, rows
        self.began, self.limit = clock(), SECONDS - RESERVE
        self.ended = "no time was left"
        self.warm: set[tuple[Way, int]] = set()
        self.slow: dict[tuple[Way, int], Spent] = {}  # what was cut off

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return self.clock() - self.began

    def step(self, way: Way, rows: int, most: float) -> Spent | None:
        """One step of at most so many seconds, or None where there is no time for it."""
        least = WORKERS_LEAST if way.workers and (way, rows) not in self.warm else LEAST
        left = self.limit - self.elapsed
        if left < least:
            return None
        self.warm.add((way, rows))
        return self.measure(way, rows, min(left, most))

    def counted(self, way: Way, rows: int, most: float = LONGEST) -> Spent | None:
        """The same, but not the first of its way, which counts for nothing."""
        if (way, rows) not in self.warm:
            self.step(way, rows, FIRST)
        if (way, rows) in self.slow:
            return None
        spent = self.step(way, rows, most)
        if spent is not None and not spent.whole:
            self.slow[way, rows] = spent
        return spent

    def sized(self, way: Way, steps: int) -> tuple[int, Spent] | None:
        """(images that make a step long enough to measure, that step); None without time."""
        rows, most = self.rows
        while True:
            spent = self.counted(way, rows) or self.slow.get((way, rows))
            if spent is None:
                return None
            self._heed(steps, spent)
            if rows >= most or 2 * spent.total > TARGET:
                return rows, spent
            rows = min(most, rows * min(8, max(2, int(TARGET / max(spent.total, 1e-6)))))

    def _heed(self, steps: int, spent: Spent) -> None:
        """A run of so many steps, none shorter than this part of one, is worth a share of them."""
        if SHARE * steps * spent.total < self.limit:
            self.limit = SHARE * steps * spent.total
            self.ended = f"a run of {steps:,} steps is too short for it to pay"

    def in_turn(self, ways: Sequence[Way], rows: int) -> dict[Way, Spent] | None:
        """Each way's median step, the ways alternating; None where there was nothing to compare.

        A way that there was no time for is left out, one that is far behind is not tried again.
        """
        found: dict[Way, list[Spent]] = {
            way: [self.slow[way, rows]] if (way, rows) in self.slow else [] for way in ways
        }
        for _ in range(REPEATS):
            for way, tried in found.items():
                best = min((s.total for all_ in found.values() for s in all_ if s.whole), default=0)
                most = min(LONGEST, HOPELESS * best) if best else LONGEST
                if not tried or (_middle(tried).total < most and len(tried) * best < 4 * TARGET):
                    spent = self.counted(way, rows, most)
                    tried += [spent] if spent is not None else []
        medians = {way: _middle(tried) for way, tried in found.items() if tried}
        fastest = min(medians.values(), key=lambda spent: spent.total, default=None)
        compared = ways[0] in medians and len(medians) > 1
        return medians if compared and fastest is not None and fastest.whole else None


def _middle(tried: Sequence[Spent]) -> Spent:
    """The median of steps; of one that was cut off that one."""
    cut = [spent for spent in tried if not spent.whole]
    if cut:
        return cut[0]
    return Spent(
        statistics.median(spent.data for spent in tried),
        statistics.median(spent.step for spent in tried),
    )
