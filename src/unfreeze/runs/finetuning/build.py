"""Builds a fine-tuning run: data loader, validation, feature cache, sweep, LR finder, trainer."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from unfreeze import __version__
from unfreeze.config.finetune import FinetuneSettings
from unfreeze.config.layering import as_dict
from unfreeze.data.cache.policy import memory_budget
from unfreeze.data.images.decode import DECODER
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.data.index.index import Index
from unfreeze.data.loading.loader import (
    Loader,
    Make,
    class_balanced_order,
    length_bucketed_order,
)
from unfreeze.data.texts.source import TextSource
from unfreeze.errors import DataError, Interrupted, resume_command
from unfreeze.models.lora import alpha_of
from unfreeze.runs.finetuning.data import LabelledDataset
from unfreeze.runs.finetuning.setup import FinetuneJob
from unfreeze.runtime.console import Console
from unfreeze.runtime.distributed import Distributed
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.runtime.signals import STOPPED_ELSEWHERE, stop_requests
from unfreeze.runtime.time_limit import TimeLimit
from unfreeze.transfer.augment import training_view, view_maker_of
from unfreeze.transfer.feature_cache.builder import CacheConfig, CacheSource, FeatureCache
from unfreeze.transfer.feature_cache.shared_rows import SharedCachePool
from unfreeze.transfer.freezing.schedule import frozen_phases
from unfreeze.transfer.linear_sweep import LinearHeadSweep, SweepTrial, best_trial
from unfreeze.transfer.loss import TrainingConfig, class_weights
from unfreeze.transfer.lr_finder import find_lr
from unfreeze.transfer.plan import TEXT_WARMUP, layer_lr_scales
from unfreeze.transfer.train_val_split import group_numbers
from unfreeze.transfer.training_run import FinetuneTrainer, Run
from unfreeze.transfer.validation import ValidationSet

TEXTS_PASS = 512  # texts in a forward pass of the feature cache; the network splits them by length


@dataclass
class TrainingParts:
    """The parts that train a job; `seconds`: time spent before the trainer starts."""

    loader: Loader
    holdout: ValidationSet | None
    feature_cache: FeatureCache | None
    class_weights: tuple[float, ...] = ()
    processes: Distributed = field(default_factory=Distributed)
    seconds: float = 0.0

    def trainer(
        self, job: FinetuneJob, run: RunFolder, data: str, time_limit: TimeLimit | None = None
    ) -> FinetuneTrainer:
        """The trainer; `data`: fingerprint of the images."""
        s = job.plan.settings
        content = {
            "kind": "finetune",
            "settings": as_dict(s),
            "asked": dict(job.asked),
            "reasons": job.plan.reasons,
            "card": job.card.as_dict(),
            "frozen": job.hashes,
            "data": data,
            "tried": list(job.tried),
            # under the name by which adapters in a file are merged
            **({"lora_alpha": alpha_of(s.lora)} if s.lora else {}),
        }
        trainer = FinetuneTrainer(
            job.network,
            self.loader,
            training_config(job, self.class_weights),
            Run(
                run,
                self.processes,
                time_limit or TimeLimit(),
                content,
                resume_command("finetune", s.data, run.path),
            ),
            prepare=partial(normalised_input, job.plan.preprocess),
            validate=partial(self.holdout.record, job.network) if self.holdout else None,
            freeze=job.schedule,
            cache=self.feature_cache,
        )
        trainer.state.seconds = self.seconds
        return trainer


def build_training(
    job: FinetuneJob,
    dataset: LabelledDataset,
    processes: Distributed,
    pool: SharedCachePool | None = None,
) -> TrainingParts:
    """Data loader, validation and feature cache of a job whose network is on its device.

    `pool`: images of a feature cache that several runs share.
    """
    s, preprocess, network = job.plan.settings, job.plan.preprocess, job.network
    prepare, device = partial(normalised_input, preprocess), next(network.parameters()).device
    targets = dataset.targets(dataset.train)
    loader = Loader(
        dataset.train,
        view_maker(job, targets),
        batch_size=_batch_size(job.plan.batch_size, len(dataset.train), processes.world),
        seed=s.seed,
        drop_last=False,
        workers=_workers(s, device),
        rank=processes.rank,
        world=processes.world,
    )
    loader.pinned = device.type == "cuda"
    loader.dataset.targets = targets
    index = dataset.train.index
    _set_order(loader, index, targets, job)
    weights: tuple[float, ...] = ()
    if job.task is None:
        weights = class_weights(index.labels, len(job.card.classes), s.class_weights)
    budget = memory_budget(s.store_budget) // 4
    holdout = ValidationSet(
        dataset.val,
        preprocess,
        prepare=prepare,
        budget=budget,
        processes=processes,
        task=job.task,
    )
    validation = holdout if len(dataset.val) else None
    if s.cache in ("off", "auto"):  # auto: of a run older than the feature cache
        return TrainingParts(loader, validation, None, weights, processes)
    solved = s.head_solver == "logistic"
    # a solved head uses every view at once
    segments = frozen_phases(
        network, job.schedule, (s.cache_views or 1) if solved else s.epochs or 0, job.head
    )
    feature_cache = FeatureCache(
        network,
        loader,
        validation,
        config=_cache_config(job, dataset, prepare, pool),
        phases=segments,
        processes=processes,
        source=_cache_source(job, dataset, prepare, pool) if pool else None,
    )
    return TrainingParts(loader, validation, feature_cache, weights, processes)


def _set_order(loader: Loader, index: Index, targets: Tensor, job: FinetuneJob) -> None:
    """Draw balanced classes, or batches of texts of similar length, if that is wanted."""
    s, task = job.plan.settings, job.task
    if s.sampling == "balanced":
        groups = index.labels if task is None else group_numbers(task.strata(targets))
        loader.order = class_balanced_order(groups, s.seed)
    elif isinstance(index.source, TextSource):
        lengths = index.source.sizes[index.rows]
        loader.order = length_bucketed_order(lengths, s.seed, loader.batch_size)


def view_maker(job: FinetuneJob, targets: Tensor) -> Make:
    """The transform of training images with these targets: the task's, or one random view."""
    s, preprocess = job.plan.settings, job.plan.preprocess
    if job.task is not None:
        spec = None if s.augment == "none" else training_view(s.augment, preprocess.image_size)
        make = job.task.view_maker(targets, spec, preprocess, s.seed)
        if make is not None:
            return make
    return view_maker_of(s.augment, preprocess, s.seed)


def _cache_source(
    job: FinetuneJob,
    dataset: LabelledDataset,
    prepare: Callable[[Tensor], Tensor],
    pool: SharedCachePool,
) -> CacheSource:
    s, preprocess = job.plan.settings, job.plan.preprocess
    loader = Loader(
        pool.train,
        view_maker_of(s.augment, preprocess, pool.seed),
        batch_size=1,  # unused: the cache requests its own batches
        seed=s.seed,
        drop_last=False,
    )
    loader.pinned = next(job.network.parameters()).device.type == "cuda"
    if not len(dataset.val):
        return CacheSource(loader, None, pool.rows(dataset.train))
    holdout = ValidationSet(pool.val, preprocess, prepare=prepare, budget=0)
    return CacheSource(loader, holdout, pool.rows(dataset.train), pool.rows(dataset.val))


def _batch_size(batch_size: int, images: int, processes: int) -> int:
    """The batch size, at most the number of images, and divisible by the number of processes."""
    limit = images // processes * processes
    if not limit:
        raise DataError(
            f"{images} training images are too few for {processes} processes.",
            "Start fewer processes, or add images.",
        )
    return min(batch_size, limit)


def run_sweep(
    job: FinetuneJob, parts: TrainingParts, run: RunFolder, console: Console, deadline: TimeLimit
) -> FinetuneJob:
    """The job with the learning rate and weight decay that are best on validation."""
    if job.sweep is None or parts.feature_cache is None:
        return job
    trials = None
    with pre_training_phase(job, parts, run, deadline) as should_stop:
        cached = parts.feature_cache.at(0, console, should_stop)
        if cached is not None and not parts.processes.any([should_stop()])[0]:
            settings = training_config(job, parts.class_weights)
            grid = LinearHeadSweep(job.network, cached.whole(), job.sweep, settings)
            # on rank 0 alone: heads are small, and all ranks must use the same pair
            trials = parts.processes.on_rank_zero(lambda: grid.run(console, should_stop))
    if trials is None:
        return job  # no cache: its reason was shown
    return _with_best_trial(job, trials, run, console)


@contextlib.contextmanager
def pre_training_phase(
    job: FinetuneJob, parts: TrainingParts, run: RunFolder, deadline: TimeLimit
) -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether to stop; raises Interrupted if any process was to.

    The seconds of the block count as the run's.
    """
    began = time.monotonic()
    with stop_requests() as stop:

        def should_stop() -> bool:
            stop.at(deadline, 0.0)
            return bool(stop)

        yield should_stop
        if parts.processes.any([bool(stop)])[0]:
            raise Interrupted(
                f"Stopped by {stop.name or STOPPED_ELSEWHERE} before the first step.",
                resume_command("finetune", job.plan.settings.data, run.path),
            )
    parts.seconds += time.monotonic() - began


def run_lr_finder(
    job: FinetuneJob,
    parts: TrainingParts,
    run: RunFolder,
    data: str,
    console: Console,
    deadline: TimeLimit,
) -> FinetuneJob:
    """The job with the learning rate of `--find-lr`; unchanged after a sweep."""
    s = job.plan.settings
    if not s.find_lr or job.tried:
        if s.find_lr:
            console.say("--find-lr is skipped: the sweep chose the learning rate on validation.")
        return job
    with pre_training_phase(job, parts, run, deadline) as should_stop:
        curve = find_lr(parts.trainer(job, run, data), console, should_stop)
    if curve is None:
        return job  # stopped: `pre_training_phase` raised Interrupted
    for rate, loss, smoothed in zip(curve.rates, curve.losses, curve.smoothed, strict=True):
        line = {"step": 0, "epoch": 0, "split": "find-lr", "learning_rate": rate}
        run.metric({**line, "loss": _finite(loss), "smoothed": _finite(smoothed)})
    if curve.lr is None:
        console.say(f"--find-lr: the loss fell at no rate; using --lr {job.plan.lr:g}.")
        return job
    why = f"steepest descent in an LR range test of {len(curve.rates)} rates (metrics.jsonl)"
    console.say(f"--lr {curve.lr:g}: {why}.")
    settings = replace(s, lr=curve.lr)
    plan = replace(job.plan, settings=settings, reasons={**job.plan.reasons, "lr": why})
    return replace(job, plan=plan)


def _finite(value: float) -> float | None:
    """The value, or None for NaN and infinity, which JSON lacks."""
    return value if math.isfinite(value) else None


def _with_best_trial(
    job: FinetuneJob, trials: list[SweepTrial], run: RunFolder, console: Console
) -> FinetuneJob:
    for trial in trials:
        run.metric(
            {
                "step": 0,
                "epoch": trial.epoch,
                "split": "sweep",
                "learning_rate": trial.lr,
                "weight_decay": trial.weight_decay,
                "val_accuracy": trial.accuracy if trial.epoch is not None else None,
                "val_loss": trial.loss if trial.epoch is not None else None,
            }
        )
    job = replace(job, tried=tuple(trial.text for trial in trials))
    selected = best_trial(trials)
    if selected.epoch is None:
        console.say("Every pair of the sweep diverged; using the planned values.")
        return job
    why = (
        f"best of {len(trials)} pairs tried on validation ({selected.accuracy:.4f}; metrics.jsonl)"
    )
    console.say(f"Sweep: --lr {selected.lr:g} --weight-decay {selected.weight_decay:g}, {why}.")
    settings = replace(job.plan.settings, lr=selected.lr, weight_decay=selected.weight_decay)
    reasons = {**job.plan.reasons, "lr": why, "weight_decay": why}
    plan = replace(job.plan, settings=settings, reasons=reasons)
    return replace(job, plan=plan)


def training_config(job: FinetuneJob, weights: tuple[float, ...]) -> TrainingConfig:
    """The training settings of a job; `weights`: class weights of the loss, () if all are equal."""
    s = job.plan.settings
    return TrainingConfig(
        epochs=s.epochs or 0,
        lr=job.plan.lr,
        optimizer=s.optimizer,
        momentum=s.momentum,
        weight_decay=job.plan.weight_decay,
        schedule=s.schedule,
        warmup_epochs=s.warmup_epochs,
        warmup_share=TEXT_WARMUP if job.texts and not job.trains_head_alone else 0.0,
        patience=s.patience,
        select=s.select or "accuracy",
        checkpoint_every=s.checkpoint_every,
        keep_every=s.keep_every,
        precision=s.precision,
        seed=s.seed,
        scales=layer_lr_scales(
            job.network, s.layer_decay, job.head, head_share=job.plan.head_share
        ),
        classes=len(job.card.classes),
        label_smoothing=s.label_smoothing,
        class_weights=weights,
        mixup=s.mixup,
        cutmix=s.cutmix,
        clip_grad=s.clip_grad,
        accumulate=s.accumulate,
        ema=s.ema,
        task=job.task,
    )


def _cache_config(
    job: FinetuneJob,
    dataset: LabelledDataset,
    prepare: Callable[[Tensor], Tensor],
    pool: SharedCachePool | None,
) -> CacheConfig:
    s = job.plan.settings
    digest, seed = (pool.digest, pool.seed) if pool else (dataset.digest, s.seed)
    key = {
        "unfreeze": __version__,
        "decoder": DECODER,
        "arch": job.card.arch,
        "stem": job.card.stem,
        **({"tokens": job.card.task_state["tokens"]} if job.texts else {}),
        "preprocess": job.plan.preprocess.as_dict(),
        "augment": s.augment,
        "seed": None if s.augment == "none" else seed,
        "shrunk": dataset.train.resize_to,
    }
    return CacheConfig(
        mode=s.cache,
        views=s.cache_views or 1,
        prepare=prepare,
        side=job.plan.preprocess.image_size,
        pass_size=TEXTS_PASS if job.plan.preprocess.fit == "text" else 0,
        precision=s.precision,
        memory=memory_budget(s.store_budget),
        disk=int(s.cache_budget * 2**30),
        about=key,
        train=partial(digest, "train"),
        val=partial(digest, "val"),
        head=tuple(job.head) if s.head_solver == "logistic" else (),
    )


def normalised_input(preprocess: Preprocess, batch: Tensor) -> Tensor:
    """The network's input: normalised float32 [B, 3, S, S] from uint8 [B, S, S, 3]."""
    return preprocess.model_input(batch)


def _workers(s: FinetuneSettings, device: torch.device) -> int:
    if s.workers is not None:
        return s.workers
    # on the CPU the network already uses every core
    return min(16, torch.get_num_threads()) if device.type == "cuda" else 0
