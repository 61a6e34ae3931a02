"""The trainer of a fine-tuning run: `Trainer` with layer freezing, validation, best weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from unfreeze.checkpoints.state import BEST_CHECKPOINT, load_state
from unfreeze.data.loading.loader import Loader
from unfreeze.errors import Interrupted
from unfreeze.optim.optimizer import decay_groups, make_optimizer, schedule_lr
from unfreeze.runtime.console import Console
from unfreeze.runtime.distributed import Distributed
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.runtime.time_limit import TimeLimit
from unfreeze.training.compute import ComputeContext
from unfreeze.training.ema import weights_to_serve
from unfreeze.training.trainer import Trainer, TrainingPlan
from unfreeze.transfer.callbacks import (
    REMEDY,
    EarlyStopping,
    FinetuneCheckpoints,
    LayerFreezing,
    Validation,
)
from unfreeze.transfer.early_stopping import BestEpoch
from unfreeze.transfer.evaluate import Scores
from unfreeze.transfer.feature_cache.builder import FeatureCache
from unfreeze.transfer.feature_cache.loader import CachedLoader
from unfreeze.transfer.freezing.freeze import FreezeSchedule
from unfreeze.transfer.loss import TrainingConfig, TrainingResult
from unfreeze.transfer.task import FinetuneTask


@dataclass(frozen=True)
class Run:
    """Where a run is written, and what all its parts share.

    `content`: plain data of the run that every checkpoint contains. `resume_command`: the next step
    of an interrupted run.
    """

    folder: RunFolder
    processes: Distributed = field(default_factory=Distributed)
    time_limit: TimeLimit = field(default_factory=TimeLimit)
    content: Mapping[str, Any] = field(default_factory=dict)
    resume_command: str = ""


class FinetuneTrainer(Trainer):
    """Trains `network` on labels, validates each epoch, and ends with the best weights.

    `prepare` maps uint8 [B, S, S, 3] on the network's device to its input. `validate` returns the
    metrics of a validation line; None without a validation set. `cache`: feature cache for epochs
    that need no images.
    """

    def __init__(
        self,
        network: nn.Module,
        loader: Loader,
        fit: TrainingConfig,
        context: Run,
        *,
        prepare: Callable[[Tensor], Tensor],
        validate: Callable[[], Mapping[str, Any]] | None,
        freeze: FreezeSchedule,
        cache: FeatureCache | None = None,
    ) -> None:
        run, processes, limit = context.folder, context.processes, context.time_limit
        task = FinetuneTask(network, fit, prepare=prepare, processes=processes)
        self.freezing = LayerFreezing(task, freeze, cache)
        self.validation = Validation(
            validate,
            self.freezing,
            run,
            fit=fit,
            processes=processes,
            time_limit=limit,
        )
        steps = loader.steps_per_epoch
        total = fit.epochs * steps
        warmup = max(fit.warmup_epochs * steps, round(fit.warmup_share * total))
        plan = TrainingPlan(
            command="finetune",
            epochs=fit.epochs,
            steps_per_epoch=steps,
            optimizer=partial(finetune_optimizer, fit=fit, frozen=freeze.always),
            learning_rate=lambda step: schedule_lr(
                fit.schedule, step, total=total, warmup=warmup, base=fit.lr
            ),
            accumulate=fit.accumulate,
            clip_grad=fit.clip_grad,
            ema=fit.ema,
            skip_bad_steps=False,
            record_epochs=True,
            remedy=REMEDY,
            describe=lambda step: context.content,
            resume_command=context.resume_command,
        )
        super().__init__(
            task,
            plan,
            loader,
            run,
            ComputeContext(task.device, fit.precision, (), ()),
            processes=processes,
            callbacks=[
                self.freezing,
                self.validation,
                FinetuneCheckpoints(fit.checkpoint_every, fit.keep_every, self.freezing),
                EarlyStopping(self.validation),
            ],
            time_limit=limit,
        )

    @property
    def cached(self) -> CachedLoader | None:
        """The cached features that are trained on at present."""
        return self.freezing.cached

    def train_to_best(self, console: Console) -> TrainingResult:
        """Train until the end, early stopping or a request to stop; then load the best weights.

        The caller's random state is unchanged.
        """
        state, interrupted = self.state, None
        with torch.random.fork_rng([state.device] if state.device.type == "cuda" else []):
            try:
                self.fit(console)
            except Interrupted as error:
                interrupted = error
        seconds = self.seconds
        self.load_best()
        return TrainingResult(
            epochs=state.epoch,
            best_epoch=self.validation.best.epoch,
            val_accuracy=self.validation.accuracy,
            val_metrics=self.validation.line,
            images=self.loader.images_until(state.step),
            seconds=seconds,
            step=state.step,
            steps=state.steps,
            ended_early=self.ended,
            interrupted=interrupted,
        )

    def load_best(self) -> None:
        """Load the weights of the best epoch; without selection, the EMA if there is one."""
        model, average, best = self.state.model, self.state.average, self.validation.best
        if best.epoch is None:
            if average:
                model.load_state_dict(average.state())
            return
        path = self.run.file("checkpoints") / BEST_CHECKPOINT
        saved = self.processes.on_rank_zero(lambda: load_state(path))
        model.load_state_dict(weights_to_serve(saved))
        # if the run was killed between writing the two files, best.ckpt is newer than last.ckpt
        validated = saved["callbacks"][Validation.key]
        newer = BestEpoch(**validated["best"])
        best.epoch, best.accuracy, best.loss = newer.epoch, newer.accuracy, newer.loss
        self.validation.best_line = dict(validated["best_line"])
        self.run.log(f"loaded the best checkpoint: epoch {best.epoch}")

    def save_solved(self, line: Mapping[str, float], cached: CachedLoader) -> None:
        """Validate and save a network whose head was fitted by the solver, without training steps.

        `line`: training metrics for metrics.jsonl; `cached`: the features that were used.
        """
        state = self.state
        state.step, state.loss, self.freezing.task.cached = state.steps, line["loss"], cached
        position = {"step": state.step, "epoch": state.epoch - 1, "split": "train"}
        self.run.metric({**position, **line, "learning_rate": None})
        if self.validation.validate is not None:
            self.validation.measure(state, self.validation.validate)
            self.save(BEST_CHECKPOINT, last=False)
        self.save()

    def scores(self, plain: Callable[[], Scores]) -> Scores:
        """Scores of the current weights, from cached features if they fit, else from `plain`."""
        return self.validation.scores(self.state.model, plain)


def finetune_optimizer(
    model: nn.Module, *, fit: TrainingConfig, frozen: frozenset[str]
) -> Optimizer:
    """The optimizer over all parameters trained in any epoch: unfreezing adds no group."""
    named = [(name, p) for name, p in model.named_parameters() if name not in frozen]
    groups = decay_groups(named, fit.weight_decay, fit.scales)
    return make_optimizer(
        fit.optimizer, groups, lr=fit.lr, momentum=fit.momentum, weight_decay=fit.weight_decay
    )
