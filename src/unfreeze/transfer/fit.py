"""Training configuration, training result, and the seed of each step."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

RANK_STRIDE = 7919  # between the seeds of two ranks


@dataclass(frozen=True)
class Fit:
    """Resolved training configuration; `lr` is the learning rate after `warmup_epochs`.

    `class_weights`: loss weight of each class, () for none. `classes`: their number, needed for
    MixUp and CutMix.
    """

    epochs: int
    lr: float
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    warmup_epochs: int = 0
    patience: int = 0
    select: str = "accuracy"
    checkpoint_every: int | None = None  # None: 1; with cached features every half minute
    keep_every: int | None = None  # epochs between permanent checkpoints; None: no such checkpoints
    precision: str = "fp32"
    seed: int = 0
    scales: Mapping[str, float] = field(default_factory=dict)  # parameter -> factor on `lr`
    classes: int = 0
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()
    mixup: float = 0.0
    cutmix: float = 0.0
    clip_grad: float = 0.0
    accumulate: int = 1
    ema: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """Result of training; seconds and images include earlier sessions, epochs count from 0."""

    epochs: int  # finished epochs
    best_epoch: int | None
    val_accuracy: float | None
    images: int
    seconds: float
    stopped: str  # "end", "early" (early stopping) or "asked" (a signal or time limit)
    asked_by: str = ""  # a signal, or --time-limit
    step: int = 0  # finished steps
    steps: int = 0  # steps of the complete run


def seed_step(seed: int, step: int, device: torch.device, rank: int = 0) -> None:
    """Seed torch's generators from (seed, step, rank), for dropout and the like.

    Seeds the CPU and `device` only: torch.manual_seed takes 1 ms per call while CUDA is not in use,
    longer than a step on cached features.
    """
    value = seed * 1_000_003 + step + RANK_STRIDE * rank
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.manual_seed(value)
    elif device.type == "mps":
        torch.mps.manual_seed(value)
