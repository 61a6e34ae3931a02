"""Cross-validation and repeats: the same training with other validation splits and seeds."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unfreeze.api.job import Job
from unfreeze.api.labelling import Checked, wanted
from unfreeze.api.single import Begun, Scene, begin, stopped, tuned
from unfreeze.data.preprocess import Preprocess
from unfreeze.errors import DataError, Interrupted, UsageError, go_on
from unfreeze.reports.pairs import Estimate, accuracy
from unfreeze.runtime.atomic import write_json
from unfreeze.runtime.console import Console, Hushed, Logged
from unfreeze.runtime.runfolder import read_metrics
from unfreeze.settings.build import as_dict, build
from unfreeze.settings.finetune import FinetuneSettings
from unfreeze.settings.knob import flag
from unfreeze.transfer.pool import Pool
from unfreeze.transfer.portions import Portions, folds, portion
from unfreeze.transfer.resuming import FREE

FOLDER, DONE = "folds", "held-out.json"


@dataclass(frozen=True)
class Part:
    """One run and its score on `n` held-out images.

    `correct`: predictions of the epoch selected on these images that are right; `correct_last`:
    of the last epoch.
    """

    run: str
    seed: int
    fold: int | None
    n: int
    correct: int
    correct_last: int


@dataclass(frozen=True)
class Repeated:
    """Cross-validated accuracy on `n` distinct held-out images, with its 95 % interval.

    `accuracy`: of the last epochs, which were not selected on the held-out images; `selected`: of
    the epochs that were. `accuracies`: of each seed, over all its folds. `chose`: what the held-out
    images selected: "the epoch alone", "rates, too" (a sweep used them) or "nothing".
    """

    folds: int
    seeds: list[int]
    n: int
    accuracy: float
    interval: tuple[float, float]
    deviation: float | None
    accuracies: list[float]
    selected: float
    chose: str
    runs: list[Part]


def repeated(scene: Scene, s: FinetuneSettings, main: Begun, console: Console) -> Repeated | None:
    """All runs of `--folds` and `--repeats`, each in its own folder; None if neither is given.

    Finished runs are read, not repeated.
    """
    if not s.folds and s.repeats == 1:
        return None
    s, ready = _as_asked(s, main), main.ready
    pool = pooled(ready, s.seed)
    trials = list(_trials(s, ready.portions))
    parts = []
    for place, (seed, fold, portions) in enumerate(trials, 1):
        name = f"{FOLDER}/seed-{seed}" + ("" if fold is None else f"-fold-{fold + 1}")
        folder = main.run.file(name)
        own = replace(s, seed=seed, out=str(folder), resume="auto", overwrite=False)
        part = scene.processes.leads(lambda own=own: _remembered(own))  # type: ignore[misc]
        if part is None:
            part = _part(scene, own, ready.chosen(portions), pool, fold, Hushed(console))
        parts.append(part)
        console.say(
            f"{place}/{len(trials)} {folder.name}: accuracy on {part.n} held-out images "
            f"{part.correct_last / part.n:.3f} in the last epoch, {part.correct / part.n:.3f} in "
            "the selected one"
        )
    chose = "rates, too" if main.job.sweep or main.job.tried else "the epoch alone"
    if main.job.plan.settings.select == "last":
        chose = "nothing"
    held = np.unique(np.concatenate([portions.val for *_, portions in trials]))
    found = summed(parts, chose, folds=s.folds, images=len(held))
    scene.processes.leads(lambda: write_json(main.run.file("folds.json"), asdict(found)))
    console.say(sentence(found))
    return found


def foretold(job: Job, portions: Portions) -> Job:
    """The job with the plan line of `--folds` and `--repeats`; DataError for too little data."""
    s = job.plan.settings
    if not s.folds and s.repeats == 1:
        return job
    count = len(list(_trials(s, portions)))
    reasons = {**job.plan.reasons, "folds": f"{count} runs before this one"}
    return replace(job, plan=replace(job.plan, reasons=reasons))


def runs_of(s: FinetuneSettings, portions: Portions) -> int:
    """The number of training runs: the run itself, and those of `--folds` and `--repeats`."""
    return 1 if not s.folds and s.repeats == 1 else 1 + len(list(_trials(s, portions)))


def summed(parts: list[Part], chose: str, *, folds: int, images: int) -> Repeated:
    """The combined result; `images`: number of distinct held-out images."""
    seeds = sorted({part.seed for part in parts})
    by_seed = [[part for part in parts if part.seed == seed] for seed in seeds]
    last = _over(by_seed, [[p.correct_last for p in some] for some in by_seed], images)
    best = _over(by_seed, [[p.correct for p in some] for some in by_seed], images)
    totals = [(sum(p.correct_last for p in some), sum(p.n for p in some)) for some in by_seed]
    return Repeated(
        folds=folds,
        seeds=seeds,
        n=images,
        accuracy=last.mean,
        interval=(last.low, last.high),
        deviation=last.deviation,
        accuracies=[right / n for right, n in totals],
        selected=best.mean,
        chose=chose,
        runs=parts,
    )


def _over(by_seed: list[list[Part]], correct: list[list[int]], images: int) -> Estimate:
    """Accuracy over seeds and images, with its interval."""
    right = [
        np.arange(sum(part.n for part in some)) < sum(counts)
        for some, counts in zip(by_seed, correct, strict=True)
    ]
    return accuracy(right, images)


def sentence(found: Repeated) -> str:
    """One line with the result."""
    low, high = found.interval
    again = all(part.n == found.n for part in found.runs)  # as the data's own val is
    how = "the same validation images" if again else "different validation splits"
    how = f"{found.folds} folds" if found.folds else how
    seeds = f", {len(found.seeds)} seeds" if len(found.seeds) > 1 else ""
    text = (
        f"Cross-validation ({how}{seeds}): accuracy {found.accuracy:.3f} on {found.n:,} images "
        f"[{low:.3f}, {high:.3f}]"
    )
    if found.chose == "nothing":
        return f"{text}."
    return f"{text} in the last epoch; {found.selected:.3f} in the epochs selected on these images."


def pooled(ready: Checked, seed: int) -> Pool:
    """All images of train and val, for a feature cache that the folds share."""
    index = ready.portions.index
    places = np.sort(np.concatenate([ready.portions.train, ready.portions.val]))
    both = ready.chosen(Portions(index, places, places, ""))
    return Pool(both.train, both.val, seed, both.digest)


def _trials(s: FinetuneSettings, whole: Portions) -> Iterator[tuple[int, int | None, Portions]]:
    """(seed, fold, split) of each run, seed by seed."""
    for seed in range(s.seed, s.seed + s.repeats):
        own = replace(wanted(s), seed=seed)
        if s.folds:
            cut = folds(whole, own, s.folds)
            yield from ((seed, number, one) for number, one in enumerate(cut))
        else:
            usable = np.sort(np.concatenate([whole.train, whole.val]))
            # the same images as the run's own, split by another seed
            free = replace(own, labels_per_class=None, label_fraction=None, limit=None)
            one = portion(whole.index, usable, free, whole.alike)
            if not len(one.val):
                raise DataError(
                    "--repeats needs a validation set, but no images are held out.",
                    "Add images of each class, or omit --repeats.",
                )
            yield seed, None, one


def _part(
    scene: Scene,
    s: FinetuneSettings,
    ready: Checked,
    pool: Pool,
    fold: int | None,
    console: Console,
) -> Part:
    def ready_for(_: FinetuneSettings, preprocess: Preprocess) -> Checked:
        return ready

    quiet = Logged(console)
    it = begin(scene, s, ready_for, quiet)
    made = tuned(scene, it, quiet, pool)
    scores = made.scores
    if made.outcome.stopped == "asked" or scores is None:
        error = stopped(it.run, made.job, made.outcome)
        raise Interrupted(
            f"Stopped in {it.run.path.name}. {error.sentence}",
            go_on("finetune", s.data, it.run.path.parent.parent),
        )
    last = [line for line in read_metrics(it.run.path) if line["split"] == "val"][-1]
    part = Part(
        run=str(it.run.path),
        seed=s.seed,
        fold=fold,
        n=scores.n,
        correct=scores.correct,
        correct_last=int(last["correct"]),
    )
    about = {"part": asdict(part), "settings": _asked(s)}
    scene.processes.leads(lambda: write_json(it.run.file(DONE), about))
    return part


def _as_asked(s: FinetuneSettings, main: Begun) -> FinetuneSettings:
    """The settings as given, without derived values: each run makes its own plan."""
    free = {name: value for name, value in as_dict(s).items() if name in FREE}
    made = build(FinetuneSettings, {**as_dict(s), **main.job.asked, **free})
    return replace(made, out=s.out)


def _remembered(s: FinetuneSettings) -> Part | None:
    """The result of a finished run, None if there is none; UsageError for other settings."""
    path = Path(str(s.out)) / DONE
    if not path.is_file():
        return None
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        part, before = Part(**told["part"]), dict(told["settings"])
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path} cannot be read: {error}.", "Remove its folder to train this run again."
        ) from error
    for name, value in _asked(s).items():
        if before.get(name) != value:
            raise UsageError(
                f"{path.parent.name} was trained with {flag(name)} {before.get(name)}, not "
                f"{value}.",
                "Use the same value, or a new --out.",
            )
    return part


def _asked(s: FinetuneSettings) -> dict[str, Any]:
    """The settings that determine the result, as JSON values."""
    found: dict[str, Any] = json.loads(json.dumps(as_dict(s)))
    return {name: value for name, value in found.items() if name not in FREE | {"repeats"}}
