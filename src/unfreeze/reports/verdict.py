"""The headline of a report and of a command's output: the result in one sentence."""

import csv
import math
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unfreeze.config.finetune import TEXT_CLASSIFICATION
from unfreeze.reports.glossary import metric_name
from unfreeze.reports.intervals import wilson_interval
from unfreeze.reports.run_reader import RunData

# files of a run folder that a result lists, most useful first
FILES = (
    ("report", "report.html"),
    ("model", "model"),
    ("predictions", "predictions.csv"),
    ("mistakes", "mistakes.csv"),
    ("evaluation", "evaluation.json"),
    ("table", "compare.csv"),
    ("curves", "curves.png"),
    ("prototypes", "prototypes.png"),
    ("left out", "problems.csv"),
)


def existing_files(run: str | Path, *names: str) -> list[tuple[str, str]]:
    """(label, path) of the existing `FILES`, or of those in `names`."""
    files = []
    for label, name in FILES:
        path = Path(run) / name
        if (not names or name in names) and path.exists() and not _empty(path):
            files.append((label, str(path)))
    return files


def _empty(path: Path) -> bool:
    """Whether it is a problems.csv without rows."""
    if path.name != "problems.csv":
        return False
    with path.open("rb") as stream:
        return sum(1 for _ in zip(stream, range(2), strict=False)) < 2


def read_settings(run: str | Path) -> dict[str, Any]:
    """The settings in a run's config.toml; {} if it is missing or unreadable."""
    try:
        return tomllib.loads((Path(run) / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def quote_data(data: str | Sequence[str] | None) -> str:
    """DATA, quoted for a shell."""
    if not data:
        return "DATA"
    return shlex.join([data] if isinstance(data, str) else list(data))


def next_commands(run: str | Path) -> list[str]:
    """Commands to run next, for a run folder."""
    settings, run_path = read_settings(run), shlex.quote(str(run))
    data = quote_data(settings.get("data"))
    if "size_crops" in settings:
        data += "" if _labelled(Path(run) / "split.csv") else " --labels LABELS.csv"
        out = shlex.quote(str(Path(run).with_name(f"{Path(run).name}-finetuned")))
        return [f"unfreeze finetune {data} --weights {run_path} --freeze all --out {out}"]
    if "seeds" in settings:
        return []
    options = "".join(
        f" --{name.replace('_', '-')} {shlex.quote(str(settings[name]))}"
        for name in ("labels", "split_from")
        if settings.get(name)
    )
    evaluate = f"unfreeze evaluate {run_path} {data}{options}"
    sample = "TEXT..." if str(settings.get("arch")).startswith("hf/") else "IMAGE..."
    return [evaluate, f"unfreeze predict {run_path} {sample}"]


def _labelled(path: Path) -> bool:
    """Whether the first row of split.csv has a label."""
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
        return bool(next(csv.DictReader(stream), {}).get("label"))


SPLITS = {
    "val": "validation images",
    "test": "test images",
    "train": "training images",
    "all": "images",
    "held-out": "labelled images",
}
# shares of ln K: from this loss and this code entropy on, nothing was learned
LOSS_AT_CHANCE, UNIFORM_CODE_ENTROPY = 0.995, 0.99


def on_images(n: int, split: str | None, task: str | None = None) -> str:
    """`274 validation images`, or texts if the task is on texts."""
    words = SPLITS.get(split or "all", f"images of {split}")
    return f"{n:,} {words.replace('images', samples_of(task))}"


def samples_of(task: str | None) -> str:
    """`images`, or `texts` for a task on texts."""
    return "texts" if task == TEXT_CLASSIFICATION else "images"


def accuracy_sentence(evaluation: Mapping[str, Any] | None) -> str:
    """Accuracy beside that of the majority class; "" without an evaluation."""
    if not evaluation or evaluation.get("accuracy") is None or not evaluation.get("n"):
        return ""
    n, accuracy = evaluation["n"], evaluation["accuracy"]
    low, high = wilson_interval(round(accuracy * n), n)
    samples = on_images(n, evaluation.get("split"), evaluation.get("task"))
    result = (
        f"{percent(accuracy)} of {samples} are classified correctly "
        f"(95 % interval {percent(low)} to {percent(high)})"
    )
    most = majority_class_accuracy(evaluation)
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
    n, accuracy, most = evaluation["n"], evaluation["accuracy"], majority_class_accuracy(evaluation)
    images = on_images(n, evaluation.get("split"), evaluation.get("task"))
    if most is None:
        return f"The model classifies {percent(accuracy, 0)} of {images} correctly."
    low, high = wilson_interval(round(accuracy * n), n)
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


def majority_class_accuracy(evaluation: Mapping[str, Any]) -> float | None:
    """Accuracy of always predicting the most frequent class; None if not known."""
    rows = [sum(row) for row in evaluation.get("confusion") or ()]
    return max(rows) / sum(rows) if rows and sum(rows) else None


def pretraining_sentence(
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
    if share is not None and share >= LOSS_AT_CHANCE and entropy >= UNIFORM_CODE_ENTROPY:
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
    low, high = wilson_interval(correct, n)
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


def headline(findings: RunData, compared: Sequence[str] = ()) -> list[str]:
    """The sentences at the top of a run's report; `compared`: those of a comparison, if any."""
    if compared:
        return list(compared)
    if findings.demo is not None:
        return [demo_sentence(findings.demo["results"])]
    result = _short(findings.evaluation) or task_sentence(findings.evaluation)
    if not result and findings.kind == "pretrain":
        K = findings.settings.get("nmb_prototypes")
        result = pretraining_sentence(findings.metrics, K, interval=False)
    if result:
        return [result]
    if findings.unfinished:
        return ["There is no result yet."]
    return ["The model is trained but was not evaluated."]


def task_sentence(evaluation: Mapping[str, Any] | None) -> str:
    """The metrics of a task other than classification; "" without them."""
    if not evaluation or "metrics" not in evaluation or not evaluation.get("n"):
        return ""
    limits = evaluation.get("intervals") or {}
    texts = []
    for name, value in evaluation["metrics"].items():
        bounds = limits.get(name)
        interval = f" (95 % interval {bounds[0]:.4g} to {bounds[1]:.4g})" if bounds else ""
        texts.append(f"{metric_name(name)} {short_number(value)}{interval}")
    return f"On {on_images(evaluation['n'], evaluation.get('split'))}: {', '.join(texts)}."


def short_number(value: float | None) -> str:
    """The number with four digits; NaN, which files hold as null, as "undefined"."""
    return "undefined" if value is None or not math.isfinite(value) else f"{value:.4g}"


def demo_sentence(results: Mapping[str, Any]) -> str:
    """The result of a demo: SwAV features beside training from scratch, with the fewest labels."""
    few = min(results["swav"], key=int)
    swav, scratch = (results[name][few][0] for name in ("swav", "scratch"))
    return (
        f"With {few} label{'s' if few != '1' else ''} per class, SwAV features classify "
        f"{percent(swav)} of the test digits correctly, training from scratch {percent(scratch)}."
    )


@dataclass(frozen=True)
class Headline:
    """The headline number; `at`, `low`, `high` and `mark` are in percent."""

    value: str
    label: str
    interval: str
    at: float
    low: float
    high: float
    mark: float | None = None
    mark_name: str = ""


def headline_number(findings: RunData) -> Headline | None:
    """The accuracy, or the k-NN accuracy of a pretraining run; None if neither is known."""
    e = findings.evaluation
    if e and e.get("accuracy") is not None and e.get("n"):
        most = majority_class_accuracy(e)
        label = f"accuracy on {on_images(e['n'], e.get('split'), e.get('task'))}"
        return _hero(
            e["accuracy"], e["n"], label, most, "always predicting the most frequent class"
        )
    continued = (findings.result or {}).get("continued")
    if continued and continued["value"] is not None:
        label = f"linear probe accuracy on {on_images(continued['total'], continued['split'])}"
        value, start = continued["value"], continued["start"]
        return _hero(value, continued["total"], label, start, "the start")
    knn = [r for r in findings.metrics if r.get("knn_accuracy") is not None and r.get("total")]
    if not knn:
        return None
    last = knn[-1]
    start = knn[0]["knn_accuracy"] if knn[0].get("step") == 0 and len(knn) > 1 else None
    label = f"k-NN accuracy on {on_images(last['total'], last.get('split'))}"
    return _hero(last["knn_accuracy"], last["total"], label, start, "the untrained network")


def _hero(share: float, n: int, label: str, mark: float | None, mark_name: str) -> Headline:
    low, high = wilson_interval(round(share * n), n)
    return Headline(
        value=percent(share),
        label=label,
        interval=f"95 % interval {percent(low)} to {percent(high)}",
        at=round(100 * share, 2),
        low=round(100 * low, 2),
        high=round(100 * high, 2),
        mark=None if mark is None else round(100 * mark, 2),
        mark_name="" if mark is None else f"{mark_name}, {percent(mark)}",
    )


def resume_hint(findings: RunData) -> dict[str, str] | None:
    """Progress of an unfinished run and the command that resumes it; None if it is finished."""
    if not findings.unfinished:
        return None
    steps, total = findings.metrics[-1].get("step") if findings.metrics else 0, None
    total = findings.facts.get("steps")
    progress = (
        f"{steps:,} of {total:,} steps are done." if steps and total else "It has just started."
    )
    data = quote_data(findings.settings.get("data"))
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
