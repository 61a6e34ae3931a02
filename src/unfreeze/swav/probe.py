"""Throughput autotuning before step 0, within a time budget.

Times a step with different numbers of threads and workers, precisions and memory formats. Every
step has a time limit and is aborted between two layers when it exceeds it; an aborted step shows
that its configuration is slow.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from unfreeze.swav.ways import KNOBS, MARGIN, Choice, Round, Scope, Spent, Way, choose, tries

SECONDS = 5.0
SHARE = 0.05  # maximum share of the run's time
RESERVE = 0.5  # seconds reserved for shutting down
LEAST = 0.1  # minimum seconds left to start another step
WORKERS_LEAST = 1.0  # likewise, if workers have to be started
FIRST = 2.0  # limit of a configuration's first step, with cold caches
LONGEST = 1.2  # limit of any other step, in seconds
TARGET = 0.08  # seconds of a step that is long enough to measure
REPEATS = 3
HOPELESS = 3.0  # times the fastest step: not measured again


class Measure(Protocol):
    """Times training steps without changing the model."""

    def __call__(self, way: Way, rows: int, limit: float) -> Spent:
        """Time one step of `rows` images with `way`; aborted soon after `limit` seconds."""


def probe(
    usual: Way,
    scope: Scope,
    measure: Measure,
    *,
    rows: tuple[int, int],
    steps: int,
    clock: Callable[[], float] = time.monotonic,
) -> Choice:
    """Choose the fastest configuration, timing steps of `rows` (minimum, maximum) images.

    `steps`: of the run. Takes at most `SECONDS`, and less for a short run.
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
            ways = ways[:1]  # workers cannot help
        medians = limited.in_turn(ways, size) if len(ways) > 1 else {ways[0]: spent}
        if medians is not None:
            rounds.append(Round(knob, size, medians))
            way = choose(rounds, usual, scope).way
    return replace(choose(rounds, usual, scope, limited.ended), seconds=limited.elapsed)


class _Limited:
    """Measurements within a time budget."""

    def __init__(self, measure: Measure, clock: Callable[[], float], rows: tuple[int, int]) -> None:
        self.measure, self.clock, self.rows = measure, clock, rows
        self.began, self.limit = clock(), SECONDS - RESERVE
        self.ended = "no time was left"
        self.warm: set[tuple[Way, int]] = set()
        self.slow: dict[tuple[Way, int], Spent] = {}  # aborted steps

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.began

    def step(self, way: Way, rows: int, most: float) -> Spent | None:
        """Time one step with a limit of `most` seconds; None if no time is left."""
        least = WORKERS_LEAST if way.workers and (way, rows) not in self.warm else LEAST
        left = self.limit - self.elapsed
        if left < least:
            return None
        self.warm.add((way, rows))
        return self.measure(way, rows, min(left, most))

    def counted(self, way: Way, rows: int, most: float = LONGEST) -> Spent | None:
        """Time a warm step: the first step of a configuration is not counted."""
        if (way, rows) not in self.warm:
            self.step(way, rows, FIRST)
        if (way, rows) in self.slow:
            return None
        spent = self.step(way, rows, most)
        if spent is not None and not spent.whole:
            self.slow[way, rows] = spent
        return spent

    def sized(self, way: Way, steps: int) -> tuple[int, Spent] | None:
        """(images of a step long enough to measure, its time); None if no time is left."""
        rows, most = self.rows
        while True:
            spent = self.counted(way, rows) or self.slow.get((way, rows))
            if spent is None:
                return None
            self._limit_budget(steps, spent)
            if rows >= most or 2 * spent.total > TARGET:
                return rows, spent
            rows = min(most, rows * min(8, max(2, int(TARGET / max(spent.total, 1e-6)))))

    def _limit_budget(self, steps: int, spent: Spent) -> None:
        """Limit the budget to a share of the run's time, estimated from one step's time."""
        if SHARE * steps * spent.total < self.limit:
            self.limit = SHARE * steps * spent.total
            self.ended = f"a run of {steps:,} steps is too short to benefit"

    def in_turn(self, ways: Sequence[Way], rows: int) -> dict[Way, Spent] | None:
        """Median step time of each configuration, measured alternately; None without a comparison.

        A configuration without a measurement is omitted, one that is far slower is not repeated.
        """
        measured: dict[Way, list[Spent]] = {
            way: [self.slow[way, rows]] if (way, rows) in self.slow else [] for way in ways
        }
        for _ in range(REPEATS):
            for way, steps in measured.items():
                best = min(
                    (s.total for others in measured.values() for s in others if s.whole), default=0
                )
                most = min(LONGEST, HOPELESS * best) if best else LONGEST
                if not steps or (_median(steps).total < most and len(steps) * best < 4 * TARGET):
                    spent = self.counted(way, rows, most)
                    steps += [spent] if spent is not None else []
        medians = {way: _median(steps) for way, steps in measured.items() if steps}
        fastest = min(medians.values(), key=lambda spent: spent.total, default=None)
        compared = ways[0] in medians and len(medians) > 1
        return medians if compared and fastest is not None and fastest.whole else None


def _median(steps: Sequence[Spent]) -> Spent:
    """Median of the steps; if one was aborted, that one."""
    aborted = [spent for spent in steps if not spent.whole]
    if aborted:
        return aborted[0]
    return Spent(
        statistics.median(spent.data for spent in steps),
        statistics.median(spent.step for spent in steps),
    )
