"""Split conformal prediction (sets of labels with a coverage guarantee), and risk by coverage.

Sets: LAC (Sadinle et al., arXiv 1609.00451) with the finite-sample quantile of Vovk's split
conformal prediction: if the images of the thresholds and the new images are exchangeable, a set
holds the true label with at least the probability `level`, on average over both.
"""

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

# a threshold for each class if all have this multiple of `images_needed`: with fewer it is close to
# the largest score of the class, and sets grow
CLASS_FACTOR = 2


def images_needed(level: float) -> int:
    """Smallest number of images with which a set can hold the true label at `level`."""
    count = max(1, math.floor(level / (1 - level)) - 1)
    while _rank(count, level) > count:
        count += 1
    return count


def conformal_threshold(scores: Floats, level: float) -> float:
    """The threshold of the scores [N] of true labels: their quantile with rank ceil((N+1) level).

    ValueError with fewer than `images_needed(level)` scores.
    """
    rank = _rank(len(scores), level)
    if rank > len(scores):
        raise ValueError(f"{len(scores)} scores are too few for {level}")
    return float(np.sort(scores)[rank - 1])


def set_thresholds(probabilities: Floats, labels: Labels, level: float) -> tuple[Floats, bool]:
    """(thresholds [C] of 1 - probability, whether each class has its own).

    Of probabilities [N, C] and labels [N]. Classes have their own thresholds if each has
    CLASS_FACTOR * `images_needed(level)` images: the guarantee then holds for each class.
    """
    classes = probabilities.shape[1]
    scores = 1 - probabilities[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=classes)
    if counts.min() >= CLASS_FACTOR * images_needed(level):
        own = [conformal_threshold(scores[labels == c], level) for c in range(classes)]
        return np.array(own), True
    return np.full(classes, conformal_threshold(scores, level)), False


def prediction_sets(probabilities: Floats, thresholds: Floats) -> Mask:
    """Sets [N, C]: the classes whose 1 - probability is at most their threshold."""
    sets: Mask = 1 - probabilities <= thresholds
    return sets


def risk_coverage(confidence: Floats, right: Mask) -> tuple[Floats, Floats]:
    """(coverage [N], risk [N]): share of images answered, and share of errors among these.

    The most confident images are answered first; among equal confidences errors are spread evenly.
    Geifman and El-Yaniv, arXiv 1705.08500.
    """
    order = np.argsort(-confidence, kind="stable")
    _, group, sizes = np.unique(-confidence[order], return_inverse=True, return_counts=True)
    wrong = np.bincount(group, weights=~right[order])[group] / sizes[group]
    answered = np.arange(1, len(order) + 1)
    return answered / len(order), np.cumsum(wrong) / answered


def _rank(count: int, level: float) -> int:
    # 0.95 * 20 is above 19 by rounding
    return math.ceil((count + 1) * level - 1e-9)
