"""Training loss: cross-entropy with label smoothing, class weights, MixUp and CutMix."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from unfreeze.errors import Interrupted
from unfreeze.tasks.supervised import SupervisedTask

RANK_STRIDE = 7919  # between the seeds of two ranks


@dataclass(frozen=True)
class TrainingConfig:
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
    warmup_share: float = 0.0  # of all steps, if that is more
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
    task: SupervisedTask | None = None  # None: classification


@dataclass(frozen=True)
class TrainingResult:
    """Result of training; seconds and images include earlier sessions, epochs count from 0.

    `val_metrics`: of the validation line of the best epoch, else of the last one; {} without a
    validation set. `interrupted`: the error of a run that a signal or the time limit stopped, not
    raised yet.
    """

    epochs: int  # finished epochs
    best_epoch: int | None
    val_accuracy: float | None
    val_metrics: dict[str, float]
    images: int
    seconds: float
    step: int  # finished steps
    steps: int  # steps of the complete run
    ended_early: bool = False  # by early stopping
    interrupted: Interrupted | None = None


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


class TrainingLoss:
    """Mean cross-entropy over the global batch, in nats.

    With class weights it is the weighted mean sum(w_y * loss) / sum(w_y), as in torch. Gradient
    accumulation and data parallelism do not change the loss: each part is divided by the `total`
    weight of the global batch.
    """

    def __init__(self, fit: TrainingConfig, device: torch.device) -> None:
        self.smoothing = fit.label_smoothing
        weights = torch.tensor(fit.class_weights, dtype=torch.float32)
        self.weights: Tensor | None = weights if len(weights) else None  # [C], on the host
        self.on_device = None if self.weights is None else self.weights.to(device)
        self.mix = _mixer(fit)

    def mixed(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(inputs, targets) of the step: labels [B], or soft labels [B, C]."""
        if self.mix is None or len(labels) < 2:
            return inputs, labels
        mixed, targets = self.mix(inputs, labels)
        return mixed, targets

    def total(self, labels: Tensor) -> float:
        """Total weight of images with these labels [B] (on the host).

        MixUp and CutMix do not change it: each image of a batch is used twice.
        """
        return float(len(labels) if self.weights is None else self.weights[labels].sum())

    def loss(self, logits: Tensor, targets: Tensor, total: float) -> Tensor:
        """Loss of logits [B, C], summed and divided by `total`, in at least float32."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        weight = None if self.on_device is None else self.on_device.to(logits.dtype)
        summed = functional.cross_entropy(
            logits,
            targets,
            weight=weight,
            label_smoothing=self.smoothing,
            reduction="sum",
        )
        return summed / total


class SupervisedLoss:
    """The mean loss of a task over the global batch, with the methods of `TrainingLoss`."""

    def __init__(self, task: SupervisedTask) -> None:
        self.task = task

    def mixed(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(inputs, targets) as they are."""
        return inputs, targets

    def total(self, targets: Tensor) -> float:
        """The number of images."""
        return float(len(targets))

    def loss(self, outputs: Tensor, targets: Tensor, total: float) -> Tensor:
        """Loss of outputs [B, K], summed and divided by `total`, in at least float32."""
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        return self.task.loss(outputs, targets).sum() / total


def class_weights(labels: Sequence[int] | Any, classes: int, kind: str) -> tuple[float, ...]:
    """Loss weight of each class: `balanced` is N / (C * n), as in scikit-learn; `sqrt` its root.

    `sqrt` is scaled so that the mean weight over images is 1, as with `balanced`; `none` is ().
    """
    if kind == "none":
        return ()
    counts = torch.bincount(torch.as_tensor(labels), minlength=classes).double()
    weights = counts.sum() / (classes * counts)
    if kind == "sqrt":
        weights = weights.sqrt()
        weights *= counts.sum() / (weights * counts).sum()
    return tuple(weights.tolist())


def _mixer(fit: TrainingConfig) -> Any:
    """Torchvision's MixUp, CutMix, or a random choice per batch; None if both are off."""
    if not (fit.mixup or fit.cutmix):
        return None
    from torchvision.transforms import v2

    alphas = ((v2.MixUp, fit.mixup), (v2.CutMix, fit.cutmix))
    mixers = [kind(alpha=float(alpha), num_classes=fit.classes) for kind, alpha in alphas if alpha]
    return mixers[0] if len(mixers) == 1 else v2.RandomChoice(mixers)
