"""The fine-tuning loop: train, validate and save each epoch; load the best checkpoint at the end.

All random numbers of a step depend on (seed, step) only, so a resumed run has bit-identical weights
to an uninterrupted one on the same number of CPU threads.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unfreeze.data.loading.loader import Batch, Loader, next_batch
from unfreeze.errors import DataError
from unfreeze.optim.optimizer import schedule_lr
from unfreeze.runtime.console import Console, ProgressCallback
from unfreeze.runtime.distributed import error_of_lost
from unfreeze.runtime.signals import STOPPED_ELSEWHERE, StopRequest, stop_requests
from unfreeze.runtime.step_timer import is_record_due
from unfreeze.runtime.time_limit import TimeLimit
from unfreeze.transfer.checkpoints import SHORT_SECONDS, CheckpointWriter
from unfreeze.transfer.early_stopping import BestEpoch, score_of
from unfreeze.transfer.ema import weights_to_serve
from unfreeze.transfer.evaluate import ClassificationMetrics
from unfreeze.transfer.feature_cache.builder import FeatureCache
from unfreeze.transfer.feature_cache.loader import CachedLoader
from unfreeze.transfer.freezing.freeze import (
    FreezeSchedule,
    apply_freeze,
    frozen_entries,
    hash_tensors,
)
from unfreeze.transfer.loss import TrainingConfig, TrainingResult
from unfreeze.transfer.train_step import LabelMeter, Stepper, diverged_error


class FinetuneTrainer:
    """Trains `network` on `loader`; `state()` is the complete training state.

    `prepare` maps uint8 [B, S, S, 3] on the network's device to its input. `validate` returns
    accuracy, correct, total and loss; None without a validation set. `keep`: plain data of the run
    that every checkpoint contains. `keeper`: feature cache for epochs that need no images. With
    data parallelism the results are those of one process.
    """

    def __init__(
        self,
        network: nn.Module,
        loader: Loader,
        fit: TrainingConfig,
        *,
        prepare: Callable[[Tensor], Tensor],
        validate: Callable[[], Mapping[str, Any]] | None,
        freeze: FreezeSchedule,
        saves: CheckpointWriter,
        keep: Mapping[str, Any],
        keeper: FeatureCache | None = None,
    ) -> None:
        self.network, self.loader, self.fit = network, loader, fit
        self.validate, self.freeze = validate, freeze
        self.saves, self.folder, self.processes = saves, saves.folder, saves.processes
        self.keep, self.keeper = dict(keep), keeper
        self.device = next(network.parameters()).device
        # all parameters trained in any epoch: unfreezing adds no parameter group
        named = [(n, p) for n, p in network.named_parameters() if n not in freeze.always]
        self.stepper = Stepper(
            network, loader, fit, named=named, prepare=prepare, processes=self.processes
        )
        self.update, self.average = self.stepper.update, self.stepper.average
        self.total = loader.steps_per_epoch * fit.epochs
        self.warmup = loader.steps_per_epoch * fit.warmup_epochs
        self.selection, self.meter = BestEpoch(fit.patience), LabelMeter(self.processes.sum)
        self.step, self.images, self.seconds, self.line = 0, 0, 0.0, dict[str, float]()
        # of the last validated epoch, best or not
        self.figures: dict[str, float | None] = {"val_accuracy": None, "val_loss": None}
        self.began = time.monotonic()
        self.shortcut: CachedLoader | None = None
        self.frozen: frozenset[str] | None = None  # parameters frozen at present
        # frozen entries of the state dict; entries whose EMA differs from their value
        self.still, self.apart = set[str](), set[str]()
        self.asked = False  # stop requested; all processes agree at the same step

    @property
    def deadline(self) -> TimeLimit:
        """Deadline of the run (--time-limit)."""
        return self.saves.deadline

    @deadline.setter
    def deadline(self, deadline: TimeLimit) -> None:
        self.saves.deadline = deadline

    def run(self, console: Console) -> TrainingResult:
        """Train until the end, early stopping or a stop request; then load the best weights."""
        self.began = self.saves.written = time.monotonic()
        devices = [self.device] if self.device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices),
            stop_requests() as stop,
            console.progress("finetune", self.total, self.step) as advance,
        ):
            try:
                while self.step < self.total and not self.selection.exhausted and not self.asked:
                    self._freeze(console, stop)
                    if self.asked:
                        break
                    before = self.step
                    self._train(stop, advance)
                    if self.step > before and self.step % self.loader.steps_per_epoch == 0:
                        self._close_epoch()
            except DataError:  # for example, a file was removed
                if self.saves.step != self.step:
                    self.saves.last(self.state())
                raise
            if self.asked:
                self.saves.last(self.state())
        self._load_best()
        return self._outcome(stop)

    def conclude(self, line: dict[str, float], shortcut: CachedLoader) -> None:
        """Validate and save a network whose head was fitted by the solver, without training steps.

        `line`: training metrics for metrics.jsonl; `shortcut`: the feature cache of the run.
        """
        self.step, self.images, self.line = self.total, int(line["total"]), line
        self.shortcut = shortcut
        position = {"step": self.step, "epoch": self.fit.epochs - 1}
        self.folder.metric({**position, "split": "train", **line, "learning_rate": None})
        if self.validate is not None:
            with self.saves.deadline.timing("validation"):
                scores = self._validated(self.validate)
            self.folder.metric({**position, "split": "val", **scores})
            self.figures = {"val_accuracy": scores["accuracy"], "val_loss": scores["loss"]}
            self.saves.best(self.state())
        self.saves.last(self.state())

    def state(self) -> dict[str, Any]:
        """Checkpoint content: everything needed to resume, and the description of the run."""
        return {
            "step": self.step,
            "epoch": self.step // self.loader.steps_per_epoch,
            "loss": self.line.get("loss"),
            "metrics": self.figures,
            "model": self.network.state_dict(),
            **({"average": self.average.state()} if self.average else {}),
            "optimizer": self.update.optimizer.state_dict(),
            "scaler": self.update.scaler.state_dict(),
            "selection": self.selection.state(),
            "images": self.images,
            "seconds": self.seconds + time.monotonic() - self.began,
            **self.keep,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Resume from what `state()` returned."""
        self.network.load_state_dict(state["model"])
        if self.average:
            self.average.restore(state["average"])
        self.update.optimizer.load_state_dict(state["optimizer"])
        self.update.scaler.load_state_dict(state["scaler"])
        self.selection = BestEpoch(**{**state["selection"], "patience": self.fit.patience})
        self.step, self.images, self.seconds = state["step"], state["images"], state["seconds"]
        self.figures = dict(state["metrics"])

    def scores(self, plain: Callable[[], ClassificationMetrics]) -> ClassificationMetrics:
        """Scores from the feature cache if it fits the current weights, else from `plain`."""
        shortcut = self.shortcut
        if shortcut is None:
            return plain()
        current = hash_tensors(self.network.state_dict(), shortcut.hashes)
        return shortcut.scores(self.network) if current == shortcut.hashes else plain()

    def _freeze(self, console: Console, stop: StopRequest) -> None:
        """Apply the freezing of the next epoch; if it changed, switch the feature cache."""
        epoch = self.step // self.loader.steps_per_epoch
        frozen = self.freeze.at(epoch)
        if frozen != self.frozen:
            if self.saves.waiting is not None:
                self.saves.last(
                    self.state()
                )  # before entries change that the waiting best state shares
            apply_freeze(self.network, frozen)
            self.apart = self.average.apart(self.network) if self.average else set()
            self.frozen, self.still = frozen, frozen_entries(self.network, frozen) - self.apart
            self.shortcut = None
        if self.keeper is not None:

            def stop_requested() -> bool:
                stop.at(self.saves.deadline, 0.0)
                return bool(stop)

            self.shortcut = self.keeper.at(epoch, console, stop_requested)
        self._agree(stop)

    def _agree(self, stop: StopRequest, *also: bool) -> list[bool]:
        """Set `asked` if any process was asked to stop; return whether any has each of `also`."""
        self.asked, *any_of = self.processes.any([bool(stop), *also])
        if self.asked and not stop:
            stop.name = STOPPED_ELSEWHERE
        return any_of

    def _train(self, stop: StopRequest, advance: ProgressCallback) -> None:
        """Train to the end of the current epoch or to a stop request."""
        epoch, start = divmod(self.step, self.loader.steps_per_epoch)
        self.network.train()
        self.meter.reset()
        batches = iter((self.shortcut or self.loader).epoch(epoch, start))
        for _ in range(start, self.loader.steps_per_epoch):
            batch = self._fetch(batches, stop)
            if batch is None:
                break
            self.meter.data_ready()
            self._step(batch)
            stop.at(self.saves.deadline, self.meter.last)
            (late,) = self._agree(stop, self.saves.late)
            if is_record_due(self.step) or late:
                self._write_line(epoch)
            if late:
                self.saves.last(self.state())
            advance(1, self._text())
            if self.asked:
                break
        self._write_line(epoch)

    def _fetch(self, batches: Iterator[Batch], stop: StopRequest) -> Batch | None:
        """The next batch; None if the signal to stop also ended a worker.

        If any process lost a file or a worker, all processes save and raise.
        """
        if self.shortcut is not None:
            return next(batches)
        batch, lost = next_batch(batches, stop)
        any_lost, any_missing = self.processes.any([lost is not None, batch is None])
        if any_lost:
            self.saves.last(self.state())
            raise error_of_lost(self.processes, lost)
        if any_missing:
            self._agree(stop)
        return None if any_missing else batch

    def _step(self, batch: Batch) -> None:
        result = self.stepper.take(self.step, batch, self._lr(self.step), self.shortcut)
        self.step += 1
        self.images += result.images
        self.meter.take(self.step, result)

    def _lr(self, step: int) -> float:
        fit = self.fit
        return schedule_lr(fit.schedule, step, total=self.total, warmup=self.warmup, base=fit.lr)

    def _write_line(self, epoch: int) -> None:
        if self.meter.steps:
            self.line = self.meter.read()
            position = {"step": self.step, "epoch": epoch, "split": "train"}
            self.folder.metric({**position, **self.line, "learning_rate": self._lr(self.step - 1)})

    def _close_epoch(self) -> None:
        """Validate, save the best checkpoint and, if due, the last one."""
        done = self.step // self.loader.steps_per_epoch
        if self.validate is not None:
            with self.saves.deadline.timing("validation"), self._with_average():
                scores = self._validated(self.validate)
            self.folder.metric({"step": self.step, "epoch": done - 1, "split": "val", **scores})
            self.figures = {"val_accuracy": scores["accuracy"], "val_loss": scores["loss"]}
            if self.fit.select != "last":
                score = score_of(scores, self.fit.select)
                if self.selection.update(done - 1, scores["accuracy"], scores["loss"], score):
                    self._save_best()
        if self.fit.keep_every and done % self.fit.keep_every == 0:
            self.saves.own(self.state())
        ended = self.step == self.total or self.selection.exhausted
        if self.step == self.total and self.validate is not None and self.fit.select == "last":
            self.saves.best(
                self.state()
            )  # with --select last, the final weights are the best checkpoint
        if ended or self._due(done):
            self.saves.last(self.state())

    def _validated(self, plain: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Scores from the feature cache (on rank 0), or from images if the EMA's features differ.

        Raises DivergedError for a non-finite loss.
        """
        shortcut = self.shortcut
        if shortcut is None or not self.apart.isdisjoint(shortcut.hashes):
            scores = dict(plain())
        else:
            scores = self.processes.on_rank_zero(lambda: shortcut.record(self.network))
        if not math.isfinite(scores["loss"]):
            raise diverged_error(
                f"The validation loss was {scores['loss']} after step {self.step}."
            )
        return scores

    def _with_average(self) -> contextlib.AbstractContextManager[None]:
        """Context manager: the network has the EMA weights, if there are any, inside the block."""
        return self.average.shown(self.network) if self.average else contextlib.nullcontext()

    def _due(self, done: int) -> bool:
        """Whether the last checkpoint is written after epoch `done` (counted from 1)."""
        if self.fit.checkpoint_every is not None:
            return done % self.fit.checkpoint_every == 0
        return self.shortcut is None or self.saves.age > SHORT_SECONDS

    def _save_best(self) -> None:
        """Write the best checkpoint now; with cached features, together with the next one."""
        if self.shortcut is None:
            self.saves.best(self.state())
        else:
            self.saves.later(self.state(), self.still)

    def _load_best(self) -> None:
        """Load the best weights, once, after the loop; without selection, the EMA."""
        if self.selection.epoch is None:
            if self.average:
                self.network.load_state_dict(self.average.state())
            return
        best = self.saves.chosen()
        self.network.load_state_dict(weights_to_serve(best))
        # if the run was killed between writing the two files, best.ckpt is newer than last.ckpt
        saved = BestEpoch(**best["selection"])
        selection = self.selection
        selection.epoch, selection.accuracy, selection.loss = (
            saved.epoch,
            saved.accuracy,
            saved.loss,
        )
        self.folder.log(f"loaded the best checkpoint: epoch {self.selection.epoch}")

    def _outcome(self, stop: StopRequest) -> TrainingResult:
        ended = "early" if self.selection.exhausted else "end"
        return TrainingResult(
            epochs=self.step // self.loader.steps_per_epoch,
            best_epoch=self.selection.epoch,
            val_accuracy=self._accuracy(),
            images=self.images,
            seconds=self.seconds + time.monotonic() - self.began,
            stopped="asked" if self.asked and self.step < self.total else ended,
            asked_by=stop.name,
            step=self.step,
            steps=self.total,
        )

    def _accuracy(self) -> float | None:
        """Validation accuracy of the selected epoch, else of the last validated one."""
        if self.selection.epoch is not None:
            return self.selection.accuracy
        return self.figures["val_accuracy"]

    def _text(self) -> str:
        """Progress text: most important first, two spaces between parts that may be cut off."""
        epoch = -(-self.step // self.loader.steps_per_epoch)
        parts = [f"epoch {epoch}/{self.fit.epochs}"]
        if self.figures["val_accuracy"] is not None:
            parts.append(f"val {self.figures['val_accuracy']:.3f}")
        if line := self.line:
            data, step = line["seconds_data"] * 1000, line["seconds_step"] * 1000
            parts += [f"loss {line['loss']:.3f}", f"data {data:.0f} ms", f"step {step:.0f} ms"]
        return "  ".join(parts)
