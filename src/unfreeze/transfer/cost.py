"""Compute and memory cost of fine-tuning, derived from layer shapes."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import nn

from unfreeze.config.finetune import FinetuneSettings
from unfreeze.errors import UsageError
from unfreeze.models.layer_costs import NetworkCost, network_cost
from unfreeze.models.shape_trace import example_input, trace_forward
from unfreeze.transfer.freezing.freeze import FreezeSchedule
from unfreeze.transfer.freezing.schedule import frozen_phases, is_cached

_STATES = {"sgd": 1, "lars": 1, "adamw": 2}  # state tensors per parameter
EVALUATED = 64  # batch size of evaluation


@dataclass(frozen=True)
class CostInput:
    """Inputs of the estimate besides the settings; `runs`: number of folds times repeats."""

    network: nn.Module
    schedule: FreezeSchedule
    head: Collection[str]
    images: int
    held_out: int
    runs: int = 1


@dataclass(frozen=True)
class TrainingCost:
    """FLOPs of training and of evaluation; `views`: crops to compute from images.

    `works`: (frozen parameters, cost of one image) of each freezing phase.
    """

    training: float
    evaluation: float
    views: int
    works: tuple[tuple[frozenset[str], NetworkCost], ...]

    @property
    def operations(self) -> float:
        """FLOPs of training and evaluation."""
        return self.training + self.evaluation

    @property
    def heaviest(self) -> tuple[frozenset[str], NetworkCost]:
        """The freezing phase that stores the most activations per image."""
        return max(self.works, key=lambda entry: entry[1].kept)


def training_cost(s: FinetuneSettings, case: CostInput) -> TrainingCost | None:
    """Cost of resolved settings; None if it cannot be derived from shapes."""
    side = s.image_size or 0
    training = evaluation = 0.0
    views, works = 0, []
    for phase in frozen_phases(case.network, case.schedule, s.epochs or 0, case.head):
        work = network_cost(case.network, phase.frozen, side)
        if work is None:
            return None
        works.append((phase.frozen, work))
        if s.head_solver == "logistic":
            count = s.cache_views or 1
            evaluation += work.forward * (count * case.images + case.held_out)
            views += count * case.images
        elif s.cache not in ("off", "auto") and is_cached(s.cache, phase):
            passes = len(phase.views(s.cache_views or 1))
            # a backward pass costs about two forward passes of the trained layers
            after = (work.training - work.forward) / 2
            evaluation += work.forward * (passes * case.images + case.held_out)
            epochs = case.runs * phase.epochs
            training += 3 * after * epochs * case.images
            evaluation += after * epochs * case.held_out
            views += passes * case.images
        else:
            epochs = case.runs * phase.epochs
            training += work.training * epochs * case.images
            evaluation += work.forward * epochs * case.held_out
            views += epochs * case.images
    return TrainingCost(training, evaluation, views, tuple(works))


@dataclass(frozen=True)
class FinetuneMemory:
    """Peak device memory of one process, in bytes."""

    parameters: int
    gradients: int
    optimizer: int
    inputs: int
    activations: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        parts = (self.parameters, self.gradients, self.optimizer, self.inputs, self.activations)
        return sum(parts)


def finetune_memory(
    s: FinetuneSettings, case: CostInput, cost: TrainingCost, processes: int = 1
) -> FinetuneMemory:
    """Peak device memory of resolved settings."""
    side, (frozen, work) = s.image_size or 0, cost.heaviest
    sizes = {name: p.numel() * p.element_size() for name, p in case.network.named_parameters()}
    trained = sum(size for name, size in sizes.items() if name not in frozen)
    solved = s.head_solver == "logistic"
    micro_batch = max(1, (s.batch_size or 1) // processes // s.accumulate)
    divisor = 1 if s.precision == "fp32" else 2  # 16 bits instead of 32
    activations = 0 if solved else micro_batch * work.kept // divisor
    example = example_input(case.network, (side, side), 1, device=torch.device("meta"))
    evaluated = min(EVALUATED, max(case.images if solved else 0, case.held_out))
    return FinetuneMemory(
        parameters=sum(sizes.values()),
        gradients=0 if solved else trained,
        optimizer=0 if solved else trained * _STATES[s.optimizer],
        inputs=max(0 if solved else micro_batch, evaluated) * example.nbytes,
        # evaluation stores one layer's input and output at a time
        activations=max(activations, evaluated * 2 * _largest(case.network, side)),
    )


def _largest(network: nn.Module, side: int) -> int:
    """Bytes of the largest layer output for one image."""
    try:
        shapes = trace_forward(network, (side, side)).shapes.values()
    except UsageError:
        return 0
    sizes = [4]
    for shape in shapes:
        size = 4
        for length in shape[1:]:
            size *= length
        sizes.append(size)
    return max(sizes)
