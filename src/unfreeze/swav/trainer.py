"""The pretraining loop: multi-crop batches in, prototypes and codes, swapped prediction."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from unfreeze.checkpoints.state import save_state
from unfreeze.data.loader import Batch, Loader
from unfreeze.data.views import normalise
from unfreeze.errors import (
    DataError,
    DivergedError,
    Interrupted,
    UsageError,
    WeightsError,
    go_on,
)
from unfreeze.optim.make import decay_groups, make_optimizer, set_lr
from unfreeze.optim.schedules import warmup_cosine
from unfreeze.runtime.console import Console
from unfreeze.runtime.deadline import Deadline
from unfreeze.runtime.devices import autocast
from unfreeze.runtime.meter import Meter, due
from unfreeze.runtime.runfolder import RunFolder
from unfreeze.runtime.signals import stop_requests
from unfreeze.settings.build import as_dict
from unfreeze.settings.knob import flag
from unfreeze.settings.pretrain import PretrainSettings
from unfreeze.swav.bank import Bank
from unfreeze.swav.loss import swapped_prediction_loss
from unfreeze.swav.model import SwAV
from unfreeze.swav.recipe import Plan
from unfreeze.swav.sinkhorn import sinkhorn

CHECKPOINT_SECONDS = 300
MAY_CHANGE = (
    "data",
    "data_root",
    "device",
    "workers",
    "scan",
    "store_budget",
    "checkpoint_every",
    "keep_every",
    "logger",
)


@dataclass(frozen=True)
class Place:
    """Where the arithmetic happens."""

    device: torch.device
    precision: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


OnEpoch = Callable[["Trainer", int], None]  # told how many epochs are done


class Trainer:
    """Holds what a checkpoint holds: model, optimizer, bank, scaler and the step."""

    def __init__(
        self, model: SwAV, plan: Plan, loader: Loader, run: RunFolder, place: Place
    ) -> None:
        self.plan, self.loader, self.run, self.place = plan, loader, run, place
        self.s: PretrainSettings = plan.settings
        layout = torch.channels_last if place.device.type in ("cpu", "cuda") else None
        self.model = model.to(place.device, memory_format=layout)  # type: ignore[call-overload]
        self.optimizer = _optimizer(model, self.s)
        self.scaler = torch.amp.GradScaler(place.device.type, enabled=place.precision == "fp16")
        self.bank: Bank | None = None
        self.step = 0
        self.fingerprint = ""  # of the data, so that a resumed run meets the same
        self.loss = math.nan  # mean over the steps of the last record
        self.meter, self.line = Meter(), ""
        self.deadline = Deadline()

    def fit(self, console: Console, on_epoch: OnEpoch | None = None) -> None:
        """Train from the current step to the plan's last, saving on the way and at the end.

        `on_epoch` is called when an epoch has ended and what was due is saved.
        """
        total = self.plan.steps
        if not total:
            self.save()  # the untrained start is a start to go on from too
        self.tell(on_epoch)  # once more after a resume: the last call may have been cut short
        saved = time.monotonic()
        with stop_requests() as stop, console.progress("pretrain", total, self.step) as advance:
            self.meter.reset()
            for batch in self.loader.stream(self.step, total):
                self.meter.data_ready()
                loss, codes = self.train_step(batch)
                self.step += 1
                self.meter.step_done(loss, len(batch.ids))
                if due(self.step) or self.step == total:
                    self.record(batch.epoch, codes)
                advance(1, self.line)
                stop.at(self.deadline, self.meter.last)
                if self.saves(saved) or stop or self.deadline.unmeasured:
                    with self.deadline.timing("save"):
                        self.save()
                    saved = time.monotonic()
                self.tell(on_epoch)
                if stop and self.step < total:
                    self.run.log(f"stopped by {stop.name} after step {self.step}")
                    raise Interrupted(
                        f"Stopped by {stop.name} after step {self.step} of {total}.",
                        go_on("pretrain", self.s.data, self.run.path),
                    )

    def tell(self, on_epoch: OnEpoch | None) -> None:
        """Call `on_epoch` where the last step ended an epoch."""
        done, rest = divmod(self.step, self.plan.steps_per_epoch)
        if on_epoch is not None and done and not rest:
            on_epoch(self, done)

    def train_step(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """One update; (loss, codes of the first assigned view). Nothing waits for the device."""
        set_lr(self.optimizer, self.learning_rate(self.step))
        self.model.normalise_prototypes()
        views = [
            normalise(
                view.to(self.place.device, non_blocking=True), self.place.mean, self.place.std
            )
            for view in batch.views
        ]
        with autocast(self.place.device, self.place.precision):
            Z, scores = self.model(views)
        features, by_view = Z.detach().chunk(len(views)), scores.chunk(len(views))
        codes = self.assign(features, by_view, batch.epoch)
        loss = swapped_prediction_loss(
            by_view, codes, self.s.crops_for_assign, temperature=self.s.temperature
        )
        self.update(loss)
        return loss.detach(), codes[0]

    @torch.no_grad()
    def assign(
        self, features: Sequence[torch.Tensor], scores: Sequence[torch.Tensor], epoch: int
    ) -> list[torch.Tensor]:
        """Codes `[B, K]` for each assigned view; a full bank enlarges the batch they come from."""
        assigned = self.s.crops_for_assign
        bank = self.opened_bank(epoch, len(features[0]))
        codes = []
        for place, i in enumerate(assigned):
            C = scores[i].detach()
            B = len(C)
            if bank is not None and bank.full:
                C = torch.cat([C, self.model.scores(bank.features[place])])
            Q = sinkhorn(C, epsilon=self.s.epsilon, iterations=self.s.sinkhorn_iterations)
            codes.append(Q[:B])
        if bank is not None:
            bank.push([features[i] for i in assigned])
        return codes

    def opened_bank(self, epoch: int, batch: int) -> Bank | None:
        """The bank once its epoch has come; None before, or where there is none."""
        length = (self.s.queue_length or 0) // self.loader.world
        if self.bank is None and length and epoch >= (self.s.epoch_queue_starts or 0):
            self.bank = Bank(len(self.s.crops_for_assign), length, self.s.feat_dim)
            self.bank.to(self.place.device)
        return self.bank

    def update(self, loss: torch.Tensor) -> None:
        """Backward and one optimizer step; prototypes stand still while they are frozen."""
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self.step < (self.s.freeze_prototypes_niters or 0):
            self.model.prototypes.weight.grad = None  # no step, no decay, no momentum
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def learning_rate(self, step: int) -> float:
        """The learning rate of a global step."""
        return warmup_cosine(
            step,
            total=self.plan.steps,
            warmup=self.plan.warmup_steps,
            base=self.s.base_lr or 0.0,
            final=self.s.final_lr or 0.0,
            start=self.s.start_warmup or 0.0,
        )

    def record(self, epoch: int, codes: torch.Tensor) -> None:
        """Write a training line; DivergedError where the loss stopped being a number."""
        first = self.step - self.meter.steps + 1
        numbers = self.meter.read()
        self.loss = numbers["loss"]
        if not math.isfinite(self.loss):
            raise DivergedError(
                f"The loss became {self.loss} within steps {first} to {self.step}.",
                "The last checkpoint is whole. Lower --base-lr, or use --precision fp32.",
            )
        self.line = (
            f"loss {self.loss:.3f}  data {1000 * numbers['seconds_data']:.0f} ms  "
            f"step {1000 * numbers['seconds_step']:.0f} ms"
        )
        usage = codes.mean(0)
        used = torch.exp(-(usage * usage.clamp_min(1e-12).log()).sum())
        self.run.metric(
            {
                "step": self.step,
                "epoch": epoch,
                "split": "train",
                "learning_rate": self.learning_rate(self.step - 1),
                "prototypes_used": round(float(used), 2),
                **{name: float(f"{value:.6g}") for name, value in numbers.items()},
            }
        )

    def saves(self, saved: float) -> bool:
        """Whether a checkpoint is due: each so many epochs, each five minutes, and at the end."""
        epochs, rest = divmod(self.step, self.plan.steps_per_epoch)
        every = (self.s.checkpoint_every, self.s.keep_every)
        on_epoch = rest == 0 and any(n and epochs % n == 0 for n in every)
        late = time.monotonic() - saved > CHECKPOINT_SECONDS
        return on_epoch or late or self.step == self.plan.steps

    def save(self) -> None:
        """Write checkpoints/last.ckpt, whole or not at all; never one with a broken loss."""
        if self.meter.loss is not None and not bool(torch.isfinite(self.meter.loss)):
            raise DivergedError(
                f"The loss is no longer finite at step {self.step}; nothing was overwritten.",
                "Go on from the last checkpoint with a lower --base-lr, or --precision fp32.",
            )
        save_state(self.run.file("checkpoints/last.ckpt"), self.state())
        done, rest = divmod(self.step, self.plan.steps_per_epoch)
        if done and rest == 0 and self.s.keep_every and done % self.s.keep_every == 0:
            name = f"checkpoints/epoch-{done:04d}_loss-{self.loss:.3f}.ckpt"
            save_state(self.run.file(name), self.state())

    def state(self) -> dict[str, Any]:
        """Everything to go on from here."""
        return {
            "kind": "pretrain",
            "step": self.step,
            "epoch": self.step // self.plan.steps_per_epoch,  # finished ones
            "loss": self.loss,
            "metrics": {"loss": self.loss},
            "settings": as_dict(self.s),
            "data": self.fingerprint,
            "images": len(self.loader.positions),
            "threads": torch.get_num_threads(),
            "rng": torch.get_rng_state(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "bank": self.bank.state_dict() if self.bank is not None else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` left; UsageError where settings or data are other ones."""
        _same_run(state, self)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.loss = state["step"], state["loss"]
        torch.set_rng_state(state["rng"])
        if state["bank"] is not None:
            self.bank = Bank(*state["bank"]["features"].shape).to(self.place.device)
            self.bank.load_state_dict(state["bank"])


def _same_run(state: dict[str, Any], trainer: Trainer) -> None:
    if state.get("kind") != "pretrain":
        raise WeightsError(
            "That checkpoint is not one of a pretraining run.", "Name another --out."
        )
    if (state["data"], state["images"]) != (trainer.fingerprint, len(trainer.loader.positions)):
        raise DataError(
            f"The data changed since the checkpoint: {state['images']:,} pictures then, "
            f"{len(trainer.loader.positions):,} now.",
            "Bring the files back, or start a new run (--init takes this one's weights).",
        )
    old, new = state["settings"], as_dict(trainer.s)
    changed = [n for n in new if n not in MAY_CHANGE and old.get(n) != new[n]]
    if changed:
        shown = ", ".join(f"{flag(n)} {old.get(n)} -> {new[n]}" for n in changed)
        raise UsageError(
            f"A resumed run keeps its settings, but these differ: {shown}.",
            f"Leave them out, or start anew. Free to change: {', '.join(map(flag, MAY_CHANGE))}.",
        )


def _optimizer(model: SwAV, s: PretrainSettings) -> torch.optim.Optimizer:
    name, decay = s.optimizer or "larc", s.wd or 0.0
    # the published recipe decays every tensor alike; AdamW's decay is meant for matrices
    groups: Any = model.parameters()
    if name == "adamw":
        groups = decay_groups(model.named_parameters(), decay)
    return make_optimizer(name, groups, lr=s.base_lr or 0.0, weight_decay=decay)
