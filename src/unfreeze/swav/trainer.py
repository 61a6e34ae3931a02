"""The pretraining loop: multi-crop batches, codes, swapped prediction, optimizer step."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from unfreeze.checkpoints.state import save_last, save_state
from unfreeze.config.pretrain import PretrainSettings
from unfreeze.data.loading.loader import Batch, Loader, next_batch
from unfreeze.errors import Interrupted, UnfreezeError, resume_command
from unfreeze.models.norm import frozen_running_statistics
from unfreeze.optim.optimizer import optimizer_for_network, set_lr
from unfreeze.runtime.console import Console
from unfreeze.runtime.device import autocast
from unfreeze.runtime.distributed import Distributed, error_of_lost
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.runtime.signals import STOPPED_ELSEWHERE, StopRequest, stop_requests
from unfreeze.runtime.step_timer import StepMeter, is_record_due
from unfreeze.runtime.time_limit import TimeLimit
from unfreeze.swav.assignment import Assignment, SinkhornAssignment
from unfreeze.swav.auto_recipe import PretrainRecipe
from unfreeze.swav.collapse_detector import (
    Collapse,
    CollapseDetector,
    link_healthy_checkpoint,
    raise_if_collapsed,
)
from unfreeze.swav.deepcluster_v2 import ClusterAssignment
from unfreeze.swav.device_context import ComputeContext
from unfreeze.swav.feature_evaluation import FeatureEvaluator
from unfreeze.swav.metrics import code_entropy, perplexity
from unfreeze.swav.model import SwAV
from unfreeze.swav.nan_guard import NanGuard
from unfreeze.swav.queue import FeatureQueue
from unfreeze.swav.train_state import load_training_state, training_state

CHECKPOINT_SECONDS = 300
Views = list[torch.Tensor]


OnEpoch = Callable[["PretrainTrainer", int], None]  # called with the number of finished epochs


class PretrainTrainer:
    """Owns the state of a checkpoint: model, optimizer, queue, gradient scaler and step.

    Data parallel: each process has a share of every batch. Codes, synchronised batch norm and
    gradients are those of the complete batch, so the result equals that of a single process.
    """

    def __init__(
        self,
        model: SwAV,
        plan: PretrainRecipe,
        loader: Loader,
        run: RunFolder,
        place: ComputeContext,
        processes: Distributed | None = None,
    ) -> None:
        self.plan, self.loader, self.run, self.place = plan, loader, run, place
        self.processes = processes or Distributed()
        self.watch = FeatureEvaluator(None, 0)
        self.guard = CollapseDetector.of(plan)
        self.verdict: Collapse | None = None  # a collapse that is not handled yet
        self.s: PretrainSettings = plan.settings
        channels_last = place.layout == "channels_last" and place.device.type in ("cpu", "cuda")
        memory_format = torch.channels_last if channels_last else None
        self.model = model.to(place.device, memory_format=memory_format)  # type: ignore[call-overload]
        self.network = self.processes.wrapped(self.model)
        self.optimizer = optimizer_for_network(
            self.s.optimizer or "larc",
            model,
            lr=self.s.base_lr or 0.0,
            weight_decay=self.s.wd or 0.0,
        )
        self.scaler = torch.amp.GradScaler(place.device.type, enabled=place.precision == "fp16")
        self.assigner = self.method()
        self.step = 0
        self.fingerprint = ""  # of the dataset, compared on resume
        self.loss = math.nan  # mean over the steps of the last training record
        self.meter, self.line = StepMeter(self.processes.mean), ""
        self.saved = (-1, 0.0)  # step and time of the last checkpoint
        self.deadline = TimeLimit()
        self.finite = NanGuard(
            self.model,
            self.optimizer,
            self.assigner,
            # the fp16 gradient scaler waits for the device at each step anyway
            prompt=place.device.type != "cuda" or self.scaler.is_enabled(),
            loader=loader,
            run=run,
            processes=self.processes,
        )
        self.recoveries: list[dict[str, Any]] = []  # from collapses, as in `collapse.recovery`

    def method(self) -> Assignment:
        """The assignment method of `--method`."""
        if self.s.method == "deepcluster-v2":
            return ClusterAssignment(self.s, self.loader.positions, self.processes)
        return SinkhornAssignment.of(self.s, self.loader.world)

    @property
    def bank(self) -> FeatureQueue | None:
        """The queue's rows on this process; None before it exists."""
        return self.assigner.bank

    def fit(self, console: Console, on_epoch: OnEpoch | None = None) -> None:
        """Train from the current step to the last, saving checkpoints on the way and at the end.

        `on_epoch` is called after each epoch and its checkpoint. An unreadable file or a signal
        saves a checkpoint and ends the run with an error.
        """
        total, self.finite.console = self.plan.steps, console
        self.loader.warn = console.warn
        self.watch.begin(self)
        self.assigner.begin(self)
        if not total or (not self.step and self.s.on_collapse == "recover"):
            self.save()  # a recovery may restart from the untrained start
        self.tell(on_epoch)  # again after a resume: the last call may have been interrupted
        self.saved = (self.step, time.monotonic())
        batches = self.loader.stream(self.step, total)
        with (
            contextlib.closing(batches),  # ends the workers even while the error is referenced
            stop_requests() as stop,
            console.progress("pretrain", total, self.step) as advance,
        ):
            self.meter.reset()
            while self.step < total:
                batch = self.fetch(batches, stop)
                self.meter.data_ready()
                loss, codes = self.train_step(batch)
                self.finite.done(self.step, loss)
                self.step += 1
                self.meter.step_done(loss, len(batch.ids))
                if is_record_due(self.step) or self.step == total:
                    self.record(batch.epoch, codes)
                advance(1, self.text())
                stop.at(self.deadline, self.meter.last)
                self.watch.after_step(self)
                if self.ends_interval():
                    self.save()
                raise_if_collapsed(self)
                self.tell(on_epoch)

    def fetch(self, batches: Iterator[Batch], stop: StopRequest) -> Batch:
        """The next batch; if one process must stop, all raise here together."""
        # after a request to stop, no batch is needed
        batch, lost = (None, None) if stop else next_batch(batches, stop)
        late = time.monotonic() - self.saved[1] > CHECKPOINT_SECONDS or self.deadline.unmeasured
        any_lost, stopped, any_late = self.processes.any([lost is not None, bool(stop), late])
        if (any_lost or stopped or any_late) and self.step != self.saved[0]:
            self.save()
        if batch is not None and not (any_lost or stopped):
            return batch
        raise self.leaving(lost, any_lost, stop.name)

    def leaving(self, lost: UnfreezeError | None, any_lost: bool, signal: str) -> UnfreezeError:
        """The error that ends this process: its own reason, or that of another process."""
        if any_lost:
            return error_of_lost(self.processes, lost)
        by = signal or STOPPED_ELSEWHERE
        self.run.log(f"stopped by {by} after step {self.step}")
        return Interrupted(
            f"Stopped by {by} after step {self.step} of {self.plan.steps}.",
            resume_command("pretrain", self.s.data, self.run.path),
        )

    def tell(self, on_epoch: OnEpoch | None) -> None:
        """Call `on_epoch` on rank 0 if the last step ended an epoch."""
        done, rest = divmod(self.step, self.plan.steps_per_epoch)
        if on_epoch is not None and done and not rest:
            self.processes.leads(lambda: on_epoch(self, done))

    def train_step(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """One step: (loss, codes of the first assigned view). Never waits for the device."""
        set_lr(self.optimizer, self.learning_rate(self.step))
        self.assigner.turn(self, batch.epoch)
        self.finite.begin()
        self.model.normalise_prototypes()
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.parts(batch)
        codes = self.look_ahead(parts, batch) if len(parts) > 1 else []
        losses = []
        for k, views in enumerate(parts):
            with self.processes.alone_until_last(self.network, k + 1 == len(parts)):
                Z, by_view = self.seen(self.network, views)
                if not codes:
                    codes = self.assign(Z, by_view, batch)
                loss = self.assigner.loss(by_view, _part(codes, k, len(parts))) / len(parts)
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        self.update()
        return torch.stack(losses).sum(), codes[0]

    def parts(self, batch: Batch) -> list[Views]:
        """Split the batch into micro-batches for gradient accumulation, each with all views."""
        k = self.s.accumulate
        split = [view.chunk(k) for view in batch.views]
        return [list(views) for views in zip(*split, strict=True)]

    def seen(self, network: torch.nn.Module, views: Views) -> tuple[Views, Views]:
        """Forward pass: unit features `[B, d]`, detached, and scores `[B, K]` of each view."""
        dtype = self.model.prototypes.weight.dtype
        inputs = [self.place.takes(view, dtype) for view in views]
        with autocast(self.place.device, self.place.precision):
            Z, scores = network(inputs)
        return list(Z.detach().chunk(len(views))), list(scores.chunk(len(views)))

    @torch.no_grad()
    def look_ahead(self, parts: list[Views], batch: Batch) -> list[torch.Tensor]:
        """Codes of the complete batch, before its micro-batches are trained on.

        A first pass without gradients, as in gradient caching; running statistics do not change.
        """
        with frozen_running_statistics(self.model):
            passes = [self.seen(self.model, views) for views in parts]
        features, scores = zip(*passes, strict=True)
        joined = [torch.cat(same) for same in zip(*features, strict=True)]
        return self.assign(joined, [torch.cat(same) for same in zip(*scores, strict=True)], batch)

    def assign(
        self, features: Sequence[torch.Tensor], scores: Sequence[torch.Tensor], batch: Batch
    ) -> list[torch.Tensor]:
        """Codes `[B, K]` for each assigned view of this process's share."""
        return self.assigner.codes(features, scores, self.model.scores, batch)

    def update(self) -> None:
        """Optimizer step, skipped for non-finite gradients; prototypes may be frozen."""
        if self.step < (self.s.freeze_prototypes_niters or 0):
            self.model.prototypes.weight.grad = None  # no step, no decay, no momentum
        self.scaler.unscale_(self.optimizer)
        self.finite.update(lambda: self.scaler.step(self.optimizer))
        self.scaler.update()

    def learning_rate(self, step: int) -> float:
        """The learning rate of a global step."""
        return self.plan.learning_rate(step)

    def record(self, epoch: int, codes: torch.Tensor) -> None:
        """Write a training record; raises DivergedError for a NaN or inf loss."""
        self.finite.read()
        steps = self.meter.steps
        numbers = self.meter.read()
        numbers["images_per_second"] *= self.processes.world
        self.loss = numbers["loss"]
        self.line = (
            f"data {1000 * numbers['seconds_data']:.0f} ms  "
            f"step {1000 * numbers['seconds_step']:.0f} ms"
        )
        used = perplexity(self.processes.mean(codes.mean(0)))
        entropy = float(self.processes.mean(code_entropy(codes)))
        self.verdict = self.guard.record(self.step, steps, self.loss, entropy)
        self.run.metric(
            {
                "step": self.step,
                "epoch": epoch,
                "split": "train",
                "learning_rate": self.learning_rate(self.step - 1),
                "prototypes_used": round(used, 2),
                "code_entropy": round(entropy, 6),
                **{name: float(f"{value:.6g}") for name, value in numbers.items()},
            }
        )

    def text(self) -> str:
        """Progress text: most important first, two spaces between optional parts."""
        epoch = -(-self.step // self.plan.steps_per_epoch)
        loss = f"loss {self.loss:.3f}" if math.isfinite(self.loss) else ""
        parts = (f"epoch {epoch}/{self.s.epochs}", loss, self.watch.said, self.line)
        return "  ".join(part for part in parts if part)

    def ends_interval(self) -> bool:
        """Whether a checkpoint is due: --checkpoint-every, --keep-every, or the end of the run."""
        epochs, rest = divmod(self.step, self.plan.steps_per_epoch)
        every = (self.s.checkpoint_every, self.s.keep_every)
        return self.step == self.plan.steps or (
            rest == 0 and any(n and epochs % n == 0 for n in every)
        )

    def save(self) -> None:
        """Write checkpoints/last.ckpt atomically; never one with a non-finite loss."""
        self.finite.read()
        with self.deadline.timing("save"):
            state = training_state(self)
            self.processes.leads(lambda: self.write(state))
        self.saved = (self.step, time.monotonic())

    def write(self, state: dict[str, Any]) -> None:
        """Write last.ckpt and, if --keep-every is due, a numbered checkpoint."""
        save_last(self.run.file("checkpoints"), state)
        link_healthy_checkpoint(self)
        done, rest = divmod(self.step, self.plan.steps_per_epoch)
        if done and rest == 0 and self.s.keep_every and done % self.s.keep_every == 0:
            name = f"checkpoints/epoch-{done:04d}_loss-{self.loss:.3f}.ckpt"
            save_state(self.run.file(name), state)

    def restore(self, state: dict[str, Any]) -> list[str]:
        """Load a checkpoint's state; returns notes for people. Raises as `load_training_state`."""
        return load_training_state(self, state)


def _part(codes: list[torch.Tensor], k: int, parts: int) -> list[torch.Tensor]:
    return [Q.chunk(parts)[k] for Q in codes]
