"""Knobs of how a network is fitted to labels: what the field expects beside rate and decay."""

from dataclasses import dataclass

from unfreeze.settings.knob import knob


@dataclass(frozen=True)
class Training:
    """Each is off until it is asked for."""

    label_smoothing: float = knob(
        0.0,
        "share of each label that is spread over all classes",
        low=0,
        high=0.9,
        group="training",
    )
    class_weights: str = knob(
        "none",
        "what a picture of each class counts in the loss: the same, by the inverse of the class's "
        "size (balanced), or by its root (sqrt)",
        choices=("none", "balanced", "sqrt"),
        group="training",
    )
    sampling: str = knob(
        "natural",
        "which pictures an epoch has: each once, or as many, the same number of every class",
        choices=("natural", "balanced"),
        group="training",
    )
    mixup: float = knob(
        0.0,
        "mix pictures and labels of a batch in pairs: alpha of the share, often 0.2",
        low=0,
        group="training",
    )
    cutmix: float = knob(
        0.0,
        "paste a part of another picture, with its share of the label: alpha, often 1; with "
        "--mixup each batch takes one of the two",
        low=0,
        group="training",
    )
    clip_grad: float = knob(
        0.0, "largest norm of a step's gradient (0: any)", low=0, group="training"
    )
    accumulate: int = knob(
        1,
        "parts a process takes its batch in, for less memory; the step is the same but for batch "
        "norm, which sees each part alone",
        low=1,
        group="training",
    )
    ema: float = knob(
        0.0,
        "validate and keep the running average of the weights with this decay, often 0.99 to "
        "0.9999 (0: the weights themselves)",
        low=0,
        high=0.999999,
        group="training",
    )
