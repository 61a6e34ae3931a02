"""The fine-tuning loop: train an epoch, validate, keep the best on disk; load it once at the end.

Every random number of a step follows from (seed, step), so a run that was interrupted and resumed
has the weights of one that was not, to the last bit on the same number of CPU threads.
"""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from unfreeze.checkpoints.state import load_state, save_last, save_state
from unfreeze.data.loader import Batch, Loader
from unfreeze.data.pictures import FileLost
from unfreeze.optim.make import decay_groups, make_optimizer, set_lr
from unfreeze.optim.schedules import schedule_lr
from unfreeze.runtime.console import Advance, Console
from unfreeze.runtime.deadline import Deadline
from unfreeze.runtime.devices import autocast
from unfreeze.runtime.meter import due
from unfreeze.runtime.runfolder import RunFolder
from unfreeze.runtime.signals import StopRequest, stop_requests
from unfreeze.transfer.evaluate import Scores
from unfreeze.transfer.freeze import FreezeSchedule, apply_freeze, fingerprint, standing
from unfreeze.transfer.keeper import Keeper
from unfreeze.transfer.meter import LabelMeter
from unfreeze.transfer.selection import Selection, score_of
from unfreeze.transfer.shortcut import Shortcut

SAVE_SECONDS = 300.0  # a checkpoint at least this often, inside long epochs too
SHORT_SECONDS = 30.0  # likewise where epochs take less than writing a checkpoint does
LAST, BEST = "checkpoints/last.ckpt", "checkpoints/best.ckpt"


@dataclass(frozen=True)
class Fit:
    """How to train: resolved values; `lr` is the rate after `warmup_epochs`."""

    epochs: int
    lr: float
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    warmup_epochs: int = 0
    patience: int = 0
    select: str = "accuracy"
    checkpoint_every: int | None = None  # None: 1, and with features kept each half minute
    precision: str = "fp32"
    seed: int = 0
    scales: Mapping[str, float] = field(default_factory=dict)  # parameter -> share of `lr`


@dataclass(frozen=True)
class Outcome:
    """What a run did; seconds and images are over all its starts, epochs count from 0."""

    epochs: int  # how many were finished
    best_epoch: int | None
    val_accuracy: float | None
    images: int
    seconds: float
    stopped: str  # "end", "early" (no better epoch within patience) or "asked" (from outside)
    asked_by: str = ""  # a signal, or --time-limit


def seed_step(seed: int, step: int, device: torch.device) -> None:
    """Dropout and the like follow from (seed, step): what torch.manual_seed sets, on `device`.

    That itself takes 1 ms a call while CUDA is not in use, longer than a step on features.
    """
    value = seed * 1_000_003 + step
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.manual_seed(value)
    elif device.type == "mps":
        torch.mps.manual_seed(value)


class Trainer:
    """Fits `network` to the batches of `loader`; all that moves is in `state()`.

    `prepare` turns a batch of uint8 [B, S, S, 3] on the network's device into its input;
    `validate` gives accuracy, correct, total and loss, or is None where no picture is held out;
    `keep` is plain data that belongs to the run and goes into every checkpoint; `keeper` gives
    the epochs that need no pictures their features.
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
        folder: RunFolder,
        keep: Mapping[str, Any],
        keeper: Keeper | None = None,
    ) -> None:
        self.network, self.loader, self.fit = network, loader, fit
        self.prepare, self.validate, self.freeze = prepare, validate, freeze
        self.folder, self.keep, self.keeper = folder, dict(keep), keeper
        self.device = next(network.parameters()).device
        # every parameter that any epoch trains is here from step 0: thawing changes no group
        named = [(n, p) for n, p in network.named_parameters() if n not in freeze.always]
        self.optimizer = make_optimizer(
            fit.optimizer,
            decay_groups(named, fit.weight_decay, fit.scales),
            lr=fit.lr,
            momentum=fit.momentum,
            weight_decay=fit.weight_decay,
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=fit.precision == "fp16")
        self.total = loader.steps_per_epoch * fit.epochs
        self.warmup = loader.steps_per_epoch * fit.warmup_epochs
        self.selection, self.meter = Selection(fit.patience), LabelMeter()
        self.step, self.images, self.seconds, self.line = 0, 0, 0.0, dict[str, float]()
        self.began = self.saved = time.monotonic()
        self.deadline = Deadline()
        self.shortcut: Shortcut | None = None
        self.frozen: frozenset[str] | None = None  # what was last made to stand still
        self.still: set[str] = set()  # entries of the state dict that do not change with it
        self.best: dict[str, Any] | None = None  # a state that is yet to be written

    def run(self, console: Console) -> Outcome:
        """Train to the end, to the end of patience or until asked to stop; the best is loaded."""
        self.began = self.saved = time.monotonic()
        devices = [self.device] if self.device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices),
            stop_requests() as stop,
            console.progress("finetune", self.total, self.step) as advance,
        ):
            try:
                while self.step < self.total and not self.selection.exhausted and not stop:
                    self._freeze(console, stop)
                    if stop:
                        break
                    self._train(stop, advance)
                    if self.step % self.loader.steps_per_epoch == 0:
                        self._close_epoch()
            except FileLost:
                self._save(LAST)
                raise
            if stop:
                self._save(LAST)
        self._load_best()
        return self._outcome(stop)

    def state(self) -> dict[str, Any]:
        """Plain values and tensors: everything that resuming needs, and what the run is."""
        return {
            "step": self.step,
            "epoch": self.step // self.loader.steps_per_epoch,
            "loss": self.line.get("loss"),
            "metrics": {"val_accuracy": self._accuracy()},
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "selection": self.selection.state(),
            "images": self.images,
            "seconds": self.seconds + time.monotonic() - self.began,
            **self.keep,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state()` was taken."""
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.selection = Selection(**{**state["selection"], "patience": self.fit.patience})
        self.step, self.images, self.seconds = state["step"], state["images"], state["seconds"]

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
            if self.best is not None:
                self._save(LAST)  # while what the best left out is still as it was
            apply_freeze(self.network, frozen)
            self.frozen, self.still = frozen, standing(self.network, frozen)
            self.shortcut = None
        if self.keeper is not None:

            def asked() -> bool:
                stop.at(self.deadline, 0.0)
                return bool(stop)

            self.shortcut = self.keeper.at(epoch, console, asked)

    def _train(self, stop: StopRequest, advance: Advance) -> None:
        """The rest of the current epoch, or what of it comes before a request to stop."""
        epoch, start = divmod(self.step, self.loader.steps_per_epoch)
        self.network.train()
        self.meter.reset()
        for batch in (self.shortcut or self.loader).epoch(epoch, start):
            self.meter.data_ready()
            self._step(batch)
            stop.at(self.deadline, self.meter.last)
            late = time.monotonic() - self.saved > SAVE_SECONDS or self.deadline.unmeasured
            if due(self.step) or late:
                self._write_line(epoch)
            if late:
                self._save(LAST)
            advance(1, self._text())
            if stop:
                break
        self._write_line(epoch)

    def _step(self, batch: Batch) -> None:
        fit = self.fit
        seed_step(fit.seed, self.step, self.device)
        set_lr(self.optimizer, self._lr(self.step))
        labels = batch.labels.to(self.device, non_blocking=True)
        with autocast(self.device, fit.precision):
            logits = self._logits(batch)
        loss = functional.cross_entropy(logits.float(), labels)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        self.images += len(labels)
        self.meter.add(self.step, loss, logits, labels)

    def _logits(self, batch: Batch) -> Tensor:
        if self.shortcut is not None:
            return self.shortcut.logits(batch)
        pictures = batch.views[0].to(self.device, non_blocking=True)
        logits: Tensor = self.network(self.prepare(pictures))
        return logits

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
            shortcut = self.shortcut
            with self.deadline.timing("validation"):
                found = dict(shortcut.record(self.network) if shortcut else self.validate())
            self.folder.metric({"step": self.step, "epoch": done - 1, "split": "val", **found})
            score = score_of(found, self.fit.select)
            if self.selection.update(done - 1, found["accuracy"], found["loss"], score):
                self._keep_best()
        ended = self.step == self.total or self.selection.exhausted
        if ended or self._due(done):
            self._save(LAST)

    def _due(self, done: int) -> bool:
        """Whether a checkpoint is written after epoch `done` (counted from 1)."""
        if self.fit.checkpoint_every is not None:
            return done % self.fit.checkpoint_every == 0
        return self.shortcut is None or time.monotonic() - self.saved > SHORT_SECONDS

    def _keep_best(self) -> None:
        """On disk at once; from features in memory, until the next checkpoint is written."""
        if self.shortcut is None:
            return self._save(BEST)
        state = self.state()
        state["model"] = {
            name: value if name in self.still else value.clone()
            for name, value in state["model"].items()
        }
        self.best = {**state, "optimizer": copy.deepcopy(state["optimizer"])}

    def _save(self, name: str) -> None:
        with self.deadline.timing("save"):
            if name == LAST and self.best is not None:
                # first, so that whoever goes on from the last has the best that it speaks of
                save_state(self.folder.file(BEST), self.best)
                self.best = None
            if name == LAST:
                save_last(self.folder.file(name).parent, self.state())
            else:
                save_state(self.folder.file(name), self.state())
        self.saved = time.monotonic()

    def _load_best(self) -> None:
        """The only place where earlier weights replace later ones: after the loop, once."""
        if self.selection.epoch is None:
            return
        best = load_state(self.folder.file(BEST))
        self.network.load_state_dict(best["model"])
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
            stopped="asked" if stop and self.step < self.total else ended,
            asked_by=stop.name,
        )

    def _accuracy(self) -> float | None:
        return self.selection.accuracy if self.selection.epoch is not None else None

    def _text(self) -> str:
        line = self.line
        if not line:
            return ""
        data, step = line["seconds_data"] * 1000, line["seconds_step"] * 1000
        best = (
            f"  best val {self.selection.accuracy:.3f}" if self.selection.epoch is not None else ""
        )
        return f"loss {line['loss']:.3f}  data {data:.0f} ms  step {step:.0f} ms{best}"
