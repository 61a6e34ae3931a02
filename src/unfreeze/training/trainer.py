"""The training loop: batches, forward and backward pass, optimizer step, callbacks, checkpoints."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from unfreeze.checkpoints.state import save_last, save_state
from unfreeze.data.loading.loader import Batch, Loader, next_batch
from unfreeze.errors import Interrupted, UnfreezeError
from unfreeze.optim.optimizer import optimizer_for_network, set_lr
from unfreeze.runtime.console import Console
from unfreeze.runtime.device import autocast
from unfreeze.runtime.distributed import Distributed, error_of_lost
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.runtime.signals import STOPPED_ELSEWHERE, StopRequest, stop_requests
from unfreeze.runtime.step_timer import StepMeter, is_record_due
from unfreeze.runtime.time_limit import TimeLimit
from unfreeze.tasks.base import PretrainTask, Views
from unfreeze.training.callbacks import Action, Callback, Logs, SaveCheckpoint, StopTraining
from unfreeze.training.compute import ComputeContext
from unfreeze.training.nan_guard import NanGuard
from unfreeze.training.state import TrainState

CHECKPOINT_SECONDS = 300
C = TypeVar("C", bound=Callback)


@dataclass(frozen=True)
class TrainingPlan:
    """How a task is trained; `learning_rate` is a function of the global step.

    `describe(step)`: plain values about the run that every checkpoint contains. `resume_command`:
    the next step of an interrupted run.
    """

    epochs: int
    steps_per_epoch: int
    optimizer: str
    weight_decay: float
    learning_rate: Callable[[int], float]
    accumulate: int = 1  # micro-batches per step
    describe: Callable[[int], Mapping[str, Any]] = lambda step: {}
    resume_command: str = ""

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.epochs * self.steps_per_epoch


class Trainer:
    """Trains `task` on `loader`; everything that changes is in `state`.

    Data parallel: each process has a share of every batch, and the result equals that of a single
    process. Callbacks run after each step in their order.
    """

    def __init__(
        self,
        task: PretrainTask,
        plan: TrainingPlan,
        loader: Loader,
        run: RunFolder,
        compute: ComputeContext,
        *,
        processes: Distributed | None = None,
        callbacks: Sequence[Callback] = (),
        time_limit: TimeLimit | None = None,
    ) -> None:
        self.plan, self.loader, self.run, self.compute = plan, loader, run, compute
        self.processes = processes or Distributed()
        self.callbacks, self.time_limit = list(callbacks), time_limit or TimeLimit()
        channels_last = compute.layout == "channels_last" and compute.device.type in ("cpu", "cuda")
        memory_format = torch.channels_last if channels_last else None
        model = task.model.to(compute.device, memory_format=memory_format)  # type: ignore[call-overload]
        self.network: nn.Module = self.processes.wrapped(model)
        scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.precision == "fp16")
        optimizer = optimizer_for_network(
            plan.optimizer, model, lr=plan.learning_rate(0), weight_decay=plan.weight_decay
        )
        self.state = TrainState(
            task, optimizer, scaler, compute.device, plan.steps, plan.steps_per_epoch
        )
        self.meter, self.speed = StepMeter(self.processes.mean), ""
        self.saved = (-1, 0.0)  # step and time of the last checkpoint
        self.guard = NanGuard(
            task,
            optimizer,
            # the fp16 gradient scaler waits for the device at each step anyway
            prompt=compute.device.type != "cuda" or scaler.is_enabled(),
            loader=loader,
            run=run,
            processes=self.processes,
        )

    @property
    def task(self) -> PretrainTask:
        """The task that is trained."""
        return self.state.task

    @property
    def step(self) -> int:
        """Finished steps."""
        return self.state.step

    def callback(self, kind: type[C]) -> C | None:
        """The callback of this class, if there is one."""
        return next((c for c in self.callbacks if isinstance(c, kind)), None)

    def fit(self, console: Console) -> None:
        """Train from the current step to the last, saving checkpoints on the way and at the end.

        An unreadable file or a signal saves a checkpoint and ends the run with an error.
        """
        state = self.state
        self.guard.console, self.loader.warn = console, console.warn
        if state.steps:
            self.task.begin(self.loader, self.forward)
        else:
            self.save()
        for callback in self.callbacks:
            callback.on_start(state)
        self.saved = (state.step, time.monotonic())
        batches = self.loader.stream(state.step, state.steps)
        with (
            contextlib.closing(batches),  # ends the workers even while the error is referenced
            stop_requests() as stop,
            console.progress("pretrain", state.steps, state.step) as advance,
        ):
            self.meter.reset()
            while state.step < state.steps:
                batch = self.next_batch(batches, stop)
                self.meter.data_ready()
                loss = self.train_step(batch)
                self.guard.done(state.step, loss)
                state.step += 1
                self.meter.step_done(loss, len(batch.ids))
                logs = self.record(batch.epoch) if self.record_due else {}
                advance(1, self.progress_text())
                stop.at(self.time_limit, self.meter.last)
                for callback in self.callbacks:
                    self.act(callback.after_step(state, logs))
                self.meter.skip()  # callbacks do not count as waiting for data

    def train_step(self, batch: Batch) -> torch.Tensor:
        """One step: the loss, a scalar. Never waits for the device."""
        state, task = self.state, self.task
        set_lr(state.optimizer, self.plan.learning_rate(state.step))
        task.begin_step(state.step, batch.epoch)
        self.guard.begin()
        state.optimizer.zero_grad(set_to_none=True)
        parts = self.micro_batches(batch)
        shared = task.share(parts, batch, self.forward) if len(parts) > 1 else ()
        losses, forward = [], partial(self.forward, network=self.network)
        for k, views in enumerate(parts):
            with self.processes.no_sync_until_last(self.network, k + 1 == len(parts)):
                known = shared[k] if shared else None
                loss = task.training_step(views, batch, forward, known) / len(parts)
                state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        task.before_update(state.step)
        state.scaler.unscale_(state.optimizer)
        self.guard.update(lambda: state.scaler.step(state.optimizer))
        state.scaler.update()
        return torch.stack(losses).sum()

    def micro_batches(self, batch: Batch) -> list[Views]:
        """Split the batch for gradient accumulation; each micro-batch has all views."""
        split = [view.chunk(self.plan.accumulate) for view in batch.views]
        return [list(views) for views in zip(*split, strict=True)]

    def forward(self, views: Views, network: nn.Module | None = None) -> Any:
        """The network's output for uint8 views `[B, S, S, 3]`, in the run's precision."""
        dtype = next(self.task.model.parameters()).dtype
        inputs = [self.compute.network_input(view, dtype) for view in views]
        with autocast(self.compute.device, self.compute.precision):
            return (network or self.task.model)(inputs)

    def next_batch(self, batches: Iterator[Batch], stop: StopRequest) -> Batch:
        """The next batch; if one process must stop, all save a checkpoint and raise together."""
        # after a request to stop, no batch is needed
        batch, lost = (None, None) if stop else next_batch(batches, stop)
        late = time.monotonic() - self.saved[1] > CHECKPOINT_SECONDS or self.time_limit.unmeasured
        any_lost, stopped, any_late = self.processes.any([lost is not None, bool(stop), late])
        if (any_lost or stopped or any_late) and self.step != self.saved[0]:
            self.save()
        if batch is not None and not (any_lost or stopped):
            return batch
        raise self.reason_to_end(lost, any_lost, stop.name)

    def reason_to_end(
        self, lost: UnfreezeError | None, any_lost: bool, signal: str
    ) -> UnfreezeError:
        """The error that ends this process: its own reason, or that of another process."""
        if any_lost:
            return error_of_lost(self.processes, lost)
        by = signal or STOPPED_ELSEWHERE
        self.run.log(f"stopped by {by} after step {self.step}")
        return Interrupted(
            f"Stopped by {by} after step {self.step} of {self.state.steps}.",
            self.plan.resume_command,
        )

    def act(self, action: Action | None) -> None:
        """Do what a callback asks for."""
        if isinstance(action, SaveCheckpoint):
            self.save(action.name, last=action.last)
        elif isinstance(action, StopTraining):
            if self.saved[0] != self.step:
                self.save()
            raise action.error

    @property
    def record_due(self) -> bool:
        """Whether the last step gets a training record."""
        return is_record_due(self.step) or self.step == self.state.steps

    def record(self, epoch: int) -> Logs:
        """Write a training record and return it; raises DivergedError for a NaN or inf loss."""
        self.guard.read()
        state, steps = self.state, self.meter.steps
        numbers = self.meter.read()
        numbers["images_per_second"] *= self.processes.world
        state.loss = numbers["loss"]
        self.speed = (
            f"data {1000 * numbers['seconds_data']:.0f} ms  "
            f"step {1000 * numbers['seconds_step']:.0f} ms"
        )
        metrics = self.task.metrics()
        position = {"step": state.step, "epoch": epoch, "split": "train"}
        rounded = {name: float(f"{value:.6g}") for name, value in numbers.items()}
        rate = self.plan.learning_rate(state.step - 1)
        self.run.metric({**position, "learning_rate": rate, **metrics, **rounded})
        return {**metrics, **numbers, "steps": steps}

    def progress_text(self) -> str:
        """Text of the progress line: most important first, two spaces between optional parts."""
        epoch = -(-self.step // self.state.steps_per_epoch)
        loss = f"loss {self.state.loss:.3f}" if math.isfinite(self.state.loss) else ""
        parts = [f"epoch {epoch}/{self.plan.epochs}", loss]
        parts += [callback.progress for callback in self.callbacks]
        return "  ".join(part for part in (*parts, self.speed) if part)

    def save(self, name: str = "", *, last: bool = True) -> None:
        """Write checkpoints atomically: `name`, and `last.ckpt` with `last`. Collective.

        Raises DivergedError instead of writing one with a non-finite loss.
        """
        self.guard.read()
        with self.time_limit.timing("save"):
            state = self.state_dict()
            folder = self.run.file("checkpoints")

            def write() -> None:
                if name:
                    save_state(folder / name, state)
                if last:
                    save_last(folder, state)

            self.processes.on_rank_zero(write)
        if last:
            self.saved = (self.step, time.monotonic())

    def state_dict(self) -> dict[str, Any]:
        """The complete content of a checkpoint. Collective."""
        states = {c.key: c.state_dict() for c in self.callbacks if c.key}
        described = self.plan.describe(self.step)
        return {**described, **self.state.state_dict(self.processes), "callbacks": states}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`."""
        self.state.load_state_dict(state, self.processes)
        for callback in self.callbacks:
            if callback.key in state["callbacks"]:
                callback.load_state_dict(state["callbacks"][callback.key])
