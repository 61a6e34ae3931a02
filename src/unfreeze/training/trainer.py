"""The training loop: batches, forward and backward pass, optimizer step, callbacks, checkpoints."""

import contextlib
import copy
import math
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from unfreeze.checkpoints.state import save_last, save_state
from unfreeze.data.loading.loader import Batch, Loader, next_batch
from unfreeze.errors import Interrupted, UnfreezeError
from unfreeze.optim.optimizer import set_lr
from unfreeze.runtime.console import Console
from unfreeze.runtime.device import autocast
from unfreeze.runtime.distributed import Distributed, error_of_lost
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.runtime.signals import STOPPED_ELSEWHERE, StopRequest, stop_requests
from unfreeze.runtime.time_limit import TimeLimit
from unfreeze.tasks.base import PretrainTask, Task, Views
from unfreeze.training.callbacks import (
    Action,
    BatchSource,
    Callback,
    Logs,
    SaveCheckpoint,
    StopTraining,
)
from unfreeze.training.compute import ComputeContext
from unfreeze.training.ema import WeightAverage
from unfreeze.training.frozen_backbone import FrozenBackbone
from unfreeze.training.nan_guard import LossCheck, NanGuard
from unfreeze.training.state import TrainState
from unfreeze.training.step_timer import StepMeter, is_record_due

CHECKPOINT_SECONDS = 300
C = TypeVar("C", bound=Callback)


@dataclass(frozen=True)
class TrainingPlan:
    """How a task is trained; `learning_rate` is a function of the global step.

    `optimizer(model)`: the optimizer of a model on its device. `describe(step)`: plain values about
    the run that every checkpoint contains. `resume_command`: the next step of an interrupted run.
    """

    command: str  # pretrain or finetune
    epochs: int
    steps_per_epoch: int
    optimizer: Callable[[nn.Module], Optimizer]
    learning_rate: Callable[[int], float]
    accumulate: int = 1  # micro-batches per step
    freeze_backbone_steps: int = 0  # a pretraining method trains its head alone for so long
    freeze_bn_statistics: bool = False  # of the backbone, in pretraining
    clip_grad: float = 0.0  # largest norm of the gradient; 0: no clipping
    ema: float = 0.0  # decay of the EMA of the weights; 0: none
    skip_bad_steps: bool = True  # with NaN or inf gradients; False: only the loss is checked
    record_epochs: bool = False  # a training record at the end of each epoch
    remedy: str = ""  # next step after a NaN or inf loss, without `skip_bad_steps`
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
        task: Task,
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
        self.network: nn.Module = model if task.adds_losses else self.processes.wrapped(model)
        self.over = self.processes.sum if task.adds_losses else self.processes.mean
        scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.precision == "fp16")
        optimizer = plan.optimizer(model)
        self.parameters = list(model.parameters())
        average = WeightAverage(model, plan.ema) if plan.ema else None
        self.state = TrainState(
            task, optimizer, scaler, compute.device, plan.steps, plan.steps_per_epoch,
            average=average,
        )  # fmt: skip
        self.meter, self.speed = StepMeter(self.over), ""
        self.saved = (-1, 0.0)  # step and time of the last checkpoint
        self.deferred: dict[str, dict[str, Any]] = {}  # checkpoints to write with the next last one
        self.ended, self.started = False, time.monotonic()
        self.guard = self._guard()

    def _guard(self) -> LossCheck:
        state = self.state
        if not self.plan.skip_bad_steps:
            return LossCheck(self.over, self.plan.remedy)
        return NanGuard(
            state.task,
            state.optimizer,
            # the fp16 gradient scaler waits for the device at each step anyway
            prompt=state.device.type != "cuda" or state.scaler.is_enabled(),
            loader=self.loader,
            run=self.run,
            processes=self.processes,
        )

    @property
    def task(self) -> Task:
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
        self.started = time.monotonic()
        self.saved = (self.saved[0], self.started)
        for callback in self.callbacks:
            self.act(callback.on_start(state))
        with (
            stop_requests() as stop,
            contextlib.closing(self.batches(console, stop)) as batches,  # ends the workers
            console.progress(self.plan.command, state.steps, state.step) as advance,
        ):
            self.meter.reset()
            while state.step < state.steps and not self.ended:
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
        self.begin_step(batch.epoch)
        self.guard.begin()
        state.optimizer.zero_grad(set_to_none=True)
        parts = task.split_batch(batch, self.plan.accumulate, self.forward)
        losses, forward = [], partial(self.forward, network=self.network)
        for k, part in enumerate(parts):
            last = k + 1 == len(parts) or task.adds_losses  # then nothing is synchronised
            with self.processes.no_sync_until_last(self.network, last):
                loss = task.part_loss(part, forward)
                state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        if task.adds_losses:
            self.processes.all_reduce([p.grad for p in self.parameters if p.grad is not None])
        self.before_update()
        state.scaler.unscale_(state.optimizer)
        if self.plan.clip_grad:
            nn.utils.clip_grad_norm_(self.parameters, self.plan.clip_grad)
        self.guard.update(lambda: state.scaler.step(state.optimizer))
        state.scaler.update()
        if state.average:
            state.average.update(state.model, state.step + 1)
        return torch.stack(losses).sum()

    def begin_step(self, epoch: int) -> None:
        """What is done before a step."""
        self.task.begin_step(self.step, epoch)

    def before_update(self) -> None:
        """What is done with gradients before the optimizer's step."""
        self.task.before_update(self.step)

    def batches(self, console: Console, stop: StopRequest) -> Generator[Batch]:
        """The remaining batches; before each epoch, callbacks may choose another source of them."""
        state, source, stream = self.state, None, None

        def should_stop() -> bool:
            stop.at(self.time_limit, 0.0)
            return bool(stop)

        try:
            while state.step < state.steps:
                chosen: BatchSource = self.loader
                for callback in self.callbacks:
                    chosen = callback.before_epoch(state, console, should_stop) or chosen
                if stop:
                    return
                self.meter.skip()  # what callbacks prepare does not count as waiting for data
                if stream is None or chosen is not source:
                    if stream is not None:
                        stream.close()
                    source, stream = chosen, chosen.stream(state.step, state.steps)
                for _ in range(state.steps_per_epoch - state.step % state.steps_per_epoch):
                    yield next(stream)
        finally:
            if stream is not None:
                stream.close()

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
        due = any_lost or stopped or (any_late and self.step > 0)
        if due and self.step != self.saved[0]:
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
            age = time.monotonic() - self.saved[1]
            if not action.interval or self.processes.any([age > action.interval])[0]:
                self.save(action.name, last=action.last, deferred=action.deferred)
        elif action is not None:
            if self.saved[0] != self.step:
                self.save()
            if isinstance(action, StopTraining):
                raise action.error
            self.ended = True

    @property
    def record_due(self) -> bool:
        """Whether the last step gets a training record."""
        epoch_ends = self.plan.record_epochs and self.state.ends_epoch
        return is_record_due(self.step) or epoch_ends or self.step == self.state.steps

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

    def save(
        self, name: str = "", *, last: bool = True, deferred: Collection[str] | None = None
    ) -> None:
        """Write checkpoints atomically: `name`, and `last.ckpt` with `last`. Collective.

        `deferred`: see `SaveCheckpoint`. Raises DivergedError instead of writing one with a
        non-finite loss.
        """
        self.guard.read()
        with self.time_limit.timing("save"):
            state = self.state_dict()
            if deferred is not None:
                self.deferred[name] = _copied(state, deferred)
                return
            waiting, self.deferred = ({}, self.deferred) if not last else (self.deferred, {})
            folder = self.run.file("checkpoints")
            waiting.pop(name, None)
            self.deferred.pop(name, None)

            def write() -> None:
                # a resume needs the checkpoints that the last one refers to
                for file, content in {**waiting, **({name: state} if name else {})}.items():
                    save_state(folder / file, content)
                if last:
                    save_last(folder, state)

            self.processes.on_rank_zero(write)
        if last:
            self.saved = (self.step, time.monotonic())

    @property
    def seconds(self) -> float:
        """Seconds of training, earlier sessions included."""
        return self.state.seconds + time.monotonic() - self.started

    def state_dict(self) -> dict[str, Any]:
        """The complete content of a checkpoint. Collective."""
        states = {c.key: c.state_dict() for c in self.callbacks if c.key}
        metrics = {"loss": self.state.loss}
        for callback in self.callbacks:
            metrics |= callback.metrics
        return {
            **self.plan.describe(self.step),
            **self.state.state_dict(self.processes),
            "seconds": self.seconds,
            "metrics": metrics,
            "callbacks": states,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`."""
        self.state.load_state_dict(state, self.processes)
        self.saved = (self.step, time.monotonic())
        for callback in self.callbacks:
            if callback.key in state["callbacks"]:
                callback.load_state_dict(state["callbacks"][callback.key])


class PretrainTrainer(Trainer):
    """A trainer of a pretraining method."""

    def __init__(self, task: PretrainTask, plan: TrainingPlan, *where: Any, **options: Any) -> None:
        super().__init__(task, plan, *where, **options)
        self.freezing = FrozenBackbone(
            task.backbone,
            plan.freeze_backbone_steps,
            frozen_statistics=plan.freeze_bn_statistics,
            alone=self.processes.world == 1,
        )

    def begin_step(self, epoch: int) -> None:
        """Freeze or unfreeze the backbone before the task's own work."""
        self.freezing.begin_step(self.step)
        super().begin_step(epoch)

    def before_update(self) -> None:
        """The task's own work, then no gradient for a frozen backbone."""
        super().before_update()
        self.freezing.drop_gradients()

    @property
    def task(self) -> PretrainTask:
        """The method that is trained."""
        return self.state.task  # type: ignore[return-value]  # that it was made with


def _copied(state: dict[str, Any], unchanged: Collection[str]) -> dict[str, Any]:
    """A copy of a checkpoint's content that shares the `unchanged` entries of the model."""
    shared = {"model", "average"} & state.keys()
    copied = copy.deepcopy({name: value for name, value in state.items() if name not in shared})
    for name in shared:
        copied[name] = {
            entry: value if entry in unchanged else value.clone()
            for entry, value in state[name].items()
        }
    return copied
