"""The fine-tuning loop: train an epoch, validate, keep the best on disk; load it once at the end.

Every random number of a step follows from (seed, step), so a run that was interrupted and resumed
has the weights of one that was not, to the last bit on the same number of CPU threads.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unfreeze.data.loader import Batch, Loader, next_batch
from unfreeze.errors import DataError
from unfreeze.optim.schedules import schedule_lr
from unfreeze.runtime.console import Advance, Console
from unfreeze.runtime.deadline import Deadline
from unfreeze.runtime.meter import due
from unfreeze.runtime.processes import lost_in_any
from unfreeze.runtime.signals import ANOTHER, StopRequest, stop_requests
from unfreeze.transfer.average import served
from unfreeze.transfer.evaluate import Scores
from unfreeze.transfer.fit import Fit, Outcome
from unfreeze.transfer.freeze import FreezeSchedule, apply_freeze, fingerprint, standing
from unfreeze.transfer.keeper import Keeper
from unfreeze.transfer.meter import LabelMeter, diverged
from unfreeze.transfer.saves import SHORT_SECONDS, Saves
from unfreeze.transfer.selection import Selection, score_of
from unfreeze.transfer.shortcut import Shortcut
from unfreeze.transfer.step import Stepper


class Trainer:
    """Fits `network` to the batches of `loader`; all that moves is in `state()`.

    `prepare` turns a batch of uint8 [B, S, S, 3] on the network's device into its input;
    `validate` gives accuracy, correct, total and loss, or is None where no image is held out;
    `keep` is plain data that belongs to the run and goes into every checkpoint; `keeper` gives
    the epochs that need no images their features. Several processes have a share of each batch
    and compute what one would.
    """

    def __init__(
        self,
        network: nn.Module,
        loader: Loader,
        fit: Fit,
        *,
        prepare: Callable[[Tensor], Tensor],
        validate: Callable[[], Mapping[str, Any]] | None,
        freeze: FreezeSchedule,
        saves: Saves,
        keep: Mapping[str, Any],
        keeper: Keeper | None = None,
    ) -> None:
        self.network, self.loader, self.fit = network, loader, fit
        self.validate, self.freeze = validate, freeze
        self.saves, self.folder, self.processes = saves, saves.folder, saves.processes
        self.keep, self.keeper = dict(keep), keeper
        self.device = next(network.parameters()).device
        # every parameter that any epoch trains is here from step 0: thawing changes no group
        named = [(n, p) for n, p in network.named_parameters() if n not in freeze.always]
        self.stepper = Stepper(
            network, loader, fit, named=named, prepare=prepare, processes=self.processes
        )
        self.update, self.average = self.stepper.update, self.stepper.average
        self.total = loader.steps_per_epoch * fit.epochs
        self.warmup = loader.steps_per_epoch * fit.warmup_epochs
        self.selection, self.meter = Selection(fit.patience), LabelMeter(self.processes.sum)
        self.step, self.images, self.seconds, self.line = 0, 0, 0.0, dict[str, float]()
        # of the last epoch that was judged, the best one or not
        self.figures: dict[str, float | None] = {"val_accuracy": None, "val_loss": None}
        self.began = time.monotonic()
        self.shortcut: Shortcut | None = None
        self.frozen: frozenset[str] | None = None  # what was last made to stand still
        # entries of the state dict that do not change with it; those whose average is another value
        self.still, self.apart = set[str](), set[str]()
        self.asked = False  # to stop; all processes know it at the same step

    @property
    def deadline(self) -> Deadline:
        """When the run has to have ended."""
        return self.saves.deadline

    @deadline.setter
    def deadline(self, deadline: Deadline) -> None:
        self.saves.deadline = deadline

    def run(self, console: Console) -> Outcome:
        """Train to the end, to the end of patience or until asked to stop; the best is loaded."""
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
            except DataError:  # a file that is gone
                if self.saves.step != self.step:
                    self.saves.last(self.state())
                raise
            if self.asked:
                self.saves.last(self.state())
        self._load_best()
        return self._outcome(stop)

    def conclude(self, line: dict[str, float], shortcut: Shortcut) -> None:
        """Validate and save a network whose head was solved: no step is left to be done.

        `line`: the numbers of a training line; `shortcut`: the features of the whole run.
        """
        self.step, self.images, self.line = self.total, int(line["total"]), line
        self.shortcut = shortcut
        place = {"step": self.step, "epoch": self.fit.epochs - 1}
        self.folder.metric({**place, "split": "train", **line, "learning_rate": None})
        if self.validate is not None:
            with self.saves.deadline.timing("validation"):
                found = self._validated(self.validate)
            self.folder.metric({**place, "split": "val", **found})
            self.figures = {"val_accuracy": found["accuracy"], "val_loss": found["loss"]}
            self.saves.best(self.state())
        self.saves.last(self.state())

    def state(self) -> dict[str, Any]:
        """Plain values and tensors: everything that resuming needs, and what the run is."""
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
        """Go on where `state()` was taken."""
        self.network.load_state_dict(state["model"])
        if self.average:
            self.average.restore(state["average"])
        self.update.optimizer.load_state_dict(state["optimizer"])
        self.update.scaler.load_state_dict(state["scaler"])
        self.selection = Selection(**{**state["selection"], "patience": self.fit.patience})
        self.step, self.images, self.seconds = state["step"], state["images"], state["seconds"]
        self.figures = dict(state["metrics"])

    def scores(self, plain: Callable[[], Scores]) -> Scores:
        """What `plain` gives, by way of the features where they belong to these weights."""
        shortcut = self.shortcut
        if shortcut is None:
            return plain()
        now = fingerprint(self.network.state_dict(), shortcut.hashes)
        return shortcut.scores(self.network) if now == shortcut.hashes else plain()

    def _freeze(self, console: Console, stop: StopRequest) -> None:
        """What stands still in the epoch that comes; with another set, the features change."""
        epoch = self.step // self.loader.steps_per_epoch
        frozen = self.freeze.at(epoch)
        if frozen != self.frozen:
            if self.saves.waiting is not None:
                self.saves.last(self.state())  # while what the best left out is as it was
            apply_freeze(self.network, frozen)
            self.apart = self.average.apart(self.network) if self.average else set()
            self.frozen, self.still = frozen, standing(self.network, frozen) - self.apart
            self.shortcut = None
        if self.keeper is not None:

            def asked() -> bool:
                stop.at(self.saves.deadline, 0.0)
                return bool(stop)

            self.shortcut = self.keeper.at(epoch, console, asked)
        self._agree(stop)

    def _agree(self, stop: StopRequest, *also: bool) -> list[bool]:
        """Whether any process was asked to stop, into `asked`; for each of `also` likewise."""
        self.asked, *found = self.processes.any([bool(stop), *also])
        if self.asked and not stop:
            stop.name = ANOTHER
        return found

    def _train(self, stop: StopRequest, advance: Advance) -> None:
        """The rest of the current epoch, or what of it comes before a request to stop."""
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
            if due(self.step) or late:
                self._write_line(epoch)
            if late:
                self.saves.last(self.state())
            advance(1, self._text())
            if self.asked:
                break
        self._write_line(epoch)

    def _fetch(self, batches: Iterator[Batch], stop: StopRequest) -> Batch | None:
        """The next batch; None where the signal that asked to stop ended a worker, too.

        Where one process lost a file, or a worker otherwise, all save and end.
        """
        if self.shortcut is not None:
            return next(batches)
        batch, lost = next_batch(batches, stop)
        any_lost, none = self.processes.any([lost is not None, batch is None])
        if any_lost:
            self.saves.last(self.state())
            raise lost_in_any(self.processes, lost)
        if none:
            self._agree(stop)
        return None if none else batch

    def _step(self, batch: Batch) -> None:
        taken = self.stepper.take(self.step, batch, self._lr(self.step), self.shortcut)
        self.step += 1
        self.images += taken.images
        self.meter.take(self.step, taken)

    def _lr(self, step: int) -> float:
        fit = self.fit
        return schedule_lr(fit.schedule, step, total=self.total, warmup=self.warmup, base=fit.lr)

    def _write_line(self, epoch: int) -> None:
        if self.meter.steps:
            self.line = self.meter.read()
            place = {"step": self.step, "epoch": epoch, "split": "train"}
            self.folder.metric({**place, **self.line, "learning_rate": self._lr(self.step - 1)})

    def _close_epoch(self) -> None:
        """Validate, keep the best, save."""
        done = self.step // self.loader.steps_per_epoch
        if self.validate is not None:
            with self.saves.deadline.timing("validation"), self._judged():
                found = self._validated(self.validate)
            self.folder.metric({"step": self.step, "epoch": done - 1, "split": "val", **found})
            self.figures = {"val_accuracy": found["accuracy"], "val_loss": found["loss"]}
            if self.fit.select != "last":
                score = score_of(found, self.fit.select)
                if self.selection.update(done - 1, found["accuracy"], found["loss"], score):
                    self._keep_best()
        if self.fit.keep_every and done % self.fit.keep_every == 0:
            self.saves.own(self.state())
        ended = self.step == self.total or self.selection.exhausted
        if self.step == self.total and self.validate is not None and self.fit.select == "last":
            self.saves.best(self.state())  # the weights that are kept, whatever picked them
        if ended or self._due(done):
            self.saves.last(self.state())

    def _validated(self, plain: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """From features, by one process for all; where they are not the average's, from images.

        DivergedError where the scores are no numbers.
        """
        shortcut = self.shortcut
        if shortcut is None or not self.apart.isdisjoint(shortcut.hashes):
            found = dict(plain())
        else:
            found = self.processes.leads(lambda: shortcut.record(self.network))
        if not math.isfinite(found["loss"]):
            raise diverged(f"The loss on val was {found['loss']} after step {self.step}.")
        return found

    def _judged(self) -> contextlib.AbstractContextManager[None]:
        """Within the block the network has the weights that are kept."""
        return self.average.shown(self.network) if self.average else contextlib.nullcontext()

    def _due(self, done: int) -> bool:
        """Whether a checkpoint is written after epoch `done` (counted from 1)."""
        if self.fit.checkpoint_every is not None:
            return done % self.fit.checkpoint_every == 0
        return self.shortcut is None or self.saves.age > SHORT_SECONDS

    def _keep_best(self) -> None:
        """On disk at once; from features in memory, until the next checkpoint is written."""
        if self.shortcut is None:
            self.saves.best(self.state())
        else:
            self.saves.later(self.state(), self.still)

    def _load_best(self) -> None:
        """The only place where earlier weights replace later ones: after the loop, once."""
        if self.selection.epoch is None:
            if self.average:
                self.network.load_state_dict(self.average.state())
            return
        best = self.saves.chosen()
        self.network.load_state_dict(served(best))
        # a run that was killed between the two files left a best one the last knows nothing of
        told = Selection(**best["selection"])
        chosen = self.selection
        chosen.epoch, chosen.accuracy, chosen.loss = told.epoch, told.accuracy, told.loss
        self.folder.log(f"loaded the weights of epoch {self.selection.epoch}, the best on val")

    def _outcome(self, stop: StopRequest) -> Outcome:
        ended = "early" if self.selection.exhausted else "end"
        return Outcome(
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
        """Of the selected epoch; where none is selected, of the last one that was validated."""
        if self.selection.epoch is not None:
            return self.selection.accuracy
        return self.figures["val_accuracy"]

    def _text(self) -> str:
        """For people: the most important first, two spaces between what may be left out."""
        epoch = -(-self.step // self.loader.steps_per_epoch)
        parts = [f"epoch {epoch}/{self.fit.epochs}"]
        if self.figures["val_accuracy"] is not None:
            parts.append(f"val {self.figures['val_accuracy']:.3f}")
        if line := self.line:
            data, step = line["seconds_data"] * 1000, line["seconds_step"] * 1000
            parts += [f"loss {line['loss']:.3f}", f"data {data:.0f} ms", f"step {step:.0f} ms"]
        return "  ".join(parts)
