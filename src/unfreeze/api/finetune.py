"""`finetune`: labelled pictures and a network in, a classifier that travels out."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from unfreeze import __version__
from unfreeze.api.fitting import Parts, assemble, rated, swept
from unfreeze.api.job import Job, begun, checkpoint, continued, opened
from unfreeze.api.labelling import Checked, Labelled, checked, held, read_labels, unchecked
from unfreeze.api.report import report
from unfreeze.backbones.norm import synchronised
from unfreeze.checkpoints.modelfile import load_model, save_model
from unfreeze.data.holding import Holding
from unfreeze.errors import Interrupted, UsageError, go_on
from unfreeze.runtime.atomic import replacing, write_json, write_text
from unfreeze.runtime.console import Console, Logged, Quiet
from unfreeze.runtime.deadline import Deadline
from unfreeze.runtime.devices import pick_device
from unfreeze.runtime.launcher import launched
from unfreeze.runtime.loggers import available, passed_on
from unfreeze.runtime.processes import Processes, join
from unfreeze.runtime.runfolder import RunFolder, allowed
from unfreeze.settings.build import as_dict, layered, to_toml
from unfreeze.settings.finetune import FinetuneSettings
from unfreeze.transfer.augment import maker
from unfreeze.transfer.evaluate import Scores
from unfreeze.transfer.fit import Outcome
from unfreeze.transfer.freeze import fingerprint
from unfreeze.transfer.portions import Portions
from unfreeze.transfer.trainer import Trainer

SHOWN = 8  # pictures, and random views of each, that the report shows


@dataclass(frozen=True)
class FinetuneResult:
    """What a fine-tuning did; `val_accuracy` is the selected epoch's, on the pictures held out.

    `best_epoch` counts from 0; it and `val_accuracy` are None where nothing was held out.
    `frozen_unchanged` compares hashes of the start with the written model; None: nothing frozen.
    """

    run: str
    arch: str
    classes: list[str]
    epochs: int
    best_epoch: int | None
    val_accuracy: float | None
    parameters_trainable: int
    parameters_frozen: int
    frozen_unchanged: bool | None
    weights_matched: float | None
    images: int
    images_per_second: float
    seconds: float
    model: str


@dataclass(frozen=True)
class FinetunePlan:
    """What `--dry-run` shows: every setting, the reason of each derived one, and the sizes.

    `counts`: pictures by class and split as the data has them (`all` without splits).
    """

    settings: dict[str, Any]
    reasons: dict[str, str]
    classes: list[str]
    counts: dict[str, dict[str, int]]
    images: int
    steps: int
    parameters_trainable: int
    parameters_frozen: int


def finetune(data: str | Sequence[str], **settings: Any) -> FinetuneResult | FinetunePlan:
    """A classifier from the labelled pictures of `data`; keywords as in `FinetuneSettings`.

    Returns a `FinetunePlan` with `dry_run=True`. Raises the errors of `unfreeze.errors`.
    """
    began = time.monotonic()
    given = layered(FinetuneSettings, None, {"data": data, **settings})
    return run_finetune(given, Quiet(), began=began)


def run_finetune(
    settings: FinetuneSettings, console: Console, *, draw: bool = True, began: float | None = None
) -> FinetuneResult | FinetunePlan:
    """The same from a settings object; without `draw` the report waits for `report RUN`.

    `began`, on time.monotonic(), is what `time_limit` counts from; None: the process's start.
    """
    if not settings.dry_run and not settings.out:
        raise UsageError("finetune needs a folder for the run.", "Add --out RUN, or --dry-run.")
    available(settings.logger)
    deadline = Deadline.of(settings.time_limit, began)
    place: dict[str, Any] = {"resume": settings.resume, "overwrite": settings.overwrite}
    if not settings.dry_run:
        allowed(str(settings.out), **place)  # refused before anything is read or fetched
    if settings.dry_run:
        return _dry(settings, console)
    processes = join(settings.device)
    console = Logged(console if processes.first else Quiet())
    device = pick_device(settings.device)
    # in turn: what the first process fetched or decoded stands on the disk for the others
    found = processes.in_turn(lambda: read_labels(settings, console))
    torch.manual_seed(settings.seed)
    state = processes.leads(lambda: checkpoint(settings, found, console))
    it = processes.in_turn(lambda: opened(settings, found)) if state is None else None
    processes.leads(lambda: RunFolder.create(str(settings.out), **place))
    run = RunFolder(str(settings.out), writes=processes.first)
    console.into(run)

    def prepared() -> tuple[Job, Checked]:
        if state is not None or it is None:
            job = continued(settings, state or {})
            return job, checked(
                job.plan.settings, found, job.plan.preprocess, console, processes.world
            )
        ready = checked(settings, found, it.preprocess, console, processes.world)
        counts = {"images": len(ready.train), "held_out": len(ready.val)}
        return begun(settings, found, it, device, **counts, processes=processes.world), ready

    job, ready = processes.in_turn(prepared)
    job = _telling(replace(job, network=_placed(job.network, device, processes)), ready.hold)
    _show(job, len(ready.train), ready.portions.reason, console)
    parts = processes.together(lambda: assemble(job, ready, processes))
    if state is None:
        run.rewind_metrics(-1)
        job = swept(job, parts, run, console, deadline)
        job = rated(job, parts, run, found.fingerprint, console, deadline)
    trainer = parts.trainer(job, run, found.fingerprint)
    if state is not None:
        trainer.restore(state)
        run.rewind_metrics(trainer.step)
    trainer.deadline = deadline
    processes.leads(lambda: _write_start(run, job, ready, trainer))
    with passed_on(settings.logger, run, as_dict(job.plan.settings), trainer.step, console):
        outcome = trainer.run(console)
    scores = _scores(job, parts, trainer, outcome)
    processes.leads(lambda: _write_model(run, job, ready, outcome, scores))
    if draw:
        processes.leads(lambda: report(str(run.path)))
    return processes.leads(lambda: _result(run, job, ready, outcome))


def _dry(settings: FinetuneSettings, console: Console) -> FinetunePlan:
    device, processes = pick_device(settings.device), launched().world
    found = read_labels(settings, console)
    torch.manual_seed(settings.seed)
    portions = unchecked(settings, found)
    counts = {"images": len(portions.train), "held_out": len(portions.val)}
    first = opened(settings, found)
    job = begun(settings, found, first, device, **counts, processes=processes)
    job = _telling(job, held(settings, found, first.preprocess, processes))
    return _planned(job, found, portions, console)


def _telling(job: Job, hold: Holding) -> Job:
    """The job with the reason for where its pictures are held."""
    reasons = {**job.plan.reasons, "store": f"{hold.place}: {hold.reason}"}
    return replace(job, plan=replace(job.plan, reasons=reasons))


def _placed(network: nn.Module, device: torch.device, processes: Processes) -> nn.Module:
    """On its device, with batch norms over all processes."""
    if processes.world > 1:
        network = synchronised(network.to(device))
    if device.type in ("cpu", "cuda"):
        # convolutions read channels last faster; other layers do not care
        return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
    return network.to(device)


def _write_start(run: RunFolder, job: Job, ready: Checked, trainer: Trainer) -> None:
    s, device = job.plan.settings, next(job.network.parameters()).device
    trainable, frozen = job.counts
    facts = {
        "unfreeze": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": str(device),
        "processes": trainer.processes.world,
        "classes": list(job.card.classes),
        "images": len(ready.train),
        "validation_images": len(ready.val),
        "validation": ready.portions.reason,
        "fingerprint": job.card.provenance["fingerprint"],
        "steps": trainer.total,
        "steps_per_epoch": trainer.loader.steps_per_epoch,
        "parameters_trainable": trainable,
        "parameters_frozen": frozen,
        **({"tried": list(job.tried)} if job.tried else {}),
        **({"class_weights": list(trainer.fit.class_weights)} if trainer.fit.class_weights else {}),
    }
    tables: dict[str, dict[str, Any]] = {"reasons": dict(job.plan.reasons), "facts": facts}
    write_text(run.file("config.toml"), to_toml(as_dict(s), tables))
    ready.write(run)
    some = np.arange(min(SHOWN, len(ready.train)))
    images = [ready.train[int(i)] for i in some]
    cut = maker(s.augment, job.plan.preprocess, s.seed)
    views = [cut(images, some, epoch)[0].numpy() for epoch in range(min(SHOWN // 2, s.epochs))]
    with replacing(run.file("views.npz")) as path, path.open("wb") as stream:
        np.savez_compressed(stream, views=np.stack(views, 1))


def _scores(job: Job, parts: Parts, trainer: Trainer, outcome: Outcome) -> Scores | None:
    """What the kept weights score on val; who asked to stop does not wait for that."""
    if parts.holdout is None or outcome.stopped == "asked":
        return None
    return trainer.scores(partial(parts.holdout.score, job.network))


def _write_model(
    run: RunFolder, job: Job, ready: Checked, outcome: Outcome, scores: Scores | None
) -> None:
    """The model file, and its scores."""
    learnt = {
        "images": len(ready.train),
        "epochs": outcome.epochs,
        "best_epoch": outcome.best_epoch,
        "val_accuracy": outcome.val_accuracy,
    }
    card = replace(job.card, provenance={**job.card.provenance, **learnt})
    save_model(run.file("model"), job.network.state_dict(), card)
    ready.write_keys(run)
    if scores is not None:
        about = {"split": "val", "used_for_choosing": True, "seen_in_training": 0}
        found = {**about, "classes": list(card.classes), **asdict(scores)}
        write_json(run.file("evaluation.json"), found)


def _result(run: RunFolder, job: Job, ready: Checked, outcome: Outcome) -> FinetuneResult:
    """What was done; Interrupted where the run was stopped."""
    if outcome.stopped == "asked":
        raise Interrupted(
            f"Stopped by {outcome.asked_by} after {outcome.epochs} of "
            f"{job.plan.settings.epochs} epochs; model/ holds the best so far.",
            go_on("finetune", job.plan.settings.data, run.path),
        )
    trainable, frozen = job.counts
    return FinetuneResult(
        run=str(run.path),
        arch=job.card.arch,
        classes=list(job.card.classes),
        epochs=outcome.epochs,
        best_epoch=outcome.best_epoch,
        val_accuracy=outcome.val_accuracy,
        parameters_trainable=trainable,
        parameters_frozen=frozen,
        frozen_unchanged=unchanged(run, job.hashes) if job.frozen else None,
        weights_matched=job.card.provenance["weights_matched"],
        images=len(ready.train),
        images_per_second=outcome.images / max(outcome.seconds, 1e-9),
        seconds=outcome.seconds,
        model=str(run.file("model")),
    )


def unchanged(run: RunFolder, hashes: dict[str, str]) -> bool:
    """Whether the model file, read back, holds every frozen entry as it was at the start."""
    tensors, _ = load_model(run.path)
    return fingerprint(tensors, hashes) == hashes


def _planned(job: Job, found: Labelled, portions: Portions, console: Console) -> FinetunePlan:
    images, validation = len(portions.train), portions.reason
    _show(job, images, validation, console)
    s = job.plan.settings
    trainable, frozen = job.counts
    return FinetunePlan(
        settings=as_dict(s),
        reasons={**job.plan.reasons, "val": validation},
        classes=list(job.card.classes),
        counts=found.census.counts,
        images=images,
        steps=s.epochs * -(-images // job.plan.batch_size),
        parameters_trainable=trainable,
        parameters_frozen=frozen,
    )


def _show(job: Job, images: int, validation: str, console: Console) -> None:
    settings = asdict(job.plan.settings)
    trainable, frozen = job.counts
    console.say(f"{images:,} training pictures of {len(job.card.classes)} classes.")
    console.say(f"Validation: {validation}.")
    for name, reason in job.plan.reasons.items():
        value = settings.get(name, "")
        shown = " ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else value
        console.say(f"  {name.replace('_', '-'):14} {shown!s:>22}  {reason}")
    console.say(f"{trainable:,} parameters are trained, {frozen:,} stand still.")
