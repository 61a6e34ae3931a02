"""Which way of computing a step pays: decided from measured seconds, without a clock.

A way is left for another only where that is faster by more than `MARGIN`: what is as fast stays as
it is, so that noise moves no run.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

MARGIN = 0.1
KNOBS = ("threads", "precision", "workers", "layout")  # in the order in which they are measured
LAYOUTS = ("channels_last", "contiguous")
_SPARE_WORKERS = 1.5  # times what the views need: their cost varies


@dataclass(frozen=True)
class Way:
    """How steps are computed; `workers` processes make the views, 0: the main one does."""

    precision: str
    layout: str
    threads: int
    workers: int


@dataclass(frozen=True)
class Spent:
    """Seconds of one step: waiting for its views, and the network.

    Not `whole`: the step was cut off after so long; infinite: it did not fit into memory.
    """

    data: float
    step: float
    whole: bool = True

    @property
    def total(self) -> float:
        """Both."""
        return self.data + self.step


@dataclass(frozen=True)
class Scope:
    """What may be tried: precisions and processors of this machine, but nothing that was `given`.

    `given`: knob -> who gave its value.
    """

    device: str
    precisions: tuple[str, ...]
    processors: int
    given: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Round:
    """Ways that differ in one knob, tried in turn with steps of `rows` images.

    The first of them is the one that was used so far.
    """

    knob: str
    rows: int
    spent: dict[Way, Spent]


@dataclass(frozen=True)
class Choice:
    """The way to take, the reason for each knob, and what was measured in how many seconds."""

    way: Way
    reasons: dict[str, str]
    rounds: tuple[Round, ...] = ()
    seconds: float = 0.0

    @property
    def measured(self) -> tuple[int, Spent] | None:
        """Images of the largest step that was measured in this way, and its seconds."""
        found = [
            (tried.rows, tried.spent[self.way]) for tried in self.rounds if self.way in tried.spent
        ]
        whole = [(rows, spent) for rows, spent in found if spent.whole]
        return max(whole, key=lambda one: one[0], default=None)

    def record(self, device: str) -> dict[str, Any]:
        """What config.toml keeps: all of it."""
        figures = {
            f"{shown(way)}, {tried.rows} images": _ms(spent)
            for tried in self.rounds
            for way, spent in tried.spent.items()
        }
        taken = {"device": device, "probe_seconds": round(self.seconds, 2)}
        return {**asdict(self.way), **taken, "reasons": self.reasons, "steps": figures}


def shown(way: Way) -> str:
    """A way in a few words."""
    return f"{way.precision}, {way.layout}, {way.threads} threads, {way.workers} workers"


def tries(knob: str, way: Way, scope: Scope) -> list[Way]:
    """`way` and what to try beside it for this knob; [] where its value is given or the only one.

    Beside a GPU nothing is tried with workers: how many it needs is counted, which takes one
    measurement without any.
    """
    if knob in scope.given:
        return []
    if scope.device == "cuda":
        way = replace(way, workers=0)
        if knob == "workers":
            return [way]
    rivals = [other for other in _RIVALS[knob](way, scope) if other != way]
    return [way, *rivals] if rivals else []


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
    return [_beside(way, workers, scope) for workers in sorted({1, scope.processors // 2})]


_RIVALS = {
    "threads": _fewer_threads,
    "precision": _precisions,
    "layout": _layouts,
    "workers": _workers,
}


def _beside(way: Way, workers: int, scope: Scope) -> Way:
    """`workers` more processes, and as many threads fewer where these are free."""
    if "threads" in scope.given:
        return replace(way, workers=workers)
    threads = max(1, min(way.threads, scope.processors - workers))
    return replace(way, workers=workers, threads=threads)


def choose(
    rounds: Sequence[Round], usual: Way, scope: Scope, ended: str = "no time was left"
) -> Choice:
    """The way that the rounds, one after the other, lead to from `usual`; a reason for each knob.

    A pure function of what was measured; `ended` says why a round may be missing.
    """
    way, reasons = usual, {}
    by_knob = {tried.knob: tried for tried in rounds}
    for knob in KNOBS:
        tried = by_knob.get(knob)
        if tried is None:
            why = _untried(knob, way, scope, ended)
        elif knob == "workers" and scope.device == "cuda":
            way, why = _enough(way, tried, scope)
        else:
            best, why = _fastest(tried)
            moved = ("workers", "threads") if knob == "workers" else (knob,)
            way = replace(way, **{name: getattr(best, name) for name in moved})
        reasons[knob] = f"{getattr(way, knob)}: {why}"
    reasons["compile"] = f"no: {_NEVER}"
    return Choice(way, reasons, tuple(rounds))


_NEVER = "compiling takes longer than the measurement may"


def _fastest(tried: Round) -> tuple[Way, str]:
    (first, so_far), *_ = tried.spent.items()
    if len(tried.spent) == 1:
        part = f"{100 * so_far.data / so_far.total:.0f} %"
        return first, f"views take {part} of a step, so more workers would not help"
    best = min(tried.spent, key=lambda way: tried.spent[way].total)
    if tried.spent[best].total >= so_far.total * (1 - MARGIN):
        best = first
    others = [f"{_value(tried, way)} {_ms(tried.spent[way])}" for way in tried.spent if way != best]
    return best, f"{_ms(tried.spent[best])} for a step of {tried.rows} images; {', '.join(others)}"


def _value(tried: Round, way: Way) -> str:
    value = str(getattr(way, tried.knob))
    threads = {way.threads for way in tried.spent}
    if tried.knob == "workers" and len(threads) > 1:
        return f"{value} (threads {way.threads})"
    return value


def _enough(way: Way, tried: Round, scope: Scope) -> tuple[Way, str]:
    """As many workers as keep a GPU from waiting."""
    spent = next(iter(tried.spent.values()))
    need = math.ceil(_SPARE_WORKERS * spent.data / max(spent.step, 1e-6))
    workers = min(16, scope.processors, max(1, need))
    part = f"{1000 * spent.data:.3g} of {1000 * spent.total:.3g} ms"
    why = f"views took {part} of a step of {tried.rows} images without workers"
    return replace(way, workers=workers), why


def _untried(knob: str, way: Way, scope: Scope, ended: str) -> str:
    if knob in scope.given:
        return scope.given[knob]
    if tries(knob, way, scope):
        return f"not measured, {ended}"
    only = {
        "threads": "there are no fewer" if scope.device == "cpu" else "the network is elsewhere",
        "precision": f"nothing else is fast on this {scope.device}",
        "layout": f"the only one on {scope.device}",
        "workers": "there is one processor" if scope.device == "cpu" else "the usual",
    }
    return only[knob]


def _ms(spent: Spent) -> str:
    if math.isinf(spent.total):
        return "does not fit"
    return f"{'' if spent.whole else 'over '}{1000 * spent.total:.3g} ms"
