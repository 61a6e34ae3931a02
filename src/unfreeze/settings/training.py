"""Settings of supervised training beside learning rate and weight decay: regularisation, EMA."""

from dataclasses import dataclass

from unfreeze.settings.knob import knob


@dataclass(frozen=True)
class Training:
    """Each is off by default."""

    label_smoothing: float = knob(
        0.0,
        "label smoothing: fraction of each label that is spread over all classes",
        low=0,
        high=0.9,
        group="training",
    )
    class_weights: str = knob(
        "none",
        "class weights in the loss: equal (none), inverse frequency (balanced), or its square root "
        "(sqrt)",
        choices=("none", "balanced", "sqrt"),
        group="training",
    )
    sampling: str = knob(
        "natural",
        "sampling of an epoch: each image once (natural), or the same number of every class "
        "(balanced)",
        choices=("natural", "balanced"),
        group="training",
    )
    mixup: float = knob(
        0.0,
        "mixup: alpha of the beta distribution, often 0.2 (0: off)",
        low=0,
        group="training",
    )
    cutmix: float = knob(
        0.0,
        "CutMix: alpha of the beta distribution, often 1 (0: off); with --mixup each batch uses "
        "one of the two",
        low=0,
        group="training",
    )
    clip_grad: float = knob(
        0.0, "gradient clipping: maximum norm (0: off)", low=0, group="training"
    )
    accumulate: int = knob(
        1,
        "gradient accumulation steps per batch, to save memory; batch norm uses each part alone",
        low=1,
        group="training",
    )
    ema: float = knob(
        0.0,
        "exponential moving average (EMA) of the weights: decay, often 0.99 to 0.9999 (0: off)",
        low=0,
        high=0.999999,
        group="training",
    )
