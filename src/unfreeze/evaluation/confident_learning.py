"""Confident learning: which labels are probably wrong, from out-of-fold probabilities.

Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels" (JAIR
2021, arXiv 1911.00068); `benchmarks/audit.py` compares its rankings. `probabilities` [N, K] must
come from models that were not trained on the image they judge; `labels` [N] are the given labels,
which may be wrong. The paper's letters: i is the given label, j the true one, t the thresholds, C
the confident joint, Q its calibrated form.
"""

import numpy as np
import numpy.typing as npt

Probabilities = npt.NDArray[np.floating]
Labels = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def self_confidence(probabilities: Probabilities, labels: Labels) -> Floats:
    """Probability of each image's given label, `[N]`."""
    return probabilities[np.arange(len(labels)), labels].astype(np.float64)


def class_thresholds(probabilities: Probabilities, labels: Labels) -> Floats:
    """t_j: mean probability of class j over the images labelled j, `[K]` (equation 2).

    Every class needs an image: ValueError otherwise.
    """
    classes = probabilities.shape[1]
    counts = np.bincount(labels, minlength=classes)
    if len(counts) > classes or not counts.all():
        raise ValueError("every class needs an image, and every label a class")
    totals = np.bincount(labels, self_confidence(probabilities, labels), classes)
    return np.asarray(totals / counts, np.float64)


def confident_classes(probabilities: Probabilities, labels: Labels) -> Integers:
    """The class of which each image is counted as an example, `[N]`; -1 for none (equation 1).

    Of the classes whose probability reaches their threshold, the most probable one; of equals the
    first. An image counts as an error if this is another class than its label.
    """
    reaches = probabilities >= class_thresholds(probabilities, labels)
    best = np.where(reaches, probabilities, -np.inf).argmax(axis=1)
    return np.where(reaches.any(axis=1), best, -1).astype(np.int64)


def confident_joint(probabilities: Probabilities, labels: Labels) -> Integers:
    """C `[K, K]`: number of images labelled i (row) that count as examples of j (column)."""
    classes, confident = probabilities.shape[1], confident_classes(probabilities, labels)
    counted = confident >= 0
    pairs = labels[counted] * classes + confident[counted]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes).astype(np.int64)


def calibrated_joint(joint: Integers, labels: Labels) -> Floats:
    """The confident joint n Q `[K, K]`, scaled so that each row sums to its label's images.

    Equation 3. A row without any counted image is put on its diagonal: no error is estimated.
    """
    counts = np.bincount(labels, minlength=len(joint)).astype(np.float64)
    rows = joint.astype(np.float64)
    empty = rows.sum(axis=1) == 0
    rows[empty, empty] = 1.0
    return np.asarray(rows / rows.sum(axis=1, keepdims=True) * counts[:, None], np.float64)


def estimated_errors(probabilities: Probabilities, labels: Labels) -> int:
    """Estimated number of wrong labels: the sum of n Q_ij over all i != j, rounded."""
    joint = calibrated_joint(confident_joint(probabilities, labels), labels)
    return round(float(joint.sum() - joint.trace()))


def suspicious_labels(probabilities: Probabilities, labels: Labels) -> Integers:
    """Positions of the images whose labels look wrong, lowest self-confidence first.

    As many images as `estimated_errors`, without those whose label is the most probable class; of
    equals the first. The paper prunes within each class or each pair of classes (section 3.2): with
    one order over all classes the first suspects held as many flipped labels or more (benchmark).
    """
    confidence = self_confidence(probabilities, labels)
    worst = np.argsort(confidence, kind="stable")[: estimated_errors(probabilities, labels)]
    listed: Integers = worst[confidence[worst] < probabilities[worst].max(axis=1)]
    return listed
