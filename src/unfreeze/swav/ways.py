"""Choice of the fastest step configuration from measured times; pure, no clock.

The configuration changes only if another one is faster by more than `MARGIN`, so that noise does
not change a run.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

MARGIN = 0.1
KNOBS = ("threads", "precision", "workers", "layout")  # in the order of measurement
LAYOUTS = ("channels_last", "contiguous")
_SPARE_WORKERS = 1.5  # safety factor: the cost of views varies


@dataclass(frozen=True)
class Way:
    """A step configuration; `workers`: processes that make the views, 0: the main process."""

    precision: str
    layout: str
    threads: int
    workers: int


@dataclass(frozen=True)
class Spent:
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
class Scope:
    """What may be tuned on this machine.

    `given`: setting -> why it is fixed; such settings are not tuned.
    """

    device: str
    precisions: tuple[str, ...]
    processors: int
    given: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Round:
    """Configurations that differ in one setting, measured with steps of `rows` images.

    The first one is the current configuration.
    """

    knob: str
    rows: int
    spent: dict[Way, Spent]


@dataclass(frozen=True)
class Choice:
    """The chosen configuration, the reason of each setting, and all measurements."""

    way: Way
    reasons: dict[str, str]
    rounds: tuple[Round, ...] = ()
    seconds: float = 0.0

    @property
    def measured(self) -> tuple[int, Spent] | None:
        """(images, time) of the largest step measured with this configuration."""
        steps = [
            (tried.rows, tried.spent[self.way]) for tried in self.rounds if self.way in tried.spent
        ]
        whole = [(rows, spent) for rows, spent in steps if spent.whole]
        return max(whole, key=lambda step: step[0], default=None)

    def record(self, device: str) -> dict[str, Any]:
        """Plain values for config.toml."""
        figures = {
            f"{shown(way)}, {tried.rows} images": _ms(spent)
            for tried in self.rounds
            for way, spent in tried.spent.items()
        }
        run = {"device": device, "probe_seconds": round(self.seconds, 2)}
        return {**asdict(self.way), **run, "reasons": self.reasons, "steps": figures}


def shown(way: Way) -> str:
    """Short description of a configuration."""
    return f"{way.precision}, {way.layout}, {way.threads} threads, {way.workers} workers"


def tries(knob: str, way: Way, scope: Scope) -> list[Way]:
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


def _fewer_threads(way: Way, scope: Scope) -> list[Way]:
    fewer = (
        {max(1, way.threads // 2), max(1, way.threads // 4), 1} if scope.device == "cpu" else set()
    )
    return [replace(way, threads=threads) for threads in sorted(fewer, reverse=True)]


def _precisions(way: Way, scope: Scope) -> list[Way]:
    return [replace(way, precision=precision) for precision in scope.precisions]


def _layouts(way: Way, scope: Scope) -> list[Way]:
    known = LAYOUTS if scope.device in ("cpu", "cuda") else ()
    return [replace(way, layout=layout) for layout in known]


def _workers(way: Way, scope: Scope) -> list[Way]:
    if scope.device != "cpu" or scope.processors < 2:
        return []
    return [_with_workers(way, workers, scope) for workers in sorted({1, scope.processors // 2})]


_ALTERNATIVES = {
    "threads": _fewer_threads,
    "precision": _precisions,
    "layout": _layouts,
    "workers": _workers,
}


def _with_workers(way: Way, workers: int, scope: Scope) -> Way:
    """`way` with `workers`, and as many fewer threads unless they are given."""
    if "threads" in scope.given:
        return replace(way, workers=workers)
    threads = max(1, min(way.threads, scope.processors - workers))
    return replace(way, workers=workers, threads=threads)


def choose(
    rounds: Sequence[Round], usual: Way, scope: Scope, ended: str = "no time was left"
) -> Choice:
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
    return Choice(way, reasons, tuple(rounds))


_NEVER = "compiling takes longer than the time budget"


def _fastest(tried: Round) -> tuple[Way, str]:
    (first, current), *_ = tried.spent.items()
    if len(tried.spent) == 1:
        share = f"{100 * current.data / current.total:.0f} %"
        return first, f"data loading takes {share} of a step, so more workers would not help"
    best = min(tried.spent, key=lambda way: tried.spent[way].total)
    if tried.spent[best].total >= current.total * (1 - MARGIN):
        best = first
    others = [f"{_value(tried, way)} {_ms(tried.spent[way])}" for way in tried.spent if way != best]
    return best, f"{_ms(tried.spent[best])} for a step of {tried.rows} images; {', '.join(others)}"


def _value(tried: Round, way: Way) -> str:
    value = str(getattr(way, tried.knob))
    threads = {way.threads for way in tried.spent}
    if tried.knob == "workers" and len(threads) > 1:
        return f"{value} (threads {way.threads})"
    return value


def _needed_workers(way: Way, tried: Round, scope: Scope) -> tuple[Way, str]:
    """Enough workers to keep the GPU from waiting."""
    spent = next(iter(tried.spent.values()))
    need = math.ceil(_SPARE_WORKERS * spent.data / max(spent.step, 1e-6))
    workers = min(16, scope.processors, max(1, need))
    share = f"{1000 * spent.data:.3g} of {1000 * spent.total:.3g} ms"
    why = f"data loading took {share} of a step of {tried.rows} images without workers"
    return replace(way, workers=workers), why


def _not_measured(knob: str, way: Way, scope: Scope, ended: str) -> str:
    if knob in scope.given:
        return scope.given[knob]
    if tries(knob, way, scope):
        return f"not measured, {ended}"
    reasons = {
        "threads": "already 1" if scope.device == "cpu" else f"the network is on {scope.device}",
        "precision": f"no other is fast on this {scope.device}",
        "layout": f"the only one on {scope.device}",
        "workers": "a single processor" if scope.device == "cpu" else "default",
    }
    return reasons[knob]


def _ms(spent: Spent) -> str:
    if math.isinf(spent.total):
        return "out of memory"
    return f"{'' if spent.whole else 'over '}{1000 * spent.total:.3g} ms"
