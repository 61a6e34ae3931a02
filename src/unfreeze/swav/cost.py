"""Forecast of a plan: learning-rate curve, memory use, and the published recipe nearest to it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from unfreeze.config.pretrain import PretrainSettings
from unfreeze.models.layer_costs import SavedTensorBytes
from unfreeze.runtime.device import autocast
from unfreeze.runtime.signals import signals_deferred
from unfreeze.swav.auto_recipe import PretrainRecipe, max_prototypes, usual_lr, view_specs
from unfreeze.swav.dataset_stats import DatasetStats
from unfreeze.swav.presets import PUBLISHED
from unfreeze.tasks.base import PretrainTask

LARGE = 1024  # from this batch size on, compare with the published large-batch recipe
_STATES = {"adamw": 2, "larc": 1, "sgd": 1}  # state tensors of an optimizer per parameter
_BARS = "▁▂▃▄▅▆▇█"


def published_recipe(s: PretrainSettings) -> tuple[str, dict[str, Any]]:
    """(name, settings) of the published recipe that a plan is compared with."""
    name = s.recipe
    if name == "auto":
        name = "swav-100ep" if (s.batch_size or 0) >= LARGE else "swav-200ep-bs256"
    return name, dict(PUBLISHED[name])


def learning_rates(plan: PretrainRecipe, points: int = 10) -> list[tuple[int, float]]:
    """(step, learning rate) at `points` evenly spaced steps, including the first and the last."""
    last = plan.steps - 1
    steps = sorted({round(last * k / (points - 1)) for k in range(points)}) if last >= 0 else []
    return [(step, float(f"{plan.learning_rate(step):.6g}")) for step in steps]


def sparkline(values: Sequence[float]) -> str:
    """One bar per value, scaled from the minimum to the maximum."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    span = (high - low) or 1.0
    return "".join(_BARS[round((value - low) / span * (len(_BARS) - 1))] for value in values)


@dataclass(frozen=True)
class PretrainMemory:
    """Peak device memory of one process during a step, in bytes."""

    parameters: int
    gradients: int
    optimizer: int
    inputs: int  # the views of one micro-batch
    activations: int  # saved for the backward pass
    codes: int  # Sinkhorn's matrices, and the queue

    @property
    def total(self) -> int:
        """Sum of all parts, in bytes."""
        parts = (self.parameters, self.gradients, self.optimizer)
        return sum(parts) + self.inputs + self.activations + self.codes


@dataclass(frozen=True)
class MicroBatchCost:
    """Cost of one micro-batch: bytes saved for the backward pass, FLOPs of the forward pass."""

    activations: int
    operations: int


def pretrain_memory(
    model: nn.Module, plan: PretrainRecipe, work: MicroBatchCost, *, share: int, processes: int
) -> PretrainMemory:
    """Peak memory of a plan; `share`: images of a batch per process."""
    s = plan.settings
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    rows, assigned = share // s.accumulate, len(s.crops_for_assign)
    queue = (s.queue_length or 0) // processes
    pixels = sum(3 * spec.size**2 for spec in view_specs(s))
    return PretrainMemory(
        parameters=weights,
        # data parallel: gradients are copied once for communication
        gradients=weights * (2 if processes > 1 else 1),
        optimizer=weights * _STATES[s.optimizer or "larc"],
        inputs=rows * pixels * 4 + share * pixels,  # float32, and the uint8 pixels
        activations=work.activations,
        codes=4 * (3 * (share + queue) * (s.nmb_prototypes or 0) + assigned * queue * s.feat_dim),
    )


def micro_batch_cost(
    task: PretrainTask, plan: PretrainRecipe, *, rows: int, device: torch.device, precision: str
) -> MicroBatchCost:
    """Cost of a forward pass over the views of `rows` images, on fake tensors: shapes only.

    Raises whatever a network with data-dependent control flow raises.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    s = plan.settings
    shapes = FakeTensorMode()
    state = {
        name: shapes.from_tensor(tensor.detach()).requires_grad_(tensor.is_floating_point())
        for name, tensor in task.model.named_parameters()
    }
    state |= {name: shapes.from_tensor(buffer) for name, buffer in task.model.named_buffers()}
    with signals_deferred(), shapes, FlopCounterMode(display=False) as counter:
        sizes = [spec.size for spec in view_specs(s)]
        views = [torch.zeros(rows, 3, size, size, device=device) for size in sizes]
        views = [view.to(memory_format=torch.channels_last) for view in views]
        saved = SavedTensorBytes((*state.values(), *views))
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(saved.take, _unchanged):
            with autocast(device, precision):
                output = functional_call(task.model, state, (views,))
            task.example_loss(output, len(views))
    return MicroBatchCost(saved.bytes, counter.get_total_flops())


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


FAR = 3.0  # times the usual learning rate


def plan_warnings(plan: PretrainRecipe, facts: DatasetStats) -> tuple[str, ...]:
    """One sentence per value that does not suit the dataset; empty where all do."""
    warnings = (*_frozen(plan), *_prototypes(plan, facts), *_queue(plan, facts), *_rate(plan))
    return tuple(warnings)


def _frozen(plan: PretrainRecipe) -> Iterator[str]:
    steps = plan.settings.freeze_prototypes_niters or 0
    if plan.settings.method != "swav":
        return  # prototypes are always frozen between two clusterings
    if plan.steps and steps > max(plan.steps_per_epoch, 0.1 * plan.steps):
        epochs = steps / plan.steps_per_epoch
        yield (
            f"--freeze-prototypes-niters {steps:,} is {epochs:,.0f} epochs of "
            f"{plan.settings.epochs} here; the recipe intends one epoch."
        )


def _prototypes(plan: PretrainRecipe, facts: DatasetStats) -> Iterator[str]:
    s = plan.settings
    K, batch, queue = s.nmb_prototypes or 0, s.batch_size or 0, s.queue_length or 0
    if facts.images < K:
        yield f"--nmb-prototypes {K:,} exceeds the {facts.images:,} images."
    elif s.method == "swav" and max_prototypes(batch, queue) < K:
        queued = f" and {queue:,} queued features" if queue else ""
        yield (
            f"A batch of {batch:,}{queued} cannot fill --nmb-prototypes {K:,}: codes are spread "
            "equally over all prototypes, so many stay empty."
        )


def _queue(plan: PretrainRecipe, facts: DatasetStats) -> Iterator[str]:
    queue = plan.settings.queue_length or 0
    if queue > facts.images / 2:
        yield (
            f"--queue-length {queue:,} is {queue / facts.images:.1f} times the number of images: "
            "most entries are outdated features of images in the batch."
        )


def _rate(plan: PretrainRecipe) -> Iterator[str]:
    s = plan.settings
    usual, why = usual_lr(s.optimizer or "larc", s.batch_size or 0)
    if s.base_lr and s.base_lr > FAR * usual:
        yield (
            f"--base-lr {s.base_lr:g} is {s.base_lr / usual:.0f} times the usual {usual:.3g} "
            f"for a batch of {s.batch_size:,} ({why})."
        )
