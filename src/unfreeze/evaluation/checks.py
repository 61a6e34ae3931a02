"""Checks of a run's metrics that return warnings; pure functions.

Each warning states what happened, the likely cause and a next step. A healthy run raises none:
thresholds are hypothesis tests at level LEVEL, so that a few images are not enough for a warning.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unfreeze.data.validate.warnings import CroppedImages
from unfreeze.evaluation.warnings import RunWarning
from unfreeze.runtime.console import pluralised, printable

LEVEL = 0.05  # significance level: false positive rate of each warning, at most
USEFUL = 0.25  # of the way from guessing to perfect: from here on a classifier is useful
POOR = 0.5  # recall of a class below which a classifier fails on it
NEAR = 0.02  # relative distance to ln K within which a loss is at ln K
# below this, an image is over 5 points of accuracy and the 95 % interval at .5 over +-20 points
FEW = 20
ABOVE = 1.1  # times ln K: a loss clearly worse than guessing
RISE, NOISE = 0.25, 5.0  # see `_risen`
TREND = 5  # epochs: fewer cannot show a significant trend
SAME = 1e-3  # spread of unit features (see `FeatureStatistics`) below which they are constant
DEAD = 0.5  # share of dead feature dimensions
RARE = 0.05  # share of images with another value for a dimension to count as alive
FEW_STEPS = 50
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TrainingLosses:
    """Mean training loss of each epoch; images and correct predictions of the last; total steps."""

    losses: tuple[float, ...]
    correct: int
    images: int
    steps: int


@dataclass(frozen=True)
class FeatureStatistics:
    """Statistics of a network's features over some images.

    `spread`: standard deviation per dimension of L2-normalised features, times sqrt(`width`): 1 is
    even in all directions, 0 constant. `dead`: number of dimensions with a constant value.
    """

    images: int
    width: int
    spread: float
    dead: int


def training_losses(records: Iterable[Mapping[str, Any]]) -> TrainingLosses | None:
    """From the records of metrics.jsonl; None if nothing was trained."""
    lines = [r for r in records if r.get("split") == "train" and r.get("total")]
    if not lines:
        return None
    epochs: dict[int, list[Mapping[str, Any]]] = {}
    for line in lines:
        epochs.setdefault(line["epoch"], []).append(line)
    losses = [
        sum(line["loss"] * line["total"] for line in epoch) / sum(line["total"] for line in epoch)
        for epoch in epochs.values()
    ]
    last = epochs[max(epochs)]
    return TrainingLosses(
        tuple(losses),
        sum(int(line["correct"]) for line in last),
        sum(int(line["total"]) for line in last),
        int(lines[-1]["step"]),
    )


def nothing_learned(
    classes: int,
    trained: TrainingLosses | None,
    confusion: Counts | None,
    loss: float | None,
    *,
    majority: float = 0.0,
    best_epoch: int | None = None,
    lr: float | None = None,
    frozen: bool = False,
    solved: bool = False,
) -> list[RunWarning]:
    """`nothing_learned`: the loss is at ln K (or above), and no accuracy is above chance.

    `confusion`, `loss`: of the evaluated images, None without them. `majority`: share of the
    largest class in the training set. Without `trained` (only a model is known), the evaluation
    loss must be ln K itself. `frozen`: only the head was trained, or `solved`.
    """
    chance = math.log(classes)
    if trained is not None:
        value, name = trained.losses[-1], "training loss"
        stuck = value >= (1 - NEAR) * chance
        stuck &= not significantly_above(trained.correct, trained.images, majority)
    elif loss is not None:
        value, name = loss, "loss"
        stuck = abs(value - chance) <= NEAR * chance
    else:
        return []
    if confusion is not None and confusion.sum():
        stuck &= not significantly_above(
            int(confusion.trace()), int(confusion.sum()), _majority(confusion)
        )
    if not stuck:
        return []
    text = f"The network learned nothing: the {name} is {value:.3f}, and guessing gives ln "
    text += f"{classes} = {chance:.3f}"
    if best_epoch == 0 and trained is not None and len(trained.losses) > 1:
        text += f"; the best of {len(trained.losses)} epochs is the first"
    few = trained is not None and trained.steps < FEW_STEPS and not solved
    advice = _advice(trained, lr=lr, few=few, frozen=frozen)
    return [RunWarning("nothing_learned", f"{text}. {advice}")]


def _advice(trained: TrainingLosses | None, *, lr: float | None, few: bool, frozen: bool) -> str:
    if lr == 0:
        return "The learning rate is 0. Leave out --lr, or give one above 0."
    if trained is None:
        return (
            "The features probably do not separate these classes, or training failed: check the "
            "report of the run, and try other --weights."
        )
    if few:
        return (
            f"{pluralised(trained.steps, 'step is', 'steps are')} probably too few: raise --epochs."
        )
    if frozen:
        return (
            "The frozen features probably do not separate these classes: try other --weights, or "
            "--freeze none."
        )
    return (
        "The learning rate probably does not suit this network: try --find-lr, or start from "
        "pretrained --weights."
    )


def prediction_warnings(confusion: Counts, names: Sequence[str]) -> list[RunWarning]:
    """`one_class`, `class_never_predicted`, `majority_accuracy` from counts [label, prediction]."""
    if not confusion.sum():
        return []
    truth, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    if (predicted > 0).sum() == 1:
        warnings = _one_class(truth, int(predicted.argmax()), names)
    else:
        warnings = _never_predicted(truth, predicted, names)
    return warnings + _majority_accuracy(confusion, names)


def _one_class(truth: Counts, only: int, names: Sequence[str]) -> list[RunWarning]:
    others = int(truth.sum() - truth[only])
    # a poor but working classifier predicts `only` for each of them with probability 1 - POOR
    if POOR**others > LEVEL:
        return []
    text = (
        f"All {int(truth.sum()):,} images are predicted as {printable(names[only])!r}, although "
        f"{others:,} have another label. Training probably failed (learning rate too high, dead "
        "features), or one class outnumbers the others: try a lower --lr, and --class-weights "
        "balanced."
    )
    return [RunWarning("one_class", text)]


def _never_predicted(truth: Counts, predicted: Counts, names: Sequence[str]) -> list[RunWarning]:
    present = int((truth > 0).sum())
    # Bonferroni correction for the number of classes
    never = [
        index
        for index in np.flatnonzero((truth > 0) & (predicted == 0)).tolist()
        if POOR ** int(truth[index]) <= LEVEL / present
    ]
    if not never:
        return []
    some = ", ".join(
        f"{printable(names[index])!r} ({int(truth[index]):,} images)" for index in never[:5]
    )
    more = f" and {len(never) - 5:,} more" if len(never) > 5 else ""
    text = (
        f"{pluralised(len(never), 'class is', 'classes are')} never predicted: {some}{more}. "
        "There are "
        "probably too few training images of it, or its labels are mixed up with another class: "
        "check the confusion matrix in the report, and try --sampling balanced."
    )
    return [RunWarning("class_never_predicted", text)]


def _majority_accuracy(confusion: Counts, names: Sequence[str]) -> list[RunWarning]:
    n, correct = int(confusion.sum()), int(confusion.trace())
    truth = confusion.sum(axis=1)
    share, present = _majority(confusion), truth > 0
    if present.sum() < 2 or significantly_above(correct, n, share):
        return []
    from scipy.special import bdtr

    useful = share + USEFUL * (1 - share)
    if bdtr(correct, n, useful) > LEVEL:
        return []  # too few images to exclude a useful classifier
    recalls = confusion.diagonal()[present] / truth[present]
    chance = 1 / int(present.sum())
    if recalls.mean() > chance + USEFUL * (1 - chance):
        return []  # it separates the small classes, at the cost of some accuracy
    largest = printable(names[int(truth.argmax())])
    text = (
        f"Accuracy on {n:,} images is {correct / n:.3f}, and always predicting {largest!r} would "
        f"give {share:.3f}. The model learned little or nothing that separates the classes: check "
        "balanced accuracy and the labels, and try --class-weights balanced or other --weights."
    )
    return [RunWarning("majority_accuracy", text)]


def diverging(classes: int, losses: Sequence[float], images: int) -> list[RunWarning]:
    """`diverging`: the mean training loss per epoch, over `images` each, rose."""
    if len(losses) < 2:
        return []
    chance, first, last = math.log(classes), losses[0], losses[-1]
    low, high = min(losses[:-1]), max(losses)
    diverged = last > ABOVE * chance and (_risen(low, last, images) or _risen(first, high, images))
    if not diverged and not (_risen(first, last, images) and _rising(losses)):
        return []
    text = (
        f"The training loss rose: {_sequence(losses)} over {len(losses)} epochs (guessing gives "
        f"{chance:.3f}). The learning rate is probably too high: try --lr at a tenth, --find-lr, "
        "or --warmup-epochs."
    )
    return [RunWarning("diverging", text)]


def _risen(before: float, after: float, images: int) -> bool:
    """Whether a mean loss over `images` rose by more than its noise.

    The standard deviation of losses is about their mean, so that of a mean of n is 1/sqrt(n) of it.
    NOISE times that is 3.5 standard deviations of a difference: enough for the maximum over epochs.
    """
    return after > before * (1 + max(RISE, NOISE / math.sqrt(max(images, 1))))


def _rising(losses: Sequence[float]) -> bool:
    """Whether later epochs have higher losses, by Kendall's rank test."""
    if len(losses) < TREND:
        return False
    from scipy.stats import kendalltau

    test = kendalltau(range(len(losses)), losses, alternative="greater")
    return bool(test.pvalue < LEVEL / TREND)


def _sequence(losses: Sequence[float]) -> str:
    """The first, lowest, highest and last loss, in order of epochs."""
    epochs = {0, losses.index(min(losses)), losses.index(max(losses)), len(losses) - 1}
    return " -> ".join(f"{losses[epoch]:.3g}" for epoch in sorted(epochs))


def cropped_warning(cropped: CroppedImages | None) -> list[RunWarning]:
    """`cropped_away`: the centre crop cuts off much of many images."""
    if cropped is None or cropped.warning is None:
        return []
    return [RunWarning("cropped_away", cropped.warning)]


def few_validation_images(n: int, *, choose: bool, classes: bool = True) -> list[RunWarning]:
    """`few_validation_images`: the validation set has fewer than FEW images, but is not empty.

    `choose`: whether the best epoch is selected on it. `classes`: False for tasks that have neither
    an accuracy nor `--folds`.
    """
    if not 0 < n < FEW:
        return []
    count = pluralised(n, "validation image", "validation images")
    if not classes:
        effect = "the best epoch is partly chance" if choose else "the metrics are uncertain"
        text = f"{count}: {effect}. Label more images, or raise --val."
        return [RunWarning("few_validation_images", text)]
    effect = (
        "the best epoch is mostly chance" if choose else "the validation accuracy is unreliable"
    )
    text = (
        f"{count}: each is worth {100 / n:.0f} points of accuracy, so {effect}. Label more images, "
        "raise --val, or use --folds for cross-validation."
    )
    return [RunWarning("few_validation_images", text)]


def leakage_warning(
    leaked: int | None,
    n: int,
    split: str,
    accuracy: float | None,
    unleaked: float | None,
    *,
    texts: bool = False,
) -> list[RunWarning]:
    """`leakage`: `leaked` of the `n` images of `split` have a near-duplicate in the training set.

    `accuracy` on all of them, `unleaked` without those; None if not known yet.
    """
    if not leaked:
        return []
    samples = "texts" if texts else "images"
    subject = f"{leaked:,} of {n:,}" if leaked < n else f"All {n:,}"
    text = (
        f"{subject} {samples} of {split} are duplicates or near-duplicates of training {samples} "
        "(data leakage)"
    )
    if leaked == n:
        text += f": accuracy on new {samples} is not measured. "
    elif accuracy is not None and unleaked is not None:
        text += f": accuracy is {accuracy:.3f} with them and {unleaked:.3f} without. "
    else:
        text += ": the accuracy on them is too high. "
    text += (
        "Remove one text of each pair from its split."
        if texts
        else "`unfreeze scan DATA` lists each pair (across splits): remove one image of each from "
        "its split."
    )
    return [RunWarning("leakage", text)]


def constant_features_warning(statistics: FeatureStatistics | None) -> list[RunWarning]:
    """`constant_features`: features, or at least DEAD of their dimensions, are constant.

    Dimensions are checked only if there are enough images that one which varies in a share RARE of
    them would not be constant by chance.
    """
    if statistics is None or statistics.images < 2:
        return []
    cause = (
        "The weights are probably damaged, of another network, or from a collapsed training run: "
        "check them with `unfreeze inspect`, and try other --weights."
    )
    if statistics.spread < SAME:
        text = f"The features are the same for all {statistics.images:,} evaluated images. "
        return [RunWarning("constant_features", text + cause)]
    enough = statistics.width * (1 - RARE) ** statistics.images <= LEVEL
    if not enough or statistics.dead < DEAD * statistics.width:
        return []
    text = (
        f"{statistics.dead:,} of {statistics.width:,} feature dimensions are constant over "
        f"{statistics.images:,} evaluated images. "
    )
    return [RunWarning("constant_features", text + cause)]


def _majority(confusion: Counts) -> float:
    return float(confusion.sum(axis=1).max() / confusion.sum())


def significantly_above(correct: int, n: int, share: float) -> bool:
    """Whether the accuracy is significantly above `share` (one-sided binomial test)."""
    from scipy.special import bdtrc

    return correct > 0 and bool(bdtrc(correct - 1, n, share) <= LEVEL)
