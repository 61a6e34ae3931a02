"""Callbacks of fine-tuning: layer freezing with its feature cache, validation, early stopping."""

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from unfreeze.checkpoints.state import BEST_CHECKPOINT
from unfreeze.errors import DivergedError
from unfreeze.runtime.console import Console
from unfreeze.runtime.distributed import Distributed
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.runtime.time_limit import TimeLimit
from unfreeze.training.callbacks import (
    Action,
    Callback,
    EndTraining,
    Logs,
    PeriodicCheckpoints,
    SaveCheckpoint,
)
from unfreeze.training.state import TrainState
from unfreeze.transfer.early_stopping import BestEpoch, score_of
from unfreeze.transfer.evaluate import Scores
from unfreeze.transfer.feature_cache.builder import FeatureCache
from unfreeze.transfer.feature_cache.loader import CachedLoader
from unfreeze.transfer.freezing.freeze import (
    FreezeSchedule,
    apply_freeze,
    frozen_entries,
    hash_tensors,
)
from unfreeze.transfer.loss import TrainingConfig
from unfreeze.transfer.task import FinetuneTask

SHORT_SECONDS = 30.0  # shortest interval between checkpoints when training on cached features
REMEDY = "Lower --lr, add --warmup-epochs, or use --precision fp32."


class LayerFreezing(Callback):
    """Freezes what `schedule` says for each epoch, and trains on cached features where it can.

    `cache`: the feature cache; None if every epoch trains on images.
    """

    def __init__(
        self, task: FinetuneTask, schedule: FreezeSchedule, cache: FeatureCache | None
    ) -> None:
        self.task, self.schedule, self.cache = task, schedule, cache
        self.frozen: frozenset[str] | None = None  # parameters frozen at present
        # frozen entries of the state dict; entries whose EMA differs from their value
        self.unchanged, self.apart = set[str](), set[str]()

    @property
    def cached(self) -> CachedLoader | None:
        """The cached features that are trained on at present."""
        return self.task.cached

    def before_epoch(
        self, state: TrainState, console: Console, should_stop: Callable[[], bool]
    ) -> CachedLoader | None:
        """Freeze and unfreeze, and compute missing features."""
        epoch, model = state.epoch, state.model
        frozen = self.schedule.at(epoch)
        if frozen != self.frozen:
            apply_freeze(model, frozen)
            self.apart = state.average.apart(model) if state.average else set()
            self.frozen = frozen
            self.unchanged = frozen_entries(model, frozen) - self.apart
            self.task.cached = None
        if self.cache is not None:
            self.task.cached = self.cache.at(epoch, console, should_stop)
        model.train()
        return self.task.cached

    def changes_after(self, state: TrainState) -> bool:
        """Whether other parameters are frozen after the epoch that just ended."""
        return self.schedule.at(state.epoch) != self.schedule.at(state.epoch - 1)

    def deferrable(self, state: TrainState) -> set[str] | None:
        """Entries that a deferred checkpoint need not copy; None: it must be written at once."""
        if self.cached is None or self.changes_after(state):
            return None
        return self.unchanged


class Validation(Callback):
    """Validates after each epoch, and saves the best checkpoint by `fit.select`.

    `validate()` returns the metrics of a validation line, on every process.
    """

    key: ClassVar[str] = "validation"

    def __init__(
        self,
        validate: Callable[[], Mapping[str, Any]] | None,
        freezing: LayerFreezing,
        run: RunFolder,
        *,
        fit: TrainingConfig,
        processes: Distributed,
        time_limit: TimeLimit,
    ) -> None:
        self.validate, self.freezing, self.run = validate, freezing, run
        self.fit, self.processes, self.time_limit = fit, processes, time_limit
        self.best = BestEpoch(fit.patience)
        self.best_line: dict[str, Any] = {}  # validation line of the best epoch
        self.last_line: dict[str, Any] = {}  # of the last validated one
        self.metric = "accuracy" if fit.task is None else fit.task.metric

    @property
    def progress(self) -> str:  # type: ignore[override]
        """The last validation accuracy, or the task's metric."""
        if not self.last_line:
            return ""
        name = "" if self.metric == "accuracy" else f"{self.metric} "
        return f"val {name}{self.last_line[self.metric]:.3f}"

    @property
    def metrics(self) -> dict[str, float | None]:  # type: ignore[override]
        """Accuracy, or the task's metric, and loss of the last validated epoch, best or not."""
        return {f"val_{name}": self.last_line.get(name) for name in (self.metric, "loss")}

    @property
    def line(self) -> dict[str, Any]:
        """Validation line of the best epoch, else of the last validated one; {} without any."""
        return self.best_line if self.best.epoch is not None else self.last_line

    @property
    def accuracy(self) -> float | None:
        """Validation accuracy of `line`; None for tasks other than classification."""
        return self.line.get("accuracy") if self.fit.task is None else None

    def after_step(self, state: TrainState, logs: Logs) -> Action | None:
        """Validate at the end of an epoch."""
        if not state.ends_epoch or self.validate is None:
            return None
        line = self.measure(state, self.validate)
        logs |= {"val_accuracy": line["accuracy"]} if self.fit.task is None else {}
        if self.fit.select == "last":  # the final weights are the best checkpoint
            return (
                SaveCheckpoint(BEST_CHECKPOINT, last=False) if state.step == state.steps else None
            )
        score = score_of(line, self.fit.select, self.fit.task)
        if not self.best.update(state.epoch - 1, line.get("accuracy", score), line["loss"], score):
            return None
        self.best_line = dict(line)
        return SaveCheckpoint(BEST_CHECKPOINT, last=False, deferred=self.freezing.deferrable(state))

    def measure(
        self, state: TrainState, validate: Callable[[], Mapping[str, Any]]
    ) -> Mapping[str, Any]:
        """Validate the model, or its EMA, and write the validation line.

        From cached features (on rank 0), or from images if the EMA's features differ. Raises
        DivergedError for a non-finite loss.
        """
        cached = self.freezing.cached
        shown = state.average.shown(state.model) if state.average else contextlib.nullcontext()
        with self.time_limit.timing("validation"), shown:
            if cached is None or not self.freezing.apart.isdisjoint(cached.hashes):
                line = validate()
            else:
                line = self.processes.on_rank_zero(lambda: cached.record(state.model))
        if not math.isfinite(line["loss"]):
            sentence = f"The validation loss was {line['loss']} after step {state.step}."
            raise DivergedError(sentence, REMEDY)
        position = {"step": state.step, "epoch": state.epoch - 1, "split": "val"}
        self.run.metric({**position, **line})
        self.last_line = dict(line)
        return line

    def scores(self, model: nn.Module, plain: Callable[[], Scores]) -> Scores:
        """Scores from cached features if they fit the current weights, else from `plain`."""
        cached = self.cached_for(model)
        return plain() if cached is None else cached.scores(model)

    def cached_for(self, model: nn.Module) -> CachedLoader | None:
        """The cached features, if they were computed with the current weights of `model`."""
        cached = self.freezing.cached
        if cached is None or hash_tensors(model.state_dict(), cached.hashes) != cached.hashes:
            return None
        return cached

    def state_dict(self) -> dict[str, Any]:
        """The best epoch so far, and the validation lines."""
        lines = {"best_line": self.best_line, "last_line": self.last_line}
        return {"best": self.best.state(), **lines}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`, except `patience`, which may change."""
        self.best = BestEpoch(**{**state["best"], "patience": self.best.patience})
        self.best_line, self.last_line = dict(state["best_line"]), dict(state["last_line"])


@dataclass(frozen=True)
class FinetuneCheckpoints(PeriodicCheckpoints):
    """By default the last checkpoint after each epoch; on cached features at most every 30 s.

    A deferred best checkpoint shares frozen entries with the model, so the last checkpoint, with
    which it is written, is also saved before others are frozen.
    """

    freezing: LayerFreezing

    def after_step(self, state: TrainState, logs: Logs) -> Action | None:
        """Save if a checkpoint is due."""
        action = super().after_step(state, logs)
        if action is not None or not state.ends_epoch:
            return action
        if self.freezing.changes_after(state):
            return SaveCheckpoint()
        if self.every is not None:
            return None
        return SaveCheckpoint(interval=SHORT_SECONDS if self.freezing.cached else 0.0)


@dataclass(frozen=True)
class EarlyStopping(Callback):
    """Ends training after `patience` epochs without improvement."""

    validation: Validation

    def on_start(self, state: TrainState) -> Action | None:
        """A run that ended early stays ended."""
        return EndTraining() if self.validation.best.exhausted else None

    def after_step(self, state: TrainState, logs: Logs) -> Action | None:
        """End if the last epochs were no improvement."""
        return self.on_start(state) if state.ends_epoch else None
