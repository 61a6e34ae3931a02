"""Result of `compare`: a sentence, a CSV table, and data for the page's interval plots."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unfreeze.runtime.tables import write_csv

WIDTH = 300  # units of a scale, left to right


@dataclass(frozen=True)
class Scale:
    """An interval on an axis: places from 0 to WIDTH; `zero` where nothing differs, if shown."""

    low: float
    high: float
    middle: float
    dots: list[float]
    zero: float | None


@dataclass(frozen=True)
class Line:
    """One row: names, a figure with its interval, and the same as a drawing."""

    name: str
    value: str
    interval: str
    aside: str
    scale: Scale


@dataclass(frozen=True)
class Shown:
    """A comparison for the page."""

    verdict: list[str]
    starts: list[Line]
    ends: tuple[str, str]
    differences: list[Line]
    difference_ends: tuple[str, str]
    notes: list[str]
    runs: list[Mapping[str, Any]]


def sentence(
    differences: Sequence[Mapping[str, Any]], names: Mapping[str, str], about: Mapping[str, Any]
) -> str:
    """Did pretraining pay: for each start a sentence against the baseline, `none` if it is there.

    `about`: n, split, seeds, rates, what validation `chose`, and whether all saw the same images;
    `frozen`, where only heads learn: then nothing is what a random network's features give;
    `failed`: in how many runs each start learned nothing, where that is half of them or more.
    """
    return " ".join([*_sentences(differences, names, about), *caveats(about)])


def _sentences(
    differences: Sequence[Mapping[str, Any]], names: Mapping[str, str], about: Mapping[str, Any]
) -> list[str]:
    base = differences[0]["than"]
    nothing = "a frozen random network" if about.get("frozen") else "training from scratch"
    scratch = nothing if base == "none" else ""
    failed, told, said = about.get("failed") or {}, set[str](), list[str]()
    for d in differences:
        if d["than"] != base:
            continue
        lost = [start for start in (d["start"], base) if start in failed]
        why = [
            _failure(start, failed[start], names, about["seeds"])
            for start in lost
            if start not in told
        ]
        told |= {*lost}
        # a start that gained nothing from its training says nothing about its weights
        if d["start"] in lost or (lost and d["verdict"] == "open"):
            said += [*why, _unknown(d, names, scratch)]
        else:
            said += [_said(d, names, scratch), *why]
    return said


def _failure(start: str, count: int, names: Mapping[str, str], seeds: int) -> str:
    runs = "its run" if seeds == 1 else f"{count} of {seeds} runs"
    return f"{_named(start, names)} did not learn: it is no better than guessing in {runs}."


def _named(start: str, names: Mapping[str, str]) -> str:
    return "Training from scratch" if start == "none" else names[start]


def _unknown(d: Mapping[str, Any], names: Mapping[str, str], scratch: str) -> str:
    start, against = names[d["start"]], scratch or names[d["than"]]
    points, (low, high) = 100 * d["difference"], (100 * v for v in d["interval"])
    what = f"whether {start} pays" if scratch else f"whether {start} is better than {against}"
    return (
        f"So this does not show {what}: {points:+.1f} points against {against} (95 %: {low:+.1f} "
        f"to {high:+.1f}) include failed runs. See their warnings, and compare again."
    )


def _said(d: Mapping[str, Any], names: Mapping[str, str], scratch: str) -> str:
    start, base = names[d["start"]], names[d["than"]]
    points, (low, high) = 100 * d["difference"], (100 * v for v in d["interval"])
    against = scratch or base
    range_ = f"(95 %: {low:+.1f} to {high:+.1f})"
    if d["verdict"] == "open":
        what = f"whether {start} pays" if scratch else f"whether {start} is better than {base}"
        return f"Can't tell {what}: {points:+.1f} points against {against} {range_}."
    paid = d["verdict"] == "better"
    if scratch:
        return (
            f"Pretraining {'paid' if paid else 'did not pay'}: {start} is {abs(points):.1f} points "
            f"{'better' if paid else 'worse'} than {against} {range_}."
        )
    return f"{start} is {abs(points):.1f} points {d['verdict']} than {base} {range_}."


def chosen_by_validation(runs: Sequence[Mapping[str, Any]], rates: str) -> list[str]:
    """What the validation images chose in these runs: epochs, learning rates, both or nothing."""
    chose = ["epochs"] if any(run["best_epoch"] is not None for run in runs) else []
    return [*chose, "learning rates"] if rates == "several" else chose


def caveats(about: Mapping[str, Any]) -> list[str]:
    """What the sentences rest on, and what makes them doubtful."""
    seeds = (
        "one seed, so the interval leaves out variation between seeds"
        if about["seeds"] == 1
        else (f"{about['seeds']} seeds")
    )
    said = [f"{seeds[:1].upper()}{seeds[1:]}, {about['n']:,} {about['split']} images."]
    chose = [what for what in ("epochs", "learning rates") if what in about.get("chose", ())]
    if about["split"] == "val" and chose:
        what = " and ".join(chose)
        said.append(
            f"The {what} were also selected on them, so the accuracies are slightly too good."
        )
    if about["rates"] == "own":
        said.append(
            "Learning rates are the defaults for each set of weights; --rates tries several."
        )
    if not about["same"]:
        said.append("The runs did not train on the same images: this comparison is not valid.")
    return said


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One line a run as CSV; an interval as two columns."""
    flat = [
        {k: v for k, v in row.items() if k not in ("interval", "warnings")}
        | {"low": row["interval"][0], "high": row["interval"][1]}
        | {"warnings": " ".join(one["code"] for one in row["warnings"])}
        for row in rows
    ]
    write_csv(path, list(flat[0]), (list(row.values()) for row in flat))


def shown(found: Mapping[str, Any] | None) -> Shown | None:
    """From the fields of compare.json; None where there is none."""
    if not found:
        return None
    starts, differences = found["starts"], found["differences"]
    names = {start["weights"]: start["name"] for start in starts}
    reach = _reach([v for s in starts for v in (*s["interval"], *s["accuracies"])])
    apart = _reach([0.0, *(v for d in differences for v in d["interval"])])
    about = {"n": found["n"], "split": found["split"], "seeds": len(found["seeds"])}
    about |= {"same": found["same_images"], "rates": found["rates"]}
    about |= {"frozen": found.get("frozen"), "failed": found.get("failed")}
    about["chose"] = chosen_by_validation(found["runs"], found["rates"])
    return Shown(
        verdict=_sentences(differences, names, about),
        starts=[_start_line(start, reach) for start in starts],
        ends=_ends(reach, "{:.0f} %"),
        differences=[_difference_line(d, names, apart) for d in differences],
        difference_ends=_ends(apart, "{:+.0f}"),
        notes=caveats(about),
        runs=found["runs"],
    )


def _start_line(start: Mapping[str, Any], reach: tuple[float, float]) -> Line:
    low, high = start["interval"]
    spread = start["deviation"]
    return Line(
        name=start["name"],
        value=f"{100 * start['accuracy']:.1f} %",
        interval=f"{100 * low:.1f} % to {100 * high:.1f} %",
        aside="" if spread is None else f"± {100 * spread:.1f}",
        scale=_scale(start["interval"], start["accuracy"], start["accuracies"], reach, False),
    )


def _difference_line(
    d: Mapping[str, Any], names: Mapping[str, str], reach: tuple[float, float]
) -> Line:
    low, high = d["interval"]
    return Line(
        name=f"{names[d['start']]} against {names[d['than']]}",
        value=f"{100 * d['difference']:+.1f}",
        interval=f"{100 * low:+.1f} to {100 * high:+.1f}",
        aside={"better": "better", "worse": "worse", "open": "can't tell"}[d["verdict"]],
        scale=_scale(d["interval"], d["difference"], [], reach, True),
    )


def _scale(
    interval: Sequence[float],
    middle: float,
    dots: Sequence[float],
    reach: tuple[float, float],
    zero: bool,
) -> Scale:
    def at(value: float) -> float:
        return round(WIDTH * (value - reach[0]) / (reach[1] - reach[0]), 1)

    return Scale(
        at(interval[0]), at(interval[1]), at(middle), [at(v) for v in dots], at(0) if zero else None
    )


def _reach(values: Sequence[float]) -> tuple[float, float]:
    """An axis from one whole percent to another that holds all values."""
    low, high = min(values), max(values)
    room = 0.04 * (high - low) + 0.001
    return math.floor(100 * (low - room)) / 100, math.ceil(100 * (high + room)) / 100


def _ends(reach: tuple[float, float], form: str) -> tuple[str, str]:
    return form.format(100 * reach[0]), form.format(100 * reach[1])
