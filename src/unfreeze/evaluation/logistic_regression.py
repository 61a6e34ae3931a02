"""Multinomial logistic regression on features [N, D], regularised by cross-validation.

Features are centred and scaled before solving; the scaling is folded into the weights afterwards,
so that the result is a plain linear layer for the raw features. With fewer samples than features
the problem is solved in the span of the samples: the same solution (the weights of an
L2-regularised linear model are combinations of the samples) at a cost of N x N, not N x D.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from unfreeze.runtime.threads import one_thread

Positions = npt.NDArray[np.int64]
Folds = list[tuple[Positions, Positions]]

# values of scikit-learn's C, for features of mean squared norm 1
STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)
FOLDS = 5
CHOOSE_FROM = 5_000  # maximum number of samples in cross-validation
ONE_FOLD_FROM = 2 * 10**7  # multiplications of one pass, from which one fold of five is enough
ALIKE = 0.02  # relative deviation of the norms below which they count as equal (layer norm)
ITERATIONS = 300
TRIAL_TOLERANCE = 1e-6
TEMPERATURES = tuple(float(10**exponent) for exponent in np.linspace(-2, 1.5, 50))
THREADS_FROM = 10**7  # multiplications of one pass, below which one thread is faster
FLOAT64_BYTES = 2**28  # larger features stay in float32


@dataclass(frozen=True)
class FeatureScaling:
    """How features are scaled for the solver.

    `unit`: samples are normalised to equal norm for training, so that a few large ones do not
    dominate; predictions use the raw features. `shrinkage`: weight, in samples, of the common
    standard deviation against each feature's own (inf: one deviation for all features).
    """

    name: str
    unit: bool
    shrinkage: float


SCALINGS = (
    FeatureScaling("standardised, unit norm", unit=True, shrinkage=10),
    FeatureScaling("standardised", unit=False, shrinkage=10),
    FeatureScaling("centred, unit norm", unit=True, shrinkage=math.inf),
    FeatureScaling("centred", unit=False, shrinkage=math.inf),
)
# without cross-validation (e.g. one sample per class): best over six networks (docs/LOG.md)
DEFAULT = (SCALINGS[0].name, 10.0)


@dataclass(frozen=True)
class CrossValidated:
    """A scaling and a strength `C`, with cross-validated accuracy (0..1) and log loss (nats).

    The loss is computed at the `temperature` that fits the held-out scores best, as confidence
    says little about which layer is more accurate. `losses`: of each sample.
    """

    scaling: str
    strength: float
    accuracy: float
    loss: float
    temperature: float
    losses: npt.NDArray[np.float64] = field(repr=False, compare=False)

    def not_worse_than(self, other: "CrossValidated") -> bool:
        """Whether the mean loss is within one standard error of the other's (paired by sample)."""
        difference = self.losses - other.losses
        return float(difference.mean()) <= float(difference.std()) / math.sqrt(len(difference))


@dataclass(frozen=True)
class LogisticRegression:
    """A fitted linear layer: scores are `features @ weight.T + bias`.

    `weight` [C, D] and `bias` [C] are float32, for the raw features. `folds` is 0 without
    cross-validation; then `candidates` is empty.
    """

    weight: Tensor
    bias: Tensor
    scaling: str
    strength: float
    folds: int = 0
    candidates: tuple[CrossValidated, ...] = ()

    @property
    def chosen(self) -> CrossValidated | None:
        """The cross-validation result of the chosen scaling and strength."""
        key = (self.scaling, self.strength)
        return next((c for c in self.candidates if (c.scaling, c.strength) == key), None)


@dataclass(frozen=True)
class ScaledFeatures:
    """Scaled features, and the transformation back to raw features.

    `training` and `served` [N, R] are the samples as used for training and for prediction:
    coordinates of `(features - mean) / scale` in an orthonormal `basis` [D, R] (None: R = D).
    """

    training: Tensor
    served: Tensor
    mean: Tensor
    scale: Tensor
    basis: Tensor | None

    def layer(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weight [C, D] and bias [C] for raw features, from weight and bias for `training`."""
        full = weight if self.basis is None else weight @ self.basis.T
        folded = full / self.scale
        return folded.float(), (bias - folded @ self.mean).float()


def scale_features(features: Tensor, scaling: FeatureScaling) -> ScaledFeatures:
    """Centre and scale features [N, D] to a mean squared norm of 1.

    A feature that is always 0 gets no weight.
    """
    raw = features.to(torch.float64 if features.numel() * 8 <= FLOAT64_BYTES else torch.float32)
    values = raw
    if scaling.unit:
        norms = raw.norm(dim=1, keepdim=True)
        values = raw * (norms.mean() / norms.clamp_min(torch.finfo(raw.dtype).tiny))
    mean = values.mean(0)
    centred = values - mean
    variance = centred.square().mean(0)
    count, common = len(values), variance.mean()
    if not common > 0:  # all samples are equal
        return ScaledFeatures(centred, raw - mean, mean, torch.ones_like(mean), None)
    own_share = 0.0 if math.isinf(scaling.shrinkage) else count / (count + scaling.shrinkage)
    deviation = (own_share * variance + (1 - own_share) * common).sqrt()
    deviation = deviation * (variance / deviation.square()).sum().sqrt()
    training, served = centred / deviation, (raw - mean) / deviation
    if count >= training.shape[1]:
        return ScaledFeatures(training, served, mean, deviation, None)
    # singular vectors of the samples from their N x N Gram matrix
    squares, left = torch.linalg.eigh(training @ training.T)
    nonzero = squares > squares[-1] * torch.finfo(raw.dtype).eps * 10 * count
    basis = training.T @ (left[:, nonzero] / squares[nonzero].sqrt())
    return ScaledFeatures(training @ basis, served @ basis, mean, deviation, basis)


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    classes: int,
    *,
    class_weights: Sequence[float] = (),
    label_smoothing: float = 0.0,
    groups: Positions | None = None,
    seed: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> LogisticRegression | None:
    """Fit the linear layer; None if `stop` returned True.

    `features` [N, D] float, `labels` [N] int64. `class_weights`: loss weight of each class, () for
    equal weights. `label_smoothing`: as in torch's cross-entropy. `groups` [N]: samples of a group
    are in the same fold of the cross-validation that selects scaling and strength.
    """
    labels = labels.to(features.device)
    weights = torch.tensor(class_weights or [1.0] * classes, device=features.device)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(labels))[:CHOOSE_FROM])
    at = torch.from_numpy(chosen).to(features.device)
    folds = split_folds(labels[at].cpu().numpy(), None if groups is None else groups[chosen], seed)
    if features[at].numel() * classes > ONE_FOLD_FROM:
        folds = folds[:1]
    with one_thread(features.numel() * classes < THREADS_FROM and features.device.type == "cpu"):
        candidates: list[CrossValidated] = []
        for scaling in scalings_for(features) if folds else ():
            trial = LogisticProblem.of(
                scale_features(features[at], scaling), labels[at], weights, label_smoothing
            )
            candidates += trial.cross_validated(scaling.name, folds, stop)
        if stop():
            return None
        best = choose_candidate(candidates) if candidates else None
        name, strength = (best.scaling, best.strength) if best else DEFAULT
        scaled = scale_features(
            features, next(option for option in SCALINGS if option.name == name)
        )
        layer = LogisticProblem.of(scaled, labels, weights, label_smoothing).solve(strength)
    return LogisticRegression(
        *scaled.layer(*layer), name, strength, folds=len(folds), candidates=tuple(candidates)
    )


def scalings_for(features: Tensor) -> tuple[FeatureScaling, ...]:
    """The scalings to try: normalising to equal norm is skipped where norms are equal already."""
    norms = features.float().norm(dim=1)
    equal_norms = bool(norms.std() <= ALIKE * norms.mean())
    return tuple(scaling for scaling in SCALINGS if not (equal_norms and scaling.unit))


@dataclass(frozen=True)
class LogisticProblem:
    """L2-regularised log loss of samples [N, R], for any strength and subset of samples.

    `weights` [C]: loss weight of each class.
    """

    training: Tensor
    served: Tensor
    labels: Tensor
    weights: Tensor
    label_smoothing: float

    @classmethod
    def of(
        cls, scaled: ScaledFeatures, labels: Tensor, weights: Tensor, label_smoothing: float
    ) -> "LogisticProblem":
        """Build from scaled features."""
        weights = weights.to(scaled.training.dtype)
        return cls(scaled.training, scaled.served, labels, weights, label_smoothing)

    def subset(self, rows: Positions) -> "LogisticProblem":
        """The problem restricted to these samples."""
        index = torch.from_numpy(rows).to(self.labels.device)
        return LogisticProblem(
            self.training[index],
            self.served[index],
            self.labels[index],
            self.weights,
            self.label_smoothing,
        )

    def solve(
        self, strength: float, start: Tensor | None = None, tolerance: float = 1e-10
    ) -> tuple[Tensor, Tensor]:
        """Minimise with L-BFGS from `start` [C, R + 1] or 0; returns weight [C, R] and bias [C]."""
        from scipy.optimize import minimize

        values, shape = self.training, (len(self.weights), self.training.shape[1] + 1)
        sample_weights = self.weights[self.labels][:, None]  # weight of each sample
        total = float(sample_weights.sum())
        sample_weights = sample_weights / total
        smoothing = self.label_smoothing / len(self.weights)
        target = torch.full((len(values), shape[0]), smoothing).to(values)
        target[torch.arange(len(values)), self.labels] += 1 - self.label_smoothing

        def objective(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
            layer = torch.from_numpy(flat.reshape(shape)).to(values)
            weight, bias = layer[:, :-1], layer[:, -1]
            scores = torch.addmm(bias, values, weight.T).log_softmax(1)
            loss = -(target * scores * sample_weights).sum() + weight.square().sum() / (
                2 * strength * total
            )
            error = (scores.exp() - target) * sample_weights
            gradient = torch.cat(
                [error.T @ values + weight / (strength * total), error.sum(0)[:, None]], 1
            )
            return float(loss), gradient.double().cpu().numpy().ravel()

        initial = np.zeros(shape) if start is None else start.double().cpu().numpy()
        result = minimize(
            objective,
            initial.ravel(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": ITERATIONS, "ftol": tolerance, "gtol": 1e-7},
        )
        layer = torch.from_numpy(result.x.reshape(shape)).to(values)
        return layer[:, :-1], layer[:, -1]

    def cross_validated(
        self, scaling: str, folds: Folds, stop: Callable[[], bool]
    ) -> list[CrossValidated]:
        """Evaluate every strength on all held-out samples; [] if `stop` returned True."""
        scores_by_strength: list[list[Tensor]] = [[] for _ in STRENGTHS]
        truth = []
        for training, test in folds:
            # a class without training samples cannot be predicted
            trained = torch.isin(self.labels[test], self.labels[training]).cpu().numpy()
            train, validation = self.subset(training), self.subset(test[trained])
            truth.append(validation.labels)
            start = None
            for index, strength in enumerate(STRENGTHS):
                if stop():
                    return []
                weight, bias = train.solve(strength, start, TRIAL_TOLERANCE)
                start = torch.cat([weight, bias[:, None]], 1)
                scores_by_strength[index].append(functional.linear(validation.served, weight, bias))
        labels = torch.cat(truth)
        return [
            evaluate_candidate(scaling, strength, torch.cat(scores), labels)
            for strength, scores in zip(STRENGTHS, scores_by_strength, strict=True)
        ]


def evaluate_candidate(
    scaling: str, strength: float, scores: Tensor, labels: Tensor
) -> CrossValidated:
    """Candidate from held-out scores [N, C], at the temperature with the lowest log loss."""
    losses = [functional.cross_entropy(scores / t, labels, reduction="none") for t in TEMPERATURES]
    best = min(range(len(losses)), key=lambda index: float(losses[index].mean()))
    return CrossValidated(
        scaling,
        strength,
        accuracy=float((scores.argmax(1) == labels).double().mean()),
        loss=float(losses[best].mean()),
        temperature=TEMPERATURES[best],
        losses=losses[best].double().cpu().numpy(),
    )


def choose_candidate(candidates: Sequence[CrossValidated]) -> CrossValidated:
    """The weakest regularisation within one standard error of the lowest log loss.

    With few samples the lowest loss often belongs to an over-regularised layer.
    """
    best = min(candidates, key=lambda c: c.loss)
    equals = [c for c in candidates if c.not_worse_than(best)]
    return max(equals, key=lambda c: (c.strength, -c.loss))


def split_folds(
    labels: npt.NDArray[np.int64], groups: Positions | None = None, seed: int = 0
) -> Folds:
    """Stratified folds as (training, held-out) positions; [] if classes are too small.

    Groups are never split. The number of folds is the number of samples (or groups) of the median
    class, at most 5.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    units = np.arange(len(labels)) if groups is None else groups
    sizes = [len(np.unique(units[labels == label])) for label in np.unique(labels)]
    count = min(FOLDS, int(np.median(sizes)))
    if count < 2 or len(sizes) < 2:
        return []
    splitter_class = StratifiedKFold if groups is None else StratifiedGroupKFold
    splitter = splitter_class(n_splits=count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # a class with fewer samples than folds is held out in fewer folds, which is fine
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        folds = list(splitter.split(labels, labels, groups))
    return folds


def out_of_fold_probabilities(
    features: Tensor,
    labels: Tensor,
    classes: int,
    folds: Folds,
    groups: Positions,
    *,
    scaling: str = DEFAULT[0],
    strength: float = DEFAULT[1],
) -> npt.NDArray[np.float64]:
    """Probabilities [N, C] of each sample, by a layer that was not fitted on it or on its group.

    `features` [N, D], `labels` [N] int64; `folds`: (training, held-out) positions. `scaling` and
    `strength` are not chosen by the labels, so that no label has a part in its own sample's
    probabilities. ValueError unless each sample is held out once, and each group of `groups` [N]
    is on one side of every fold.
    """
    held_out = np.sort(np.concatenate([test for _, test in folds]))
    if not np.array_equal(held_out, np.arange(len(labels))):
        raise ValueError("every sample must be held out once")
    if any(np.isin(groups[test], groups[training]).any() for training, test in folds):
        raise ValueError("a group is on both sides of a fold")
    option = next(option for option in SCALINGS if option.name == scaling)
    probabilities = np.zeros((len(labels), classes))
    with one_thread(features.numel() * classes < THREADS_FROM):
        for training, test in folds:
            at = torch.from_numpy(training)
            scaled = scale_features(features[at], option)
            problem = LogisticProblem.of(scaled, labels[at], torch.ones(classes), 0.0)
            weight, bias = scaled.layer(*problem.solve(strength))
            scores = functional.linear(features[torch.from_numpy(test)].float(), weight, bias)
            probabilities[test] = scores.double().softmax(dim=1).numpy()
    return probabilities


Array = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def linear_accuracy(
    features: Array, labels: Labels, queries: Array, truth: Labels, *, C: float = 1.0
) -> float:
    """Accuracy 0..1 on `queries` `[M, D]` of logistic regression trained on `features` `[N, D]`.

    Features are standardised with the mean and standard deviation of the training features.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000))
    return float(model.fit(features, labels).score(queries, truth))
