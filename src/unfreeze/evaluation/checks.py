"""What must not go unnoticed in a run's numbers: pure checks over what was measured or written.

Each check returns warnings with what happened, the likely cause and a next step, and none where the
numbers could as well be those of a healthy run: thresholds are tests at a stated level, so that a
few images, of which almost nothing is certain, raise nothing.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unfreeze.data.dataset_warnings import Cropped
from unfreeze.evaluation.warnings import RunWarning
from unfreeze.runtime.console import told, worded

LEVEL = 0.05  # of every test: how often a healthy run may raise the warning, at most
USEFUL = 0.25  # of the way from guessing to perfect: a classifier that gets so far is useful
POOR = 0.5  # recall of a class, below which a classifier does not work for it
NEAR = 0.02  # share of ln K: within this, a loss is at ln K
# one image is more than 5 points of accuracy, and the 95 % interval at .5 is wider than +-20 points
FEW = 20
ABOVE = 1.1  # times ln K: a loss that is worse than guessing, whatever the noise
RISE, NOISE = 0.25, 5.0  # see `_risen`
TREND = 5  # epochs, below which no order of them is improbable enough
SAME = 1e-3  # spread of unit features (1: even in all directions) at which they are one point
DEAD = 0.5  # share of the feature dimensions
RARE = 0.05  # share of images in which a dimension must be alive to count as alive
FEW_STEPS = 50
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Training:
    """Mean training loss of each epoch; of the last one the images and the hits; all steps."""

    losses: tuple[float, ...]
    correct: int
    images: int
    steps: int


@dataclass(frozen=True)
class FeatureStatistics:
    """What a network's features are over some images.

    `spread`: standard deviation of unit features a dimension, times the root of `width`; 1 is even
    in all directions, 0 the same for every image. `dead`: dimensions with one value for all.
    """

    images: int
    width: int
    spread: float
    dead: int


def training(records: Iterable[Mapping[str, Any]]) -> Training | None:
    """From the lines of metrics.jsonl; None where nothing was trained."""
    lines = [r for r in records if r.get("split") == "train" and r.get("total")]
    if not lines:
        return None
    epochs: dict[int, list[Mapping[str, Any]]] = {}
    for line in lines:
        epochs.setdefault(line["epoch"], []).append(line)
    losses = [
        sum(line["loss"] * line["total"] for line in some) / sum(line["total"] for line in some)
        for some in epochs.values()
    ]
    last = epochs[max(epochs)]
    return Training(
        tuple(losses),
        sum(int(line["correct"]) for line in last),
        sum(int(line["total"]) for line in last),
        int(lines[-1]["step"]),
    )


def nothing_learned(
    classes: int,
    trained: Training | None,
    confusion: Counts | None,
    loss: float | None,
    *,
    majority: float = 0.0,
    best_epoch: int | None = None,
    lr: float | None = None,
    frozen: bool = False,
    solved: bool = False,
) -> list[RunWarning]:
    """`nothing_learned`: the loss is at ln K (or above), and no accuracy is above guessing.

    `confusion`, `loss`: of the images that judge, None where there are none. `majority`: share of
    the largest class among the training images. Without `trained`, where only a model is there,
    the loss of the judging images must be ln K itself. `frozen`: the head alone learned, or was
    `solved`.
    """
    chance = math.log(classes)
    if trained is not None:
        at, what = trained.losses[-1], "training loss"
        stuck = at >= (1 - NEAR) * chance
        stuck &= not above(trained.correct, trained.images, majority)
    elif loss is not None:
        at, what = loss, "loss"
        stuck = abs(at - chance) <= NEAR * chance
    else:
        return []
    if confusion is not None and confusion.sum():
        stuck &= not above(int(confusion.trace()), int(confusion.sum()), _majority(confusion))
    if not stuck:
        return []
    said = f"The network learned nothing: the {what} is {at:.3f}, and guessing gives ln {classes} "
    said += f"= {chance:.3f}"
    if best_epoch == 0 and trained is not None and len(trained.losses) > 1:
        said += f"; the best of {len(trained.losses)} epochs is the first"
    few = trained is not None and trained.steps < FEW_STEPS and not solved
    why = _why_nothing(trained, lr=lr, few=few, frozen=frozen)
    return [RunWarning("nothing_learned", f"{said}. {why}")]


def _why_nothing(trained: Training | None, *, lr: float | None, few: bool, frozen: bool) -> str:
    if lr == 0:
        return "The learning rate is 0. Leave out --lr, or give one above 0."
    if trained is None:
        return (
            "The features probably do not separate these classes, or training failed: check the "
            "report of the run, and try other --weights."
        )
    if few:
        return f"{worded(trained.steps, 'step is', 'steps are')} probably too few: raise --epochs."
    if frozen:
        return (
            "The frozen features probably do not separate these classes: try other --weights, or "
            "--freeze none."
        )
    return (
        "The learning rate probably does not suit this network: try --find-lr, or start from "
        "pretrained --weights."
    )


def predictions(confusion: Counts, names: Sequence[str]) -> list[RunWarning]:
    """`one_class`, `class_never_predicted` and `majority_accuracy`, from truth x prediction."""
    if not confusion.sum():
        return []
    truth, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    if (predicted > 0).sum() == 1:
        found = _one_class(truth, int(predicted.argmax()), names)
    else:
        found = _never_predicted(truth, predicted, names)
    return found + _majority_accuracy(confusion, names)


def _one_class(truth: Counts, only: int, names: Sequence[str]) -> list[RunWarning]:
    others = int(truth.sum() - truth[only])
    # of a poor but working classifier each of them is taken for `only` half of the time at most
    if POOR**others > LEVEL:
        return []
    said = (
        f"All {int(truth.sum()):,} images are predicted as {told(names[only])!r}, although "
        f"{others:,} have another label. Training probably failed (learning rate too high, dead "
        "features), or one class outnumbers the others: try a lower --lr, and --class-weights "
        "balanced."
    )
    return [RunWarning("one_class", said)]


def _never_predicted(truth: Counts, predicted: Counts, names: Sequence[str]) -> list[RunWarning]:
    there = int((truth > 0).sum())
    # of so many classes one may be missed by chance: the level is shared among them
    never = [
        place
        for place in np.flatnonzero((truth > 0) & (predicted == 0)).tolist()
        if POOR ** int(truth[place]) <= LEVEL / there
    ]
    if not never:
        return []
    some = ", ".join(
        f"{told(names[place])!r} ({int(truth[place]):,} images)" for place in never[:5]
    )
    more = f" and {len(never) - 5:,} more" if len(never) > 5 else ""
    said = (
        f"{worded(len(never), 'class is', 'classes are')} never predicted: {some}{more}. There are "
        "probably too few training images of it, or its labels are mixed up with another class: "
        "check the confusion matrix in the report, and try --sampling balanced."
    )
    return [RunWarning("class_never_predicted", said)]


def _majority_accuracy(confusion: Counts, names: Sequence[str]) -> list[RunWarning]:
    n, correct = int(confusion.sum()), int(confusion.trace())
    truth = confusion.sum(axis=1)
    share, there = _majority(confusion), truth > 0
    if there.sum() < 2 or above(correct, n, share):
        return []
    from scipy.special import bdtr

    useful = share + USEFUL * (1 - share)
    if bdtr(correct, n, useful) > LEVEL:
        return []  # so few images, or so near to it, that it may be useful all the same
    recalls = confusion.diagonal()[there] / truth[there]
    chance = 1 / int(there.sum())
    if recalls.mean() > chance + USEFUL * (1 - chance):
        return []  # it tells the small classes from the large one, at the cost of some hits
    largest = told(names[int(truth.argmax())])
    said = (
        f"Accuracy on {n:,} images is {correct / n:.3f}, and always predicting {largest!r} would "
        f"give {share:.3f}. The model learned little or nothing that separates the classes: check "
        "balanced accuracy and the labels, and try --class-weights balanced or other --weights."
    )
    return [RunWarning("majority_accuracy", said)]


def diverging(classes: int, losses: Sequence[float], images: int) -> list[RunWarning]:
    """`diverging`: the mean training loss of the epochs, over `images` each, rose."""
    if len(losses) < 2:
        return []
    chance, first, last = math.log(classes), losses[0], losses[-1]
    low, high = min(losses[:-1]), max(losses)
    lost = last > ABOVE * chance and (_risen(low, last, images) or _risen(first, high, images))
    if not lost and not (_risen(first, last, images) and _rising(losses)):
        return []
    said = (
        f"The training loss rose: {_sequence(losses)} over {len(losses)} epochs (guessing gives "
        f"{chance:.3f}). The learning rate is probably too high: try --lr at a tenth, --find-lr, "
        "or --warmup-epochs."
    )
    return [RunWarning("diverging", said)]


def _risen(before: float, after: float, images: int) -> bool:
    """Whether a mean loss over `images` rose by more than it scatters.

    Losses scatter about as much as they are large, so a mean of n of them by 1/sqrt(n) of itself.
    NOISE of that is 3.5 deviations of a difference, enough for the largest of many epochs.
    """
    return after > before * (1 + max(RISE, NOISE / math.sqrt(max(images, 1))))


def _rising(losses: Sequence[float]) -> bool:
    """Whether later epochs have higher losses, by Kendall's rank test."""
    if len(losses) < TREND:
        return False
    from scipy.stats import kendalltau

    found = kendalltau(range(len(losses)), losses, alternative="greater")
    return bool(found.pvalue < LEVEL / TREND)


def _sequence(losses: Sequence[float]) -> str:
    """First, lowest, highest and last, in their order."""
    places = {0, losses.index(min(losses)), losses.index(max(losses)), len(losses) - 1}
    return " -> ".join(f"{losses[place]:.3g}" for place in sorted(places))


def cropped_warning(cropped: Cropped | None) -> list[RunWarning]:
    """`cropped_away`: many images are much wider or taller than what the network sees."""
    if cropped is None or cropped.warning is None:
        return []
    return [RunWarning("cropped_away", cropped.warning)]


def few_validation_images(n: int, *, choose: bool) -> list[RunWarning]:
    """`few_validation_images`: fewer than FEW are held out; none where nothing is.

    `choose`: whether they pick the epoch, too.
    """
    if not 0 < n < FEW:
        return []
    so = "the best epoch is mostly chance" if choose else "the validation accuracy is unreliable"
    said = (
        f"{worded(n, 'validation image', 'validation images')}: each is worth "
        f"{100 / n:.0f} points of accuracy, so {so}. Label more images, raise --val, or use "
        "--folds for cross-validation."
    )
    return [RunWarning("few_validation_images", said)]


def leakage(
    leaked: int | None, n: int, split: str, accuracy: float | None, unleaked: float | None
) -> list[RunWarning]:
    """`leakage`: of the `n` images that judge some have a duplicate among the training images.

    `accuracy` on all of them, `unleaked` on the others; None where it is not known yet.
    """
    if not leaked:
        return []
    what = (
        f"{leaked:,} of {n:,} images of {split}" if leaked < n else f"All {n:,} images of {split}"
    )
    said = f"{what} are duplicates or near-duplicates of training images (data leakage)"
    if leaked == n:
        said += ": accuracy on new images is not measured. "
    elif accuracy is not None and unleaked is not None:
        said += f": accuracy is {accuracy:.3f} with them and {unleaked:.3f} without. "
    else:
        said += ": the accuracy on them is too high. "
    said += (
        "`unfreeze scan DATA` lists each pair (across splits): remove one image of each from its "
        "split."
    )
    return [RunWarning("leakage", said)]


def constant_features(found: FeatureStatistics | None) -> list[RunWarning]:
    """`constant_features`: the network gives the same features for every image, or for too much.

    A dimension is dead where it has one value for all images; only where so many were seen that a
    dimension that is alive in RARE of the images would have shown it.
    """
    if found is None or found.images < 2:
        return []
    cause = (
        "The weights are probably damaged, of another network, or from a collapsed training run: "
        "check them with `unfreeze inspect`, and try other --weights."
    )
    if found.spread < SAME:
        said = f"The features are the same for all {found.images:,} evaluated images. "
        return [RunWarning("constant_features", said + cause)]
    enough = found.width * (1 - RARE) ** found.images <= LEVEL
    if not enough or found.dead < DEAD * found.width:
        return []
    said = (
        f"{found.dead:,} of {found.width:,} feature dimensions are constant over "
        f"{found.images:,} evaluated images. "
    )
    return [RunWarning("constant_features", said + cause)]


def _majority(confusion: Counts) -> float:
    return float(confusion.sum(axis=1).max() / confusion.sum())


def above(correct: int, n: int, share: float) -> bool:
    """Whether more are right than an answer would have that is right with probability `share`."""
    from scipy.special import bdtrc

    return correct > 0 and bool(bdtrc(correct - 1, n, share) <= LEVEL)
