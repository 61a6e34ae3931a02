"""One table from comparisons with several numbers of labels."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from unfreeze.config.commands import CompareSettings
from unfreeze.evaluation.warnings import merge_latest
from unfreeze.experiments.compare import Comparison
from unfreeze.experiments.compare_starts import CompareRun, CompareStart, label_counts
from unfreeze.reports.comparison import comparison_lines

Summarize = Callable[[CompareSettings, list[CompareStart], Any, float], Comparison]


def compare_by_labels(
    summarize: Summarize,
    s: CompareSettings,
    starts: list[CompareStart],
    specs: Sequence[CompareRun],
    results: Sequence[Any],
    seconds: float,
) -> Comparison:
    """The comparison of all runs: `summarize` for each number of labels, and the table of all.

    `specs`, `results`: the runs and their results in the same order.
    """
    pairs = list(zip(specs, results, strict=True))
    of_counts = {
        count: summarize(s, starts, [r for spec, r in pairs if spec.labels == count], seconds)
        for count in label_counts(s)
    }
    *fewer, most = of_counts.values()
    if not fewer:
        return most
    verdicts, notes = list[str](), list[str]()
    for count, comparison in of_counts.items():
        lines, notes = comparison_lines(asdict(comparison))
        verdicts.append(f"{count} labels per class: {' '.join(lines)}")
    table = {
        "labels_per_class": list(of_counts),
        "starts": [_row(number, list(of_counts.values())) for number in range(len(starts))],
        "verdicts": verdicts,
    }
    return replace(
        most,
        by_labels=table,
        verdict=" ".join([*verdicts, *notes]),
        runs=[run for comparison in of_counts.values() for run in comparison.runs],
        warnings=merge_latest(*(comparison.warnings for comparison in of_counts.values())),
    )


def _row(number: int, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """A start with its accuracy, interval and seconds for each number of labels."""
    of_counts = [comparison.starts[number] for comparison in comparisons]
    first = of_counts[0]
    return {
        "weights": first.weights,
        "name": first.name,
        "arch": first.arch,
        "pretraining_seconds": first.pretraining_seconds,
        "accuracies": [start.accuracy for start in of_counts],
        "intervals": [start.interval for start in of_counts],
        "seconds": [start.seconds for start in of_counts],
    }
