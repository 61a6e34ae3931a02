"""One fine-tuning run: from a dataset that is read to a model that is written."""

import copy
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from unfreeze import __version__
from unfreeze.checkpoints.model_file import read_card, save_model, write_card
from unfreeze.config.field import inputs_of
from unfreeze.config.finetune import FinetuneSettings
from unfreeze.config.layering import as_dict, to_toml
from unfreeze.data.cache.policy import PixelCachePlan
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.data.texts.preprocess import TextPreprocess
from unfreeze.errors import Interrupted
from unfreeze.evaluation.checks import FeatureStatistics
from unfreeze.evaluation.features import feature_meter
from unfreeze.models.lora import merge_lora
from unfreeze.models.norm import convert_sync_batchnorm
from unfreeze.runs.after_run import warn_on_failure
from unfreeze.runs.finetuning.build import (
    TrainingParts,
    build_training,
    run_lr_finder,
    run_sweep,
    view_maker,
)
from unfreeze.runs.finetuning.data import LabelledDataset, LabelledListing, labels_of
from unfreeze.runs.finetuning.setup import (
    FinetuneJob,
    choose_threads,
    load_checkpoint,
    new_job,
    resumed_job,
    set_up_model,
)
from unfreeze.runs.finetuning.solve_head import SolvedHead, scale_head, solve_head
from unfreeze.runs.finetuning.trained_features import measure_features, write_known_images
from unfreeze.runs.mask_examples import write_mask_examples
from unfreeze.runs.model_cards import write_model_card
from unfreeze.runs.prediction_files import predictions_of, write_predictions
from unfreeze.runs.readback import check_names_read_back, check_same_images
from unfreeze.runs.task_evaluation import bootstrap_intervals
from unfreeze.runtime.atomic import replacing, write_json, write_text
from unfreeze.runtime.console import Console
from unfreeze.runtime.distributed import Distributed
from unfreeze.runtime.run_folder import RESULT, RunFolder
from unfreeze.runtime.run_lock import RunFolderLocks
from unfreeze.runtime.threads import ThreadCount, set_threads
from unfreeze.runtime.time_limit import TimeLimit
from unfreeze.runtime.trackers import logging_to
from unfreeze.tasks.segmentation.task import SegmentationTask
from unfreeze.transfer.evaluate import Scores, TaskMetrics, task_metrics
from unfreeze.transfer.feature_cache.shared_rows import SharedCachePool
from unfreeze.transfer.loss import TrainingResult
from unfreeze.transfer.predictor import InferenceNetwork
from unfreeze.transfer.training_run import FinetuneTrainer
from unfreeze.transfer.validation import ValidationSet

SHOWN = 8  # training images shown in the report, half as many augmented views of each
ReadyFor = Callable[[FinetuneSettings, Preprocess], LabelledDataset]


@dataclass(frozen=True)
class RunContext:
    """What all runs of one call share.

    `threads`: number of CPU threads at its start; `locks`: locks of run folders.
    """

    found: LabelledListing
    device: torch.device
    deadline: TimeLimit
    processes: Distributed
    threads: ThreadCount
    locks: RunFolderLocks


@dataclass(frozen=True)
class OpenedRun:
    """A run with its network and dataset; `state`: the checkpoint to resume from, or None."""

    run: RunFolder
    job: FinetuneJob
    ready: LabelledDataset
    state: dict[str, Any] | None


@dataclass(frozen=True)
class TrainedRun:
    """A trained job, its outcome, the scores of its model on val, and feature statistics.

    `scores`: None without a validation set, or if the run was stopped.
    """

    job: FinetuneJob
    outcome: TrainingResult
    scores: Scores | None
    features: FeatureStatistics | None


def open_run(
    context: RunContext, s: FinetuneSettings, ready_for: ReadyFor, console: Console
) -> OpenedRun:
    """Open the run of `s`, new or resumed; `ready_for` decodes and splits the images.

    Collective. The folder is created, or emptied by `--overwrite`, after everything else succeeded.
    """
    processes, data = context.processes, context.found
    torch.manual_seed(s.seed)
    state = processes.on_rank_zero(lambda: load_checkpoint(s, data, console))
    network_setup = (
        processes.rank_zero_first(lambda: set_up_model(s, data)) if state is None else None
    )

    def prepared() -> tuple[FinetuneJob, LabelledDataset]:
        if state is not None or network_setup is None:
            job = resumed_job(s, state or {}, data.task)
            ready = ready_for(job.plan.settings, job.plan.preprocess)
            return job, ready.recorded(RunFolder(str(s.out), writes=False))
        ready = ready_for(s, network_setup.preprocess)
        counts = {"images": len(ready.train), "held_out": len(ready.val)}
        return new_job(
            s, data, network_setup, context.device, **counts, processes=processes.world
        ), ready

    job, ready = processes.rank_zero_first(prepared)
    check_same_images(processes, ready.train.index, ready.val.index)
    # only now: an error above neither creates nor deletes a folder
    folder_options: dict[str, Any] = {"resume": s.resume, "overwrite": s.overwrite}
    folder_options |= {"inputs": inputs_of(s), "hold": context.locks.take}
    processes.on_rank_zero(lambda: RunFolder.create(str(s.out), **folder_options))
    run = RunFolder(str(s.out), writes=processes.is_rank_zero)
    if state is None:
        # a run stopped before its first checkpoint starts again with the same settings
        processes.on_rank_zero(lambda: write_text(run.file("config.toml"), to_toml(as_dict(s), {})))
    console.into(run)  # type: ignore[attr-defined]  # a Logged one
    job = _set_threads(context, job, state, console)
    job = replace(job, network=_on_device(job.network, context.device, processes))
    return OpenedRun(run, with_cache_reason(job, ready.hold), ready, state)


def _set_threads(
    context: RunContext, job: FinetuneJob, state: dict[str, Any] | None, console: Console
) -> FinetuneJob:
    """Set the number of CPU threads; the job with the reason for it."""
    threads, world = context.threads, context.processes.world
    if state is None:
        count, why = choose_threads(job, threads, context.device, world)
        return with_threads(job, count, why)
    previous = int(state["threads"])
    count = threads.to_resume(previous) if world == 1 else threads.most
    if count != previous:
        console.say(
            f"The run began with {previous} CPU threads and resumes with {count}: results may "
            "differ in the last bits."
        )
    return with_threads(job, count, "as the run began" if count == previous else "")


def train_run(
    context: RunContext,
    this_run: OpenedRun,
    console: Console,
    pool: SharedCachePool | None = None,
    *,
    known: bool = False,
) -> TrainedRun:
    """Train the job and write its model; `pool`: images of a shared feature cache.

    `known`: also store what the model needs to say "I don't know" (see `KnownImages`).
    """
    processes, run, ready, job = context.processes, this_run.run, this_run.ready, this_run.job
    parts = processes.on_all_ranks(lambda: build_training(job, ready, processes, pool))
    parts.loader.warn = console.warn
    solution = None
    if this_run.state is None:
        run.rewind_metrics(-1)
        job, solution = _start_head(context, this_run, parts, console)
    trainer = parts.trainer(job, run, context.found.fingerprint, context.deadline)
    if this_run.state is not None:
        trainer.load_state_dict(this_run.state)
        run.rewind_metrics(trainer.step)
    processes.on_rank_zero(lambda: _write_start(run, job, ready, parts, trainer))
    if solution is not None:
        trainer.save_solved(solution.line, solution.cached)
    s = job.plan.settings
    with logging_to(s.logger, run, as_dict(s), trainer.step, console):
        outcome = trainer.train_to_best(console)
    if s.lora:
        merge_lora(job.network)  # what follows knows the architecture's own layers
    # the model first: a failure in the steps below must not lose it
    processes.on_rank_zero(lambda: _write_model(run, job, ready, outcome, console))
    dense = job.task is not None and job.task.dense  # its head gets maps, not features
    with feature_meter(job.network, [] if dense else job.head) as meter:
        scores = _scores(job, parts, trainer, outcome)
        if outcome.interrupted is None:
            # on rank 0: other ranks may have no validation images
            processes.on_rank_zero(
                lambda: measure_features(meter, job, ready, trainer, run, console)
            )
    if scores is not None and parts.holdout is not None:
        holdout = parts.holdout
        if job.task is not None:
            state, scores = processes.on_rank_zero(lambda: _calibrate(run, job, holdout, console))
            job = _with_task_state(job, state)
        processes.on_rank_zero(
            lambda: _write_scores(run, job, ready, outcome, scores, holdout, console)
        )
        if known and job.task is None:
            cached = trainer.validation.cached_for(job.network)
            processes.on_rank_zero(lambda: write_known_images(job, ready, cached, run, console))
    processes.on_rank_zero(lambda: write_model_card(run, console, evaluated=scores is not None))
    return TrainedRun(job, outcome, scores, meter.statistics())


def _start_head(
    context: RunContext, this_run: OpenedRun, parts: TrainingParts, console: Console
) -> tuple[FinetuneJob, SolvedHead | None]:
    """The job before its first step: with a solved head, or with scaled and searched rates."""
    run, ready, job, deadline = this_run.run, this_run.ready, this_run.job, context.deadline
    if job.plan.settings.head_solver == "logistic":
        groups = ready.groups(job.plan.settings.group_by)
        return solve_head(job, parts, run, console, deadline, groups=groups)
    job = scale_head(job, parts)
    job = run_sweep(job, parts, run, console, deadline)
    return run_lr_finder(job, parts, run, context.found.fingerprint, console, deadline), None


def with_threads(job: FinetuneJob, count: int, why: str) -> FinetuneJob:
    """The job with the reason for its number of CPU threads, which is set; "": none is given."""
    set_threads(count)
    if not why:
        return job
    reasons = {**job.plan.reasons, "threads": f"{count}: {why}"}
    return replace(job, plan=replace(job.plan, reasons=reasons))


def with_cache_reason(job: FinetuneJob, hold: PixelCachePlan) -> FinetuneJob:
    """The job with the reason for where its images are held."""
    reasons = {**job.plan.reasons, "store": f"{hold.place}: {hold.reason}"}
    return replace(job, plan=replace(job.plan, reasons=reasons))


def _on_device(network: nn.Module, device: torch.device, processes: Distributed) -> nn.Module:
    """On its device, with batch norms over all processes."""
    if processes.world > 1:
        network = convert_sync_batchnorm(network.to(device))
    if device.type in ("cpu", "cuda"):
        # convolutions read channels last faster; other layers do not care
        return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
    return network.to(device)


def _write_start(
    run: RunFolder,
    job: FinetuneJob,
    dataset: LabelledDataset,
    parts: TrainingParts,
    trainer: FinetuneTrainer,
) -> None:
    s, device = job.plan.settings, next(job.network.parameters()).device
    trainable, frozen = job.counts
    run.file(RESULT).unlink(missing_ok=True)  # a resumed run is not finished
    facts = {
        "unfreeze": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": str(device),
        "processes": trainer.processes.world,
        "classes": list(job.card.classes),
        "images": len(dataset.train),
        "validation_images": len(dataset.val),
        "validation": dataset.portions.reason,
        "fingerprint": job.card.provenance["fingerprint"],
        "steps": trainer.state.steps,
        "steps_per_epoch": trainer.loader.steps_per_epoch,
        "parameters_trainable": trainable,
        "parameters_frozen": frozen,
        **({"tried": list(job.tried)} if job.tried else {}),
        **({"class_weights": list(parts.class_weights)} if parts.class_weights else {}),
    }
    tables: dict[str, dict[str, Any]] = {"reasons": dict(job.plan.reasons), "facts": facts}
    write_text(run.file("config.toml"), to_toml(as_dict(s), tables))
    dataset.write(run)
    check_names_read_back(run, as_dict(s), dataset.portions.rows(), dataset.problems, job.card)
    if isinstance(job.plan.preprocess, TextPreprocess):
        job.plan.preprocess.save(run.file("model"))  # to resume without the encoder's folder
        return
    positions = np.arange(min(SHOWN, len(dataset.train)))
    images = [dataset.train[int(i)] for i in positions]
    augment = view_maker(job, dataset.targets(dataset.train))
    views = []
    for epoch in range(min(SHOWN // 2, s.epochs or 0)):
        made = augment(images, positions, epoch)
        views.append((made[0] if isinstance(made, tuple) else made)[0].numpy())
    with replacing(run.file("views.npz")) as path, path.open("wb") as stream:
        np.savez_compressed(stream, views=np.stack(views, 1))


def _scores(
    job: FinetuneJob, parts: TrainingParts, trainer: FinetuneTrainer, outcome: TrainingResult
) -> Scores | None:
    """Scores of the selected weights on val; None after a stop request, which must end soon."""
    if parts.holdout is None or outcome.interrupted is not None:
        return None
    return trainer.scores(partial(parts.holdout.score, job.network))


def _write_model(
    run: RunFolder,
    job: FinetuneJob,
    dataset: LabelledDataset,
    outcome: TrainingResult,
    console: Console,
) -> None:
    """Write model/ with the record of its training images."""
    results = {
        "images": len(dataset.train),
        "epochs": outcome.epochs,
        "best_epoch": outcome.best_epoch,
        "val_accuracy": outcome.val_accuracy,
        **({"val_metrics": outcome.val_metrics} if job.task else {}),
    }
    card = replace(job.card, provenance={**job.card.provenance, **results})
    save_model(run.file("model"), job.network.state_dict(), card)
    failed = "The record of the training images (for data leakage checks) could not be written"
    with warn_on_failure(failed, run, console):
        dataset.write_seen(run)


def _write_scores(
    run: RunFolder,
    job: FinetuneJob,
    dataset: LabelledDataset,
    outcome: TrainingResult,
    scores: Scores,
    holdout: ValidationSet,
    console: Console,
) -> None:
    """Write the scores on val, the predictions, and the example images of the report."""
    classes = list(job.card.classes)
    chose = outcome.best_epoch is not None or (job.task is not None and job.task.calibrated)
    about = {"split": "val", "used_for_choosing": chose, "seen_in_training": dataset.copies}
    leaked: dict[str, Any] = {"leaked": int(dataset.leaked.sum())}
    if isinstance(scores, TaskMetrics):
        evaluation = {**about, **leaked, "task": job.card.task, "metrics": scores.values}
        if job.task is not None and holdout.logits is not None:
            intervals = bootstrap_intervals(job.task, holdout.logits, holdout.labels)
            evaluation["intervals"] = intervals
            evaluation |= job.task.details(holdout.logits, holdout.labels)
        evaluation |= {"n": scores.n, "loss": scores.loss}
    else:
        leaked["accuracy_unleaked"] = scores.accuracy_of(~dataset.leaked)
        evaluation = {**about, **leaked, "classes": classes, **scores.as_dict()}
    again = f"unfreeze evaluate {shlex.quote(str(run.path))} {_words(job.plan.settings.data)}"
    with warn_on_failure("The predictions could not be written", run, console, again=again):
        write_json(run.file("evaluation.json"), evaluation)
        if holdout.logits is None:
            return
        index, images = dataset.val.index, dataset.val
        if job.task is not None:
            predicted = job.task.predict(holdout.logits)
            cells = [job.task.cells(row) for row in predicted]
            write_predictions(run.file("predictions.csv"), index.paths, labels_of(index), cells)
            if isinstance(job.task, SegmentationTask):
                network = InferenceNetwork(job.network, job.card, job.plan.preprocess)
                reads = [partial(images.__getitem__, position) for position in range(len(index))]
                miou = [row["miou"] for row in predicted]
                rows = holdout.labels.tolist()
                write_mask_examples(run.path, network, job.task, index.paths, reads, rows, miou)
            return
        count = 0 if job.texts else len(index)  # the report shows images
        reads = [partial(images.__getitem__, position) for position in range(count)]
        labels = index.labels.astype(np.int64)
        predictions_of(index.paths, reads, classes, labels, holdout.logits).write(run.path)


def _calibrate(
    run: RunFolder, job: FinetuneJob, holdout: ValidationSet, console: Console
) -> tuple[dict[str, Any], TaskMetrics]:
    """(what the task chooses on val, also written to model.json, {} if nothing; scores with it)."""
    if job.task is None or holdout.logits is None:
        raise RuntimeError("val was not scored")
    task, state = copy.copy(job.task), dict[str, Any]()
    if sentence := task.calibrate(holdout.logits, holdout.labels):
        console.say(sentence)
        state = task.state_dict()
        write_card(run.file("model"), replace(read_card(run.path), task_state=state))
    return state, task_metrics(task, holdout.logits, holdout.labels)


def _with_task_state(job: FinetuneJob, state: dict[str, Any]) -> FinetuneJob:
    if job.task is None or not state:
        return job
    task = copy.copy(job.task)  # other runs of this process have the same one
    task.load_state_dict(state)
    return replace(job, task=task, card=replace(job.card, task_state=state))


def _words(data: str | Sequence[str]) -> str:
    return shlex.join([data] if isinstance(data, str) else data)


def interrupted_error(job: FinetuneJob, outcome: TrainingResult) -> Interrupted:
    """The error of a run that a signal or time limit stopped."""
    error, epochs = outcome.interrupted or Interrupted(""), job.plan.settings.epochs
    return Interrupted(
        f"{error.sentence.removesuffix('.')} ({outcome.epochs} of {epochs} epochs); model/ holds "
        "the best weights so far.",
        error.next_step,
    )
