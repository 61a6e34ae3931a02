"""Choice of the fastest step configuration from measured times; pure, no clock.

The configuration changes only if another one is faster by more than `MARGIN`, so that noise does
not change a run.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

MARGIN = 0.1
KNOBS = ("threads", "precision", "workers", "layout")  # in the order of measurement
LAYOUTS = ("channels_last", "contiguous")
_SPARE_WORKERS = 1.5  # safety factor: the cost of views varies


@dataclass(frozen=True)
class StepConfig:
    """A step configuration; `workers`: processes that make the views, 0: the main process."""

    precision: str
    layout: str
    threads: int
    workers: int


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step: waiting for data, and computation.

    Not `whole`: the step was aborted after that time; infinite: out of memory.
    """

    data: float
    step: float
    whole: bool = True

    @property
    def total(self) -> float:
        """Data and computation together."""
        return self.data + self.step


@dataclass(frozen=True)
class TuningScope:
    """What may be tuned on this machine.

    `given`: setting -> why it is fixed; such settings are not tuned.
    """

    device: str
    precisions: tuple[str, ...]
    processors: int
    given: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TuningRound:
    """Configurations that differ in one setting, measured with steps of `rows` images.

    The first one is the current configuration.
    """

    knob: str
    rows: int
    spent: dict[StepConfig, StepTime]


@dataclass(frozen=True)
class TuningResult:
    """The chosen configuration, the reason of each setting, and all measurements."""

    way: StepConfig
    reasons: dict[str, str]
    rounds: tuple[TuningRound, ...] = ()
    seconds: float = 0.0
    short_run: bool = False  # measured less than a longer run would have

    @property
    def measured(self) -> tuple[int, StepTime] | None:
        """(images, time) of the largest step measured with this configuration."""
        steps = [
            (tried.rows, tried.spent[self.way]) for tried in self.rounds if self.way in tried.spent
        ]
        whole = [(rows, spent) for rows, spent in steps if spent.whole]
        return max(whole, key=lambda step: step[0], default=None)

    def record(self, device: str) -> dict[str, Any]:
        """Plain values for config.toml."""
        figures = {
            f"{describe(way)}, {tried.rows} images": _ms(spent)
            for tried in self.rounds
            for way, spent in tried.spent.items()
        }
        run = {"device": device, "probe_seconds": round(self.seconds, 2)}
        return {**asdict(self.way), **run, "reasons": self.reasons, "steps": figures}


def describe(way: StepConfig) -> str:
    """Short description of a configuration."""
    return f"{way.precision}, {way.layout}, {way.threads} threads, {way.workers} workers"


def candidates_for(knob: str, way: StepConfig, scope: TuningScope) -> list[StepConfig]:
    """`way` and its alternatives in this setting; [] if it is given or has no alternative.

    With a GPU the number of workers is computed from one measurement without workers.
    """
    if knob in scope.given:
        return []
    if scope.device == "cuda":
        way = replace(way, workers=0)
        if knob == "workers":
            return [way]
    alternatives = [other for other in _ALTERNATIVES[knob](way, scope) if other != way]
    return [way, *alternatives] if alternatives else []


def _fewer_threads(way: StepConfig, scope: TuningScope) -> list[StepConfig]:
    fewer = (
        {max(1, way.threads // 2), max(1, way.threads // 4), 1} if scope.device == "cpu" else set()
    )
    return [replace(way, threads=threads) for threads in sorted(fewer, reverse=True)]


def _precisions(way: StepConfig, scope: TuningScope) -> list[StepConfig]:
    return [replace(way, precision=precision) for precision in scope.precisions]


def _layouts(way: StepConfig, scope: TuningScope) -> list[StepConfig]:
    known = LAYOUTS if scope.device in ("cpu", "cuda") else ()
    return [replace(way, layout=layout) for layout in known]


def _workers(way: StepConfig, scope: TuningScope) -> list[StepConfig]:
    if scope.device != "cpu" or scope.processors < 2:
        return []
    return [_with_workers(way, workers, scope) for workers in sorted({1, scope.processors // 2})]


_ALTERNATIVES = {
    "threads": _fewer_threads,
    "precision": _precisions,
    "layout": _layouts,
    "workers": _workers,
}


def _with_workers(way: StepConfig, workers: int, scope: TuningScope) -> StepConfig:
    """`way` with `workers`, and as many fewer threads unless they are given."""
    if "threads" in scope.given:
        return replace(way, workers=workers)
    threads = max(1, min(way.threads, scope.processors - workers))
    return replace(way, workers=workers, threads=threads)


def choose_config(
    rounds: Sequence[TuningRound],
    usual: StepConfig,
    scope: TuningScope,
    ended: str = "no time was left",
) -> TuningResult:
    """The fastest configuration by the rounds, applied in order to `usual`, with reasons.

    A pure function of the measurements; `ended`: why a round may be missing.
    """
    way, reasons = usual, {}
    by_knob = {tried.knob: tried for tried in rounds}
    for knob in KNOBS:
        tried = by_knob.get(knob)
        if tried is None:
            why = _not_measured(knob, way, scope, ended)
        elif knob == "workers" and scope.device == "cuda":
            way, why = _needed_workers(way, tried, scope)
        else:
            best, why = _fastest(tried)
            moved = ("workers", "threads") if knob == "workers" else (knob,)
            way = replace(way, **{name: getattr(best, name) for name in moved})
        reasons[knob] = f"{getattr(way, knob)}: {why}"
    reasons["compile"] = f"no: {_NEVER}"
    return TuningResult(way, reasons, tuple(rounds))


_NEVER = "compiling takes longer than the time budget"


def _fastest(tried: TuningRound) -> tuple[StepConfig, str]:
    (first, current), *_ = tried.spent.items()
    if len(tried.spent) == 1:
        share = f"{100 * current.data / current.total:.0f} %"
        return first, f"data loading takes {share} of a step, so more workers would not help"
    best = min(tried.spent, key=lambda way: tried.spent[way].total)
    if tried.spent[best].total >= current.total * (1 - MARGIN):
        best = first
    others = [f"{_value(tried, way)} {_ms(tried.spent[way])}" for way in tried.spent if way != best]
    return best, f"{_ms(tried.spent[best])} for a step of {tried.rows} images; {', '.join(others)}"


def _value(tried: TuningRound, way: StepConfig) -> str:
    value = str(getattr(way, tried.knob))
    threads = {way.threads for way in tried.spent}
    if tried.knob == "workers" and len(threads) > 1:
        return f"{value} (threads {way.threads})"
    return value


def _needed_workers(
    way: StepConfig, tried: TuningRound, scope: TuningScope
) -> tuple[StepConfig, str]:
    """Enough workers to keep the GPU from waiting."""
    spent = next(iter(tried.spent.values()))
    need = math.ceil(_SPARE_WORKERS * spent.data / max(spent.step, 1e-6))
    workers = min(16, scope.processors, max(1, need))
    share = f"{1000 * spent.data:.3g} of {1000 * spent.total:.3g} ms"
    why = f"data loading took {share} of a step of {tried.rows} images without workers"
    return replace(way, workers=workers), why


def _not_measured(knob: str, way: StepConfig, scope: TuningScope, ended: str) -> str:
    if knob in scope.given:
        return scope.given[knob]
    if candidates_for(knob, way, scope):
        return f"not measured, {ended}"
    reasons = {
        "threads": "already 1" if scope.device == "cpu" else f"the network is on {scope.device}",
        "precision": f"no other is fast on this {scope.device}",
        "layout": f"the only one on {scope.device}",
        "workers": "a single processor" if scope.device == "cpu" else "default",
    }
    return reasons[knob]


def _ms(spent: StepTime) -> str:
    if math.isinf(spent.total):
        return "out of memory"
    return f"{'' if spent.whole else 'over '}{1000 * spent.total:.3g} ms"


SECONDS = 1.5
SHARE = 0.05  # maximum share of the run's time
RESERVE = 0.3  # seconds reserved for shutting down
LEAST = 0.05  # minimum seconds left to start another step
WORKERS_LEAST = 0.3  # likewise, if workers have to be started
FIRST = 0.5  # limit of a configuration's first step, with cold caches
LONGEST = 0.3  # limit of any other step, in seconds
TARGET = 0.03  # seconds of a step that is long enough to measure
REPEATS = 3
HOPELESS = 3.0  # times the fastest step: not measured again


class StepTimer(Protocol):
    """Times training steps without changing the model."""

    def __call__(self, way: StepConfig, rows: int, limit: float) -> StepTime:
        """Time one step of `rows` images with `way`; aborted soon after `limit` seconds."""


def probe_ways(
    usual: StepConfig,
    scope: TuningScope,
    measure: StepTimer,
    *,
    rows: tuple[int, int],
    steps: int,
    clock: Callable[[], float] = time.monotonic,
) -> TuningResult:
    """Choose the fastest configuration, timing steps of `rows` (minimum, maximum) images.

    `steps`: of the run. Takes at most `SECONDS`, and less for a short run.
    """
    limited = _TimedSteps(measure, clock, rows)
    way, rounds = usual, list[TuningRound]()
    for knob in KNOBS:
        ways = candidates_for(knob, way, scope)
        sized = limited.sized(ways[0], steps) if ways else None
        if sized is None:
            continue
        size, spent = sized
        if knob == "workers" and spent.whole and spent.data < MARGIN * spent.total:
            ways = ways[:1]  # workers cannot help
        medians = limited.alternating(ways, size) if len(ways) > 1 else {ways[0]: spent}
        if medians is not None:
            rounds.append(TuningRound(knob, size, medians))
            way = choose_config(rounds, usual, scope).way
    result = choose_config(rounds, usual, scope, limited.ended)
    return replace(result, seconds=limited.elapsed, short_run=limited.short and limited.cut)


class _TimedSteps:
    """Measurements within a time budget."""

    def __init__(
        self, measure: StepTimer, clock: Callable[[], float], rows: tuple[int, int]
    ) -> None:
        self.measure, self.clock, self.rows = measure, clock, rows
        self.began, self.limit = clock(), SECONDS - RESERVE
        self.ended = "no time was left"
        self.short = self.cut = False  # the run is short; something was not measured to its end
        self.warm: set[tuple[StepConfig, int]] = set()
        self.slow: dict[tuple[StepConfig, int], StepTime] = {}  # aborted steps

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.began

    def step(self, way: StepConfig, rows: int, most: float) -> StepTime | None:
        """Time one step with a limit of `most` seconds; None if no time is left."""
        least = WORKERS_LEAST if way.workers and (way, rows) not in self.warm else LEAST
        left = self.limit - self.elapsed
        if left < least:
            self.cut = True
            return None
        self.warm.add((way, rows))
        spent = self.measure(way, rows, min(left, most))
        self.cut |= not spent.whole and left < most
        return spent

    def counted(self, way: StepConfig, rows: int, most: float = LONGEST) -> StepTime | None:
        """Time a warm step: the first step of a configuration is not counted."""
        if (way, rows) not in self.warm:
            self.step(way, rows, FIRST)
        if (way, rows) in self.slow:
            return None
        spent = self.step(way, rows, most)
        if spent is not None and not spent.whole:
            self.slow[way, rows] = spent
        return spent

    def sized(self, way: StepConfig, steps: int) -> tuple[int, StepTime] | None:
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

    def _limit_budget(self, steps: int, spent: StepTime) -> None:
        """Limit the budget to a share of the run's time, estimated from one step's time."""
        if SHARE * steps * spent.total < self.limit:
            self.limit, self.short = SHARE * steps * spent.total, True
            self.ended = f"a run of {steps:,} steps is too short to benefit"

    def alternating(
        self, ways: Sequence[StepConfig], rows: int
    ) -> dict[StepConfig, StepTime] | None:
        """Median step time of each configuration, measured alternately; None without a comparison.

        A configuration without a measurement is omitted, one that is far slower is not repeated.
        """
        measured: dict[StepConfig, list[StepTime]] = {
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


def _median(steps: Sequence[StepTime]) -> StepTime:
    """Median of the steps; if one was aborted, that one."""
    aborted = [spent for spent in steps if not spent.whole]
    if aborted:
        return aborted[0]
    return StepTime(
        statistics.median(spent.data for spent in steps),
        statistics.median(spent.step for spent in steps),
    )
