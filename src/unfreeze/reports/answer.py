"""The headline of a report and of a command's output: the result in one sentence."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unfreeze.reports.findings import Findings
from unfreeze.reports.interval import wilson
from unfreeze.reports.outcome import named

SPLITS = {
    "val": "validation images",
    "test": "test images",
    "train": "training images",
    "all": "images",
    "held-out": "labelled images",
}
# shares of ln K: from this loss and this code entropy on, nothing was learned
NOTHING, BLANK = 0.995, 0.99


def on_images(n: int, split: str | None) -> str:
    """`274 validation images`."""
    return f"{n:,} {SPLITS.get(split or 'all', f'images of {split}')}"


def classification(evaluation: Mapping[str, Any] | None) -> str:
    """Accuracy beside that of the majority class; "" without an evaluation."""
    if not evaluation or evaluation.get("accuracy") is None or not evaluation.get("n"):
        return ""
    n, accuracy = evaluation["n"], evaluation["accuracy"]
    low, high = wilson(round(accuracy * n), n)
    result = (
        f"{percent(accuracy)} of {on_images(n, evaluation.get('split'))} are classified correctly "
        f"(95 % interval {percent(low)} to {percent(high)})"
    )
    most = majority(evaluation)
    if most is None:
        return f"{result}."
    baseline = f"always predicting the most frequent class would give {percent(most)}"
    if low > most:
        return f"{result}; {baseline}."
    if high < most:
        return f"{result}, which is worse than a constant prediction: {baseline}."
    return f"{result}, which is no better than a constant prediction: {baseline}."


def _short(evaluation: Mapping[str, Any] | None) -> str:
    """The same for the page, which shows the number and its interval separately."""
    if not evaluation or evaluation.get("accuracy") is None or not evaluation.get("n"):
        return ""
    n, accuracy, most = evaluation["n"], evaluation["accuracy"], majority(evaluation)
    images = on_images(n, evaluation.get("split"))
    if most is None:
        return f"The model classifies {percent(accuracy, 0)} of {images} correctly."
    low, high = wilson(round(accuracy * n), n)
    if low <= most:
        relation = "worse" if high < most else "no better"
        return (
            f"The model is {relation} than always predicting the most frequent class: "
            f"{percent(accuracy, 0)} of {images} are classified correctly, against "
            f"{percent(most, 0)}."
        )
    lowest = _lowest_recall(evaluation)
    return (
        f"The model classifies {percent(accuracy, 0)} of {images} correctly; always predicting "
        f"the most frequent class would give {percent(most, 0)}.{lowest}"
    )


def _lowest_recall(evaluation: Mapping[str, Any]) -> str:
    """A sentence on the class with the lowest recall if it is far below the accuracy, else ""."""
    recalls = [
        (row[index] / sum(row), name)
        for index, (name, row) in enumerate(
            zip(evaluation["classes"], evaluation["confusion"], strict=True)
        )
        if sum(row)
    ]
    recall, name = min(recalls)
    if recall > evaluation["accuracy"] - 0.1:
        return ""
    return f" The lowest recall is {percent(recall, 0)}, for {name}."


def majority(evaluation: Mapping[str, Any]) -> float | None:
    """Accuracy of always predicting the most frequent class; None if not known."""
    rows = [sum(row) for row in evaluation.get("confusion") or ()]
    return max(rows) / sum(rows) if rows and sum(rows) else None


def pretraining(
    metrics: Sequence[Mapping[str, Any]], prototypes: int | None, *, interval: bool = True
) -> str:
    """Whether pretraining learned anything, by k-NN accuracy if there is one; "" without records.

    `prototypes` is K: a loss of ln K is chance level. `interval`: add that of the k-NN accuracy.
    """
    knn = [r for r in metrics if r.get("knn_accuracy") is not None]
    evaluations = [r for r in metrics if r.get("split") == "figures"]
    losses = [r["loss"] for r in metrics if r.get("split") == "train" and finite(r.get("loss"))]
    if not losses:
        return ""
    chance = math.log(prototypes) if prototypes and prototypes > 1 else None
    share = losses[-1] / chance if chance else None
    entropy = next((r["code_entropy"] for r in reversed(evaluations) if "code_entropy" in r), 1.0)
    if share is not None and share >= NOTHING and entropy >= BLANK:
        return (
            f"Nothing was learned: the loss is {losses[-1]:.2f}, and guessing among "
            f"{prototypes:,} prototypes gives ln {prototypes:,} = {chance:.2f}."
        )
    if len(knn) > 1 or (knn and knn[0].get("step")):
        return _by_knn(knn, interval)
    loss = f"the loss is {losses[-1]:.2f}"
    if share is not None:
        loss += f", {percent(share, 0)} of what guessing gives"
    if len(evaluations) > 1 and finite(evaluations[-1].get("information")):
        first, last = (evaluations[k]["information"] for k in (0, -1))
        return _by_information(loss, first, last)
    return f"The features were not evaluated during pretraining: {loss}."


def _by_knn(knn: Sequence[Mapping[str, Any]], interval: bool) -> str:
    first, last = knn[0], knn[-1]
    n, correct = int(last.get("total") or 0), int(last.get("correct") or 0)
    low, high = wilson(correct, n)
    images = f"{n:,} labelled images" if last.get("split") == "held-out" else on_images(n, "val")
    now = f"k-NN accuracy on {images} is {percent(last['knn_accuracy'])}"
    if interval:
        now += f" (95 % interval {percent(low)} to {percent(high)})"
    if first.get("step") or first is last:
        return f"After pretraining {now}."
    start = first["knn_accuracy"]
    before = f"{percent(start)} before the first step"
    if low > start:
        return f"Pretraining improved the features: {now}, {before}."
    if high < start:
        return f"Pretraining made the features worse: {now}, {before}."
    return f"It is not clear whether pretraining improved the features: {now}, {before}."


def _by_information(loss: str, first: float, last: float) -> str:
    information = f"prototypes carry {percent(last, 0)} of the maximum information about an image"
    before = f"{percent(first, 0)} before the first step"
    if last <= max(2 * first, first + 0.02):
        return f"Pretraining has learned little so far: {loss}, and {information} ({before})."
    return (
        f"Pretraining learned to tell images apart: {loss}, and {information} ({before}). "
        "A few labels will show whether these features suit your task."
    )


def verdict(findings: Findings, compared: Sequence[str] = ()) -> list[str]:
    """The sentences at the top of a run's report; `compared`: those of a comparison, if any."""
    if compared:
        return list(compared)
    if findings.demo is not None:
        return [labels_needed(findings.demo["results"])]
    result = _short(findings.evaluation)
    if not result and findings.kind == "pretrain":
        K = findings.settings.get("nmb_prototypes")
        result = pretraining(findings.metrics, K, interval=False)
    if result:
        return [result]
    if findings.unfinished:
        return ["There is no result yet."]
    return ["The model is trained but was not evaluated."]


def labels_needed(results: Mapping[str, Any]) -> str:
    """The result of a demo: SwAV features beside training from scratch, with the fewest labels."""
    few = min(results["swav"], key=int)
    swav, scratch = (results[name][few][0] for name in ("swav", "scratch"))
    return (
        f"With {few} label{'s' if few != '1' else ''} per class, SwAV features classify "
        f"{percent(swav)} of the test digits correctly, training from scratch {percent(scratch)}."
    )


@dataclass(frozen=True)
class Hero:
    """The headline number; `at`, `low`, `high` and `mark` are in percent."""

    value: str
    label: str
    interval: str
    at: float
    low: float
    high: float
    mark: float | None = None
    mark_name: str = ""


def hero(findings: Findings) -> Hero | None:
    """The accuracy, or the k-NN accuracy of a pretraining run; None if neither is known."""
    e = findings.evaluation
    if e and e.get("accuracy") is not None and e.get("n"):
        most = majority(e)
        label = f"accuracy on {on_images(e['n'], e.get('split'))}"
        return _hero(
            e["accuracy"], e["n"], label, most, "always predicting the most frequent class"
        )
    knn = [r for r in findings.metrics if r.get("knn_accuracy") is not None and r.get("total")]
    if not knn:
        return None
    last = knn[-1]
    start = knn[0]["knn_accuracy"] if knn[0].get("step") == 0 and len(knn) > 1 else None
    label = f"k-NN accuracy on {on_images(last['total'], last.get('split'))}"
    return _hero(last["knn_accuracy"], last["total"], label, start, "the untrained network")


def _hero(share: float, n: int, label: str, mark: float | None, mark_name: str) -> Hero:
    low, high = wilson(round(share * n), n)
    return Hero(
        value=percent(share),
        label=label,
        interval=f"95 % interval {percent(low)} to {percent(high)}",
        at=round(100 * share, 2),
        low=round(100 * low, 2),
        high=round(100 * high, 2),
        mark=None if mark is None else round(100 * mark, 2),
        mark_name="" if mark is None else f"{mark_name}, {percent(mark)}",
    )


def unfinished(findings: Findings) -> dict[str, str] | None:
    """Progress of an unfinished run and the command that resumes it; None if it is finished."""
    if not findings.unfinished:
        return None
    steps, total = findings.metrics[-1].get("step") if findings.metrics else 0, None
    total = findings.facts.get("steps")
    progress = (
        f"{steps:,} of {total:,} steps are done." if steps and total else "It has just started."
    )
    data = named(findings.settings.get("data"))
    verb, out = findings.kind, shlex.quote(str(findings.folder))
    saved = (findings.folder / "checkpoints").is_dir()
    command = f"unfreeze {verb} {data} --out {out} --resume" if saved else ""
    return {"sentence": f"{progress} To resume:" if command else progress, "command": command}


def finite(value: Any) -> bool:
    """Whether `value` is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def percent(value: float, digits: int = 1) -> str:
    """`0.8034` -> `80.3 %`."""
    return f"{100 * value:.{digits}f} %"
