"""Settings of `compare`: those of `finetune`, with several initial weights and seeds."""

from dataclasses import dataclass

from unfreeze.settings.finetune import TuningSettings
from unfreeze.settings.knob import knob


@dataclass(frozen=True)
class CompareSettings(TuningSettings):
    """Compares several initial weights on the same images, splits and budget."""

    weights: tuple[str, ...] = knob(  # type: ignore[assignment]  # several, where finetune has one
        ("none", "imagenet"),
        "two or more initial weights, as in finetune: none, imagenet, swav, NAME, URL, FILE, RUN",
        path="input",
    )
    seeds: int = knob(
        3,
        "runs for each of the weights; the seed sets labels, validation split, new layers and data "
        "order",
        low=1,
    )
    rates: tuple[float, ...] | None = knob(
        None,
        "learning rates to try for each of the weights and seeds; the best on validation is "
        "evaluated (auto: --lr, else the usual one of the weights)",
        low=0,
    )
    test: str | None = knob(
        None,
        "test set, evaluated once at the end of each run (auto: test of DATA, else val)",
        group="data",
        path="input",
    )
