"""Out-of-distribution scores of images: higher for images unlike those of training.

Three measures: the distance to the k-th nearest training image (Sun et al., arXiv 2204.06507),
relative Mahalanobis distance (Ren et al., arXiv 2106.09022) and the energy of the logits (Liu et
al., arXiv 2010.03759). Energy can be low for images of another kind altogether, and classes alike
are near each other: a score is the distance alone, or the larger of the distance and another
measure, each in units of its spread over validation images. Which one: see `choose_score`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

KNN, ENERGY, MAHALANOBIS = "knn", "energy", "mahalanobis"
CANDIDATES = ((KNN,), (KNN, MAHALANOBIS), (KNN, ENERGY))
NEIGHBOURS = 10  # at most; fewer for classes of few images
DIRECTIONS = 64  # principal components of the Mahalanobis distance, at most
LEFT_OUT = 5  # classes left out in turn, at most
ROWS = 1024  # distances computed at once
CHOOSE_FROM = 1_000  # training images of the choice, at most: each left-out class fits a classifier


def knn_distance(features: Floats, known: Floats, k: int) -> Floats:
    """Distance [N] of features [N, D] to their k-th nearest of `known` [M, D], all of norm 1."""
    known = _unit(known)
    parts = [np.zeros(0, np.float32)]
    for start in range(0, len(features), ROWS):
        cosines = _unit(features[start : start + ROWS]) @ known.T
        kth = -np.partition(-cosines, k - 1, axis=1)[:, k - 1]
        parts.append(np.sqrt(np.maximum(0, 2 - 2 * kth)))
    return np.concatenate(parts)


def energy(logits: Floats) -> Floats:
    """Energy [N] of logits [N, C]: -log of the sum of their exponentials."""
    value: Floats = -np.logaddexp.reduce(logits.astype(np.float32), axis=1)
    return value


@dataclass(frozen=True)
class RelativeMahalanobis:
    """Distance to the nearest class, less the distance to all images together.

    In the `directions` [P, D] of most variance around `centre` [D]. `means` [C, P] of the classes;
    `within`, `overall` [P, P]: inverse covariances (Ledoit-Wolf) around the means, and of all.
    """

    centre: Floats
    directions: Floats
    means: Floats
    within: Floats
    overall: Floats

    @classmethod
    def fit(cls, features: Floats, labels: Labels) -> "RelativeMahalanobis | None":
        """From training images; None without two images of one class."""
        from sklearn.covariance import LedoitWolf
        from sklearn.decomposition import PCA

        count = min(DIRECTIONS, len(features) // 2, features.shape[1])
        if count < 1:
            return None
        pca = PCA(count, svd_solver="randomized", random_state=0).fit(features)
        points = pca.transform(features)
        _, own = np.unique(labels, return_inverse=True)
        means = np.stack([points[own == c].mean(axis=0) for c in range(own.max() + 1)])
        around = points - means[own]
        if not np.abs(around).max() > 1e-6 * np.abs(points).max():
            return None
        inverses = (LedoitWolf().fit(values).precision_ for values in (around, points))
        arrays = (pca.mean_, pca.components_, means, *inverses)
        return cls(*(np.asarray(array, np.float32) for array in arrays))

    def __call__(self, features: Floats) -> Floats:
        """Scores [N] of features [N, D]."""
        points: Floats = ((features - self.centre) @ self.directions.T).astype(np.float32)
        nearest = np.min([_squared(points - mean, self.within) for mean in self.means], axis=0)
        scores: Floats = nearest - _squared(points, self.overall)
        return scores


def neighbours(labels: Labels) -> int:
    """k: half of the median class, so that neighbours can be of one class; 1 to NEIGHBOURS."""
    counts = np.bincount(labels)
    return int(np.clip(np.median(counts[counts > 0]) // 2, 1, NEIGHBOURS))


def auroc(inside: Floats, outside: Floats) -> float:
    """Probability that a score of `outside` is above one of `inside`; ties count half."""
    from sklearn.metrics import roc_auc_score

    truth = np.repeat([0, 1], [len(inside), len(outside)])
    return float(roc_auc_score(truth, np.concatenate([inside, outside])))


def joined(measures: Mapping[str, Floats], units: Mapping[str, tuple[float, float]]) -> Floats:
    """The largest of the measures [N], each less its centre and divided by its spread."""
    scaled = [(measures[name] - units[name][0]) / units[name][1] for name in units]
    largest: Floats = np.max(scaled, axis=0)
    return largest


def units_of(
    measures: Mapping[str, Floats], names: tuple[str, ...]
) -> dict[str, tuple[float, float]]:
    """Centre (median) and spread (to the 84 % quantile) of each named measure."""
    units = {}
    for name in names:
        middle, upper = np.quantile(measures[name].astype(np.float64), (0.5, 0.84))
        units[name] = (float(middle), float(max(upper - middle, 1e-6)))
    return units


@dataclass(frozen=True)
class ScoreChoice:
    """The measures of the score, and its k; `auroc`: of each candidate, over `left_out` classes."""

    measures: tuple[str, ...]
    k: int
    auroc: dict[str, float] = field(default_factory=dict)
    left_out: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The measures in one word, as in `auroc`."""
        return "+".join(self.measures)


def choose_score(
    train: Floats, labels: Labels, held: Floats, held_labels: Labels, *, seed: int = 0
) -> ScoreChoice:
    """The candidate that best tells images of a class that was left out of training.

    `train` [M, D], `held` [N, D]: features of training and validation images. In turn, up to
    LEFT_OUT classes are left out: their validation images are out of distribution, those of the
    other classes are not. Energies are those of logistic regression on the other classes. Needs
    three classes with validation images; with fewer the score is the distance.
    """
    k = neighbours(labels)
    classes = np.intersect1d(labels, held_labels)
    if len(classes) < 3:
        return ScoreChoice((KNN,), k)
    rng = np.random.default_rng(seed)
    left_out = np.sort(rng.permutation(classes)[:LEFT_OUT])
    some = np.sort(rng.permutation(len(train))[:CHOOSE_FROM])
    train, labels = train[some], labels[some]
    found: dict[tuple[str, ...], list[float]] = {names: [] for names in CANDIDATES}
    used = []
    for left in left_out.tolist():
        rest, outside = labels != left, held_labels == left
        if len(np.unique(labels[rest])) < 2 or rest.sum() < k:
            continue
        used.append(left)
        measures = measures_of(train[rest], labels[rest], held, k)
        inside = {name: values[~outside] for name, values in measures.items()}
        for names in list(found):
            if not set(names) <= set(measures):
                del found[names]
                continue
            scores = joined(measures, units_of(inside, names))
            found[names].append(auroc(scores[~outside], scores[outside]))
    if not used:
        return ScoreChoice((KNN,), k)
    means = {names: float(np.mean(values)) for names, values in found.items()}
    best = max(means, key=lambda names: means[names])  # the distance if they are equal
    return ScoreChoice(best, k, {"+".join(n): m for n, m in means.items()}, tuple(used))


def measures_of(train: Floats, labels: Labels, queries: Floats, k: int) -> dict[str, Floats]:
    """Each measure [N] of the features `queries` [N, D]."""
    measures = {
        KNN: knn_distance(queries, train, k),
        ENERGY: energy(_logits(train, labels, queries)),
    }
    mahalanobis = RelativeMahalanobis.fit(train, labels)
    if mahalanobis is not None:
        measures[MAHALANOBIS] = mahalanobis(queries)
    return measures


def _logits(train: Floats, labels: Labels, queries: Floats) -> Floats:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # the mean squared norm of standardised features is their number
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=1 / train.shape[1], max_iter=200, tol=1e-3)
    )
    decision = model.fit(train, labels).decision_function(queries)
    # two classes have one column: the log-odds
    both = np.stack([np.zeros(len(queries)), decision], 1) if decision.ndim == 1 else decision
    return np.asarray(both, np.float32)


def _squared(points: Floats, inverse: Floats) -> Floats:
    squared: Floats = np.einsum("nd,de,ne->n", points, inverse, points)
    return squared


def _unit(features: Floats) -> Floats:
    """Features [N, D] with norm 1; zeros stay zeros."""
    features = features.astype(np.float32)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    scaled: Floats = features / np.maximum(norms, np.finfo(np.float32).tiny)
    return scaled
