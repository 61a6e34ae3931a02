"""Result of `compare`: a sentence, a CSV table, and data for the page's interval plots."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unfreeze.config.commands import TFIDF
from unfreeze.reports.glossary import metric_name
from unfreeze.runtime.text_layout import write_csv

WIDTH = 300  # units of a scale, left to right


@dataclass(frozen=True)
class IntervalPlot:
    """An interval drawn on an axis, in units from 0 to WIDTH; `zero`: position of 0, if shown."""

    low: float
    high: float
    middle: float
    dots: list[float]
    zero: float | None


@dataclass(frozen=True)
class ComparisonRow:
    """One row: name, formatted value and interval, and the interval plot."""

    name: str
    value: str
    interval: str
    aside: str
    scale: IntervalPlot


@dataclass(frozen=True)
class LabelCountTable:
    """Accuracy by number of labels: a row of texts for each of the weights."""

    header: list[str]
    rows: list[list[str]]

    @classmethod
    def of(cls, by_labels: Mapping[str, Any] | None) -> "LabelCountTable | None":
        """From the field `by_labels` of a comparison; None without it."""
        if not by_labels:
            return None
        counts = [f"{count} per class" for count in by_labels["labels_per_class"]]
        rows = [
            [
                start["name"],
                *map(_cell, start["accuracies"], start["intervals"]),
                pretraining_time(start["pretraining_seconds"]),
                " ".join(f"{seconds / 60:.1f}" for seconds in start["seconds"]),
            ]
            for start in by_labels["starts"]
        ]
        return cls(["weights", *counts, "pretraining, min", "a run, min"], rows)


def _cell(accuracy: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{100 * accuracy:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def pretraining_time(seconds: float | None) -> str:
    """Minutes of pretraining; `none` without any, `not known` for weights of others."""
    if seconds is None:
        return "not known"
    return f"{seconds / 60:.1f}" if seconds else "none"


@dataclass(frozen=True)
class ComparisonView:
    """A comparison, formatted for the page."""

    metric: str
    verdict: list[str]
    starts: list[ComparisonRow]
    ends: tuple[str, str]
    differences: list[ComparisonRow]
    difference_ends: tuple[str, str]
    notes: list[str]
    runs: list[Mapping[str, Any]]
    by_labels: "LabelCountTable | None"


@dataclass(frozen=True)
class Score:
    """How a score is written: accuracy in percent, the metric of another task as it is."""

    metric: str = "accuracy"
    lower_is_better: bool = False
    bounded: bool = True

    @classmethod
    def of(cls, results: Mapping[str, Any]) -> "Score":
        """Of the fields of compare.json."""
        metric = results.get("metric") or cls.metric
        bounded = metric == cls.metric or results.get("limits") is not None
        return cls(metric, bool(results.get("lower_is_better")), bounded)

    @property
    def percent(self) -> bool:
        """Whether values are shares of the samples."""
        return self.metric == "accuracy"

    def value(self, value: float) -> str:
        """A value."""
        if self.percent:
            return f"{100 * value:.1f} %"
        return f"{value:.3f}" if self.bounded else f"{value:.4g}"

    def difference(self, value: float) -> str:
        """A difference with its sign."""
        if self.percent:
            return f"{100 * value:+.1f}"
        return f"{value:+.3f}" if self.bounded else f"{value:+.3g}"

    @property
    def name(self) -> str:
        """The metric's name for people."""
        return metric_name(self.metric)

    def apart(self, start: str, value: float, than: str) -> str:
        """How much higher or lower the value of `start` is than that of `than`."""
        if self.percent:
            better = "better" if value > 0 else "worse"
            return f"{start} is {abs(100 * value):.1f} points {better} than {than}"
        amount, higher = self.difference(abs(value))[1:], "higher" if value > 0 else "lower"
        return f"{start}'s {self.name} is {amount} {higher} than that of {than}"


def comparison_sentence(
    differences: Sequence[Mapping[str, Any]], names: Mapping[str, str], about: Mapping[str, Any]
) -> str:
    """Did pretraining pay: a sentence for each start against the baseline (`none`, if included).

    `about`: n, split, seeds, rates, what was selected on validation (`chose`), and whether all
    runs used the `same` images; `score`: the `Score`; `frozen`: only heads are trained, so that the
    baseline is a frozen random network; `failed`: runs in which a start learned nothing, if at
    least half of them.
    """
    return " ".join([*_sentences(differences, names, about), *caveats(about)])


def comparison_verdict(results: Mapping[str, Any]) -> str:
    """The `comparison_sentence` of the fields of compare.json."""
    return comparison_sentence(results["differences"], *_names_and_facts(results))


def comparison_lines(results: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(a sentence for each start, reasons to doubt) from the fields of a comparison."""
    names, about = _names_and_facts(results)
    return _sentences(results["differences"], names, about), caveats(about)


def samples_of_arch(arch: str | None) -> str:
    """`texts` for a text encoder, else `images`."""
    return "texts" if str(arch).startswith("hf/") else "images"


def _names_and_facts(results: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    """`names` and `about` of `comparison_sentence`, from the fields of compare.json."""
    names = {start["weights"]: start["name"] for start in results["starts"]}
    about = {"n": results["n"], "split": results["split"], "seeds": len(results["seeds"])}
    about |= {"same": results["same_images"], "rates": results["rates"]}
    about |= {"frozen": results.get("frozen"), "failed": results.get("failed")}
    about["samples"] = samples_of_arch(results.get("arch"))
    about["score"] = Score.of(results)
    about["arches"] = list(
        dict.fromkeys(start["arch"] for start in results["starts"] if start.get("arch"))
    )
    about["chose"] = selected_on_validation(results["runs"], results["rates"])
    return names, about


def _sentences(
    differences: Sequence[Mapping[str, Any]], names: Mapping[str, str], about: Mapping[str, Any]
) -> list[str]:
    base, score = differences[0]["than"], about.get("score") or Score()
    untrained = "a frozen random network" if about.get("frozen") else "training from scratch"
    failed, explained, sentences = about.get("failed") or {}, set[str](), list[str]()
    for d in differences:
        if d["than"] not in (base, TFIDF):
            continue
        # TF-IDF is no pretraining
        scratch = untrained if d["than"] == "none" and d["start"] != TFIDF else ""
        failing = [start for start in (d["start"], d["than"]) if start in failed]
        why = [
            _failure(start, failed[start], names, about["seeds"])
            for start in failing
            if start not in explained
        ]
        explained |= {*failing}
        # failed runs are no evidence about the initial weights
        if d["start"] in failing or (failing and d["verdict"] == "open"):
            sentences += [*why, _inconclusive(d, names, scratch, score)]
        else:
            sentences += [_conclusion(d, names, scratch, score), *why]
    return sentences


def _failure(start: str, count: int, names: Mapping[str, str], seeds: int) -> str:
    runs = "its run" if seeds == 1 else f"{count} of {seeds} runs"
    return f"{_named(start, names)} did not learn: it is no better than guessing in {runs}."


def _named(start: str, names: Mapping[str, str]) -> str:
    return "Training from scratch" if start == "none" else names[start]


def _inconclusive(
    d: Mapping[str, Any], names: Mapping[str, str], scratch: str, score: Score
) -> str:
    start, against = names[d["start"]], scratch or names[d["than"]]
    question = f"whether {start} pays" if scratch else f"whether {start} is better than {against}"
    return (
        f"So this does not show {question}: the {_amount(d, score)} against {against} "
        f"{_range(d, score)} include failed runs. See their warnings, and compare again."
    )


def _amount(d: Mapping[str, Any], score: Score) -> str:
    of = "points" if score.percent else f"of {score.name}"
    return f"{score.difference(d['difference'])} {of}"


def _range(d: Mapping[str, Any], score: Score) -> str:
    low, high = (score.difference(value) for value in d["interval"])
    return f"(95 %: {low} to {high})"


def _conclusion(d: Mapping[str, Any], names: Mapping[str, str], scratch: str, score: Score) -> str:
    start, base = names[d["start"]], names[d["than"]]
    against = scratch or base
    if d["verdict"] == "open":
        question = f"whether {start} pays" if scratch else f"whether {start} is better than {base}"
        return f"Can't tell {question}: {_amount(d, score)} against {against} {_range(d, score)}."
    apart = f"{score.apart(start, d['difference'], against)} {_range(d, score)}."
    paid = "paid" if d["verdict"] == "better" else "did not pay"
    return f"Pretraining {paid}: {apart}" if scratch else apart


def selected_on_validation(runs: Sequence[Mapping[str, Any]], rates: str) -> list[str]:
    """What was selected on the validation set: `epochs`, `learning rates`, both or nothing."""
    chose = ["epochs"] if any(run["best_epoch"] is not None for run in runs) else []
    return [*chose, "learning rates"] if rates == "several" else chose


def caveats(about: Mapping[str, Any]) -> list[str]:
    """Seeds and images of the comparison, and reasons to doubt it."""
    seeds = (
        "one seed, so the interval leaves out variation between seeds"
        if about["seeds"] == 1
        else (f"{about['seeds']} seeds")
    )
    sentences = [
        f"{seeds[:1].upper()}{seeds[1:]}, {about['n']:,} {about['split']} "
        f"{about.get('samples', 'images')}."
    ]
    chose = [name for name in ("epochs", "learning rates") if name in about.get("chose", ())]
    if about["split"] == "val" and chose:
        selected = " and ".join(chose)
        values = "accuracies" if (about.get("score") or Score()).percent else "values"
        sentences.append(
            f"The {selected} were also selected on them, so the {values} are slightly too good."
        )
    if about["rates"] == "own":
        sentences.append(
            "Learning rates (and optimizers, unless given) are the defaults for each set of "
            "weights; --rates tries several."
        )
    if len(arches := [arch for arch in about.get("arches", ()) if arch != TFIDF]) > 1:
        sentences.append(f"The networks differ, not only their weights: {', '.join(arches)}.")
    if not about["same"]:
        sentences.append("The runs did not train on the same data: this comparison is not valid.")
    return sentences


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV with one row per run; an interval becomes two columns."""
    flat = [
        {k: v for k, v in row.items() if k not in ("interval", "warnings", "metrics")}
        | (row.get("metrics") or {})
        | dict(zip(("low", "high"), row["interval"] or ("", ""), strict=True))
        | {"warnings": " ".join(warning["code"] for warning in row["warnings"])}
        for row in rows
    ]
    write_csv(path, list(flat[0]), (list(row.values()) for row in flat))


def comparison_view(results: Mapping[str, Any] | None) -> ComparisonView | None:
    """The page's data from the fields of compare.json; None without them."""
    if not results:
        return None
    starts, differences = results["starts"], results["differences"]
    names, about = _names_and_facts(results)
    score, by_labels = Score.of(results), results.get("by_labels")
    limits = _axis([v for s in starts for v in (*s["interval"], *_values(s)[1])])
    difference_limits = _axis([0.0, *(v for d in differences for v in d["interval"])])
    return ComparisonView(
        metric=score.name,
        verdict=by_labels["verdicts"] if by_labels else _sentences(differences, names, about),
        starts=[_start_line(start, limits, score) for start in starts],
        ends=_ends(limits, "{:.0f} %" if score.percent else "{:.4g}", score),
        differences=[_difference_line(d, names, difference_limits, score) for d in differences],
        difference_ends=_ends(difference_limits, "{:+.0f}" if score.percent else "{:+.3g}", score),
        notes=caveats(about),
        runs=results["runs"],
        by_labels=LabelCountTable.of(by_labels),
    )


def _values(start: Mapping[str, Any]) -> tuple[float, list[float]]:
    """(mean, values by seed): accuracies, or those of a task's metric."""
    if "accuracy" in start:
        return start["accuracy"], start["accuracies"]
    return start["value"], start["values"]


def _start_line(
    start: Mapping[str, Any], limits: tuple[float, float], score: Score
) -> ComparisonRow:
    low, high = (score.value(bound) for bound in start["interval"])
    deviation, (mean, values) = start["deviation"], _values(start)
    return ComparisonRow(
        name=start["name"],
        value=score.value(mean),
        interval=f"{low} to {high}",
        aside="" if deviation is None else f"± {score.difference(deviation)[1:]}",
        scale=_scale(start["interval"], mean, values, limits, False),
    )


def _difference_line(
    d: Mapping[str, Any], names: Mapping[str, str], limits: tuple[float, float], score: Score
) -> ComparisonRow:
    low, high = (score.difference(bound) for bound in d["interval"])
    return ComparisonRow(
        name=f"{names[d['start']]} against {names[d['than']]}",
        value=score.difference(d["difference"]),
        interval=f"{low} to {high}",
        aside={"better": "better", "worse": "worse", "open": "can't tell"}[d["verdict"]],
        scale=_scale(d["interval"], d["difference"], [], limits, True),
    )


def _scale(
    interval: Sequence[float],
    middle: float,
    dots: Sequence[float],
    limits: tuple[float, float],
    zero: bool,
) -> IntervalPlot:
    def at(value: float) -> float:
        return round(WIDTH * (value - limits[0]) / (limits[1] - limits[0]), 1)

    return IntervalPlot(
        at(interval[0]), at(interval[1]), at(middle), [at(v) for v in dots], at(0) if zero else None
    )


def _axis(values: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis that contains all values, at whole percents."""
    low, high = min(values), max(values)
    margin = 0.04 * (high - low) + 0.001
    return math.floor(100 * (low - margin)) / 100, math.ceil(100 * (high + margin)) / 100


def _ends(limits: tuple[float, float], form: str, score: Score) -> tuple[str, str]:
    factor = 100 if score.percent else 1
    return form.format(factor * limits[0]), form.format(factor * limits[1])
