"""How a network is fitted, what came of it, and the random numbers of a step."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

RANK_STRIDE = 7919  # between the seeds of two processes


@dataclass(frozen=True)
class Fit:
    """How to train: resolved values; `lr` is the rate after `warmup_epochs`.

    `class_weights`: what a image of each class counts in the loss; () is 1. `classes` is needed
    where labels are mixed.
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
    checkpoint_every: int | None = None  # None: 1, and with features kept each half minute
    keep_every: int | None = None  # epochs between checkpoints that stay; None: there are none
    precision: str = "fp32"
    seed: int = 0
    scales: Mapping[str, float] = field(default_factory=dict)  # parameter -> share of `lr`
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
    """What a run did; seconds and images are over all its starts, epochs count from 0."""

    epochs: int  # how many were finished
    best_epoch: int | None
    val_accuracy: float | None
    images: int
    seconds: float
    stopped: str  # "end", "early" (no better epoch within patience) or "asked" (from outside)
    asked_by: str = ""  # a signal, or --time-limit
    step: int = 0  # steps made
    steps: int = 0  # of the whole run


def seed_step(seed: int, step: int, device: torch.device, rank: int = 0) -> None:
    """Dropout and the like follow from (seed, step): what torch.manual_seed sets, on `device`.

    That itself takes 1 ms a call while CUDA is not in use, longer than a step on features. Each
    process draws its own.
    """
    value = seed * 1_000_003 + step + RANK_STRIDE * rank
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.manual_seed(value)
    elif device.type == "mps":
        torch.mps.manual_seed(value)
