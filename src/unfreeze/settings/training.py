"""Knobs of how a network is fitted to labels: what the field expects beside rate and decay."""

from dataclasses import dataclass

from unfreeze.settings.knob import knob


@dataclass(frozen=True)
class Training:
    """Each is off by default."""

    label_smoothing: float = knob(
        0.0,
        "label smoothing: share of each label spread over all classes",
        low=0,
        high=0.9,
        group="training",
    )
    class_weights: str = knob(
        "none",
        "weight of each class in the loss: equal, by inverse frequency (balanced), or by its "
        "square "
        "root (sqrt)",
        choices=("none", "balanced", "sqrt"),
        group="training",
    )
    sampling: str = knob(
        "natural",
        "images of an epoch: each once (natural), or the same number of every class (balanced)",
        choices=("natural", "balanced"),
        group="training",
    )
    mixup: float = knob(
        0.0,
        "mixup: alpha of its beta distribution, often 0.2 (0: off)",
        low=0,
        group="training",
    )
    cutmix: float = knob(
        0.0,
        "CutMix: alpha of its beta distribution, often 1 (0: off); with --mixup each batch takes "
        "one of the two",
        low=0,
        group="training",
    )
    clip_grad: float = knob(
        0.0, "gradient clipping: the largest norm (0: off)", low=0, group="training"
    )
    accumulate: int = knob(
        1,
        "gradient accumulation: parts of a batch, for less memory; batch norm sees each part alone",
        low=1,
        group="training",
    )
    ema: float = knob(
        0.0,
        "exponential moving average of the weights with this decay, often 0.99 to 0.9999 (0: off)",
        low=0,
        high=0.999999,
        group="training",
    )
