"""What continued pretraining gained over the weights that it began with, in a sentence."""

from collections.abc import Mapping, Sequence
from typing import Any

from unfreeze.reports.verdict import on_images, percent, pretraining_sentence

LINEAR = "the accuracy of a linear classifier on the features"
UNKNOWN = (
    "Without labels it is not known whether these weights are better than those of --init: a few "
    "labelled images (--labels, 20 or more) let a run keep the better ones."
)


def pretrained_sentences(
    metrics: Sequence[Mapping[str, Any]],
    prototypes: int | None,
    continued: Mapping[str, Any] | None,
    *,
    interval: bool = True,
) -> list[str]:
    """What pretraining achieved: against the weights of `--init` if labels tell, else as usual.

    `metrics`: the records of metrics.jsonl; the other arguments: as in `pretraining_sentence`.
    """
    against = continued_sentence(continued)
    if continued and continued["value"] is not None:
        return [against]
    lead = pretraining_sentence(metrics, prototypes, interval=interval)
    return [sentence for sentence in (lead, against) if sentence]


def continued_sentence(result: Mapping[str, Any] | None) -> str:
    """Whether continued pretraining paid, from `continued` of a run's result; "" without it."""
    if not result:
        return ""
    if result["value"] is None:
        return UNKNOWN
    images = on_images(result["total"], result["split"])
    start, value = percent(result["start"]), percent(result["value"])
    if result["kept"] == "start":
        return _did_not_pay(result, start, images)
    low, high = result["interval"]
    points = f"{_points(result['difference'])} points, 95 % interval {_points(low)} to "
    points += f"{_points(high)}, {images}"
    if low <= 0 <= high:
        return (
            f"It is not clear whether continued pretraining paid: {LINEAR} was {start} at the "
            f"start and is {value} ({points}).{_optimistic(result)}"
        )
    verb = "raised" if low > 0 else "lowered"
    return (
        f"Continued pretraining {verb} {LINEAR} from {start} to {value} ({points})."
        f"{_optimistic(result)}"
    )


def _did_not_pay(result: Mapping[str, Any], start: str, images: str) -> str:
    last = result["last"]
    ended = " and was stopped early" if result["stopped_below_start"] else ""
    within = ", which is within the standard error" if last["difference"] > 0 else ""
    return (
        f"Continued pretraining did not pay{ended}: the start's weights are kept. With them "
        f"{LINEAR} is {start} of {images}; after the last epoch it was {percent(last['value'])} "
        f"({_points(last['difference'])} points{within})."
    )


def _optimistic(result: Mapping[str, Any]) -> str:
    if result["kept"] != "best":
        return ""
    return " The epoch was selected on these images, so the gain is slightly too high."


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"
