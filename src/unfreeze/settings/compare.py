"""The knobs of `compare`: those of `finetune`, with several starts and seeds."""

from dataclasses import dataclass

from unfreeze.settings.finetune import TuningSettings
from unfreeze.settings.knob import knob


@dataclass(frozen=True)
class CompareSettings(TuningSettings):
    """Compares starting points on the same images and budget: did pretraining pay."""

    weights: tuple[str, ...] = knob(  # type: ignore[assignment]  # several, where finetune has one
        ("none", "imagenet"),
        "two or more starts, each as finetune takes it: none, imagenet, swav, NAME, URL, FILE, RUN",
        path="input",
    )
    seeds: int = knob(
        3,
        "runs from each start; the seed draws labels, validation split, new layers and order",
        low=1,
    )
    rates: tuple[float, ...] | None = knob(
        None,
        "learning rates to try from each start and seed; the best on validation is evaluated "
        "(auto: --lr, else each start's usual one)",
        low=0,
    )
    test: str | None = knob(
        None,
        "other images to evaluate on, once at the end of each run (auto: test of DATA, else val)",
        group="data",
        path="input",
    )
