"""Multinomial logistic regression on features [N, D], chosen by cross-validation.

Features are centred and scaled first, and that is folded into the weights afterwards, so that what
comes out is a plain linear layer for the features as they are. With fewer samples than features the
problem is solved in the space that the samples span: the same solution (the weights of an
L2-regularised linear model are combinations of the samples), at the price of N x N, not N x D.
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

# scikit-learn's C, for features of mean square norm 1: from nearly no weights to nearly no penalty
STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)
FOLDS = 5
CHOOSE_FROM = 5_000  # samples that cross-validation looks at, at most
ONE_FOLD_FROM = 2 * 10**7  # multiplications of one pass, from which one fold of five tells enough
ALIKE = 0.02  # deviation of norms, as a share of their mean, as behind a layer norm
ITERATIONS = 300
TRIAL_TOLERANCE = 1e-6
TEMPERATURES = tuple(float(10**exponent) for exponent in np.linspace(-2, 1.5, 50))
THREADS_FROM = 10**7  # multiplications of one pass, below which a second thread only waits
FLOAT64_BYTES = 2**28  # features above this are kept in float32


@dataclass(frozen=True)
class Scaling:
    """How features are scaled for the solver.

    `unit`: samples are brought to one norm for training, so that a few long ones do not decide;
    predictions are made from the features as they are. `shrinkage`: how many samples the common
    deviation counts as, beside a feature's own (inf: one deviation for all features).
    """

    name: str
    unit: bool
    shrinkage: float


SCALINGS = (
    Scaling("standardised, unit norm", unit=True, shrinkage=10),
    Scaling("standardised", unit=False, shrinkage=10),
    Scaling("centred, unit norm", unit=True, shrinkage=math.inf),
    Scaling("centred", unit=False, shrinkage=math.inf),
)
# without cross-validation, as with one sample a class: best over six networks (docs/LOG.md)
DEFAULT = (SCALINGS[0].name, 10.0)


@dataclass(frozen=True)
class Candidate:
    """A scaling and a strength `C`, with cross-validated accuracy (0..1) and log loss (nats).

    The loss is that at the `temperature` that suits the held-out scores best: how certain the
    scores are says little about which of the layers is right more often. `losses`: of each sample.
    """

    scaling: str
    strength: float
    accuracy: float
    loss: float
    temperature: float
    losses: npt.NDArray[np.float64] = field(repr=False, compare=False)

    def not_worse_than(self, other: "Candidate") -> bool:
        """Whether its mean loss is within one standard error of the other's, image by image."""
        difference = self.losses - other.losses
        return float(difference.mean()) <= float(difference.std()) / math.sqrt(len(difference))


@dataclass(frozen=True)
class LogisticRegression:
    """A fitted linear layer: scores are `features @ weight.T + bias`.

    `weight` [C, D] and `bias` [C] are float32, for the features as they came. `folds` is 0 where
    nothing could be cross-validated; then `candidates` is empty.
    """

    weight: Tensor
    bias: Tensor
    scaling: str
    strength: float
    folds: int = 0
    candidates: tuple[Candidate, ...] = ()

    @property
    def chosen(self) -> Candidate | None:
        """The cross-validation result of what was taken."""
        taken = (self.scaling, self.strength)
        return next((c for c in self.candidates if (c.scaling, c.strength) == taken), None)


@dataclass(frozen=True)
class Scaled:
    """Features as the solver sees them, and the way back.

    `training` and `served` [N, R] are the samples as they are trained on and as they come in a
    prediction: coordinates in an orthonormal `basis` [D, R] (None: R = D) of
    `(features - mean) / scale`.
    """

    training: Tensor
    served: Tensor
    mean: Tensor
    scale: Tensor
    basis: Tensor | None

    def layer(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weight [C, D] and bias [C] for the raw features, from those for `training`."""
        full = weight if self.basis is None else weight @ self.basis.T
        folded = full / self.scale
        return folded.float(), (bias - folded @ self.mean).float()


def scale(features: Tensor, scaling: Scaling) -> Scaled:
    """Centre and scale features [N, D] so that their mean square norm is 1.

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
    if not common > 0:  # all samples are the same
        return Scaled(centred, raw - mean, mean, torch.ones_like(mean), None)
    own = 0.0 if math.isinf(scaling.shrinkage) else count / (count + scaling.shrinkage)
    deviation = (own * variance + (1 - own) * common).sqrt()
    deviation = deviation * (variance / deviation.square()).sum().sqrt()
    training, served = centred / deviation, (raw - mean) / deviation
    if count >= training.shape[1]:
        return Scaled(training, served, mean, deviation, None)
    # the samples' singular vectors by their N x N products
    squares, left = torch.linalg.eigh(training @ training.T)
    kept = squares > squares[-1] * torch.finfo(raw.dtype).eps * 10 * count
    basis = training.T @ (left[:, kept] / squares[kept].sqrt())
    return Scaled(training @ basis, served @ basis, mean, deviation, basis)


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
    """Solve for the linear layer; None where `stop` said so before the end.

    `features` [N, D] float, `labels` [N] int64. `class_weights`: what a sample of each class counts
    in the loss, () where all count the same. `label_smoothing`: share of each label that is spread
    over all classes. `groups` [N]: samples that stay together in cross-validation, by which
    `choose` takes scaling and strength.
    """
    labels = labels.to(features.device)
    weights = torch.tensor(class_weights or [1.0] * classes, device=features.device)
    some = np.sort(np.random.default_rng(seed).permutation(len(labels))[:CHOOSE_FROM])
    at = torch.from_numpy(some).to(features.device)
    folds = split_folds(labels[at].cpu().numpy(), None if groups is None else groups[some], seed)
    if features[at].numel() * classes > ONE_FOLD_FROM:
        folds = folds[:1]
    with one_thread(features.numel() * classes < THREADS_FROM and features.device.type == "cpu"):
        candidates: list[Candidate] = []
        for scaling in scalings_for(features) if folds else ():
            trial = Problem.of(scale(features[at], scaling), labels[at], weights, label_smoothing)
            candidates += trial.cross_validated(scaling.name, folds, stop)
        if stop():
            return None
        best = choose(candidates) if candidates else None
        name, strength = (best.scaling, best.strength) if best else DEFAULT
        scaled = scale(features, next(one for one in SCALINGS if one.name == name))
        layer = Problem.of(scaled, labels, weights, label_smoothing).solve(strength)
    return LogisticRegression(
        *scaled.layer(*layer), name, strength, folds=len(folds), candidates=tuple(candidates)
    )


def scalings_for(features: Tensor) -> tuple[Scaling, ...]:
    """All that differ: where norms are alike, bringing them to one changes nothing."""
    norms = features.float().norm(dim=1)
    alike = bool(norms.std() <= ALIKE * norms.mean())
    return tuple(one for one in SCALINGS if not (alike and one.unit))


@dataclass(frozen=True)
class Problem:
    """The L2-regularised log loss of samples [N, R], for any strength and subset of samples.

    `weights` [C]: what a sample of each class counts.
    """

    training: Tensor
    served: Tensor
    labels: Tensor
    weights: Tensor
    label_smoothing: float

    @classmethod
    def of(
        cls, scaled: Scaled, labels: Tensor, weights: Tensor, label_smoothing: float
    ) -> "Problem":
        """The problem of scaled features."""
        weights = weights.to(scaled.training.dtype)
        return cls(scaled.training, scaled.served, labels, weights, label_smoothing)

    def subset(self, rows: Positions) -> "Problem":
        """The same with these samples alone."""
        at = torch.from_numpy(rows).to(self.labels.device)
        return Problem(
            self.training[at], self.served[at], self.labels[at], self.weights, self.label_smoothing
        )

    def solve(
        self, strength: float, start: Tensor | None = None, tolerance: float = 1e-10
    ) -> tuple[Tensor, Tensor]:
        """Weight [C, R] and bias [C] at the minimum, by L-BFGS from `start` [C, R + 1] or 0."""
        from scipy.optimize import minimize

        values, shape = self.training, (len(self.weights), self.training.shape[1] + 1)
        sample = self.weights[self.labels][:, None]  # what each counts
        total = float(sample.sum())
        sample = sample / total
        spread = self.label_smoothing / len(self.weights)
        target = torch.full((len(values), shape[0]), spread).to(values)
        target[torch.arange(len(values)), self.labels] += 1 - self.label_smoothing

        def objective(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
            layer = torch.from_numpy(flat.reshape(shape)).to(values)
            weight, bias = layer[:, :-1], layer[:, -1]
            scores = torch.addmm(bias, values, weight.T).log_softmax(1)
            loss = -(target * scores * sample).sum() + weight.square().sum() / (
                2 * strength * total
            )
            error = (scores.exp() - target) * sample
            gradient = torch.cat(
                [error.T @ values + weight / (strength * total), error.sum(0)[:, None]], 1
            )
            return float(loss), gradient.double().cpu().numpy().ravel()

        first = np.zeros(shape) if start is None else start.double().cpu().numpy()
        done = minimize(
            objective,
            first.ravel(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": ITERATIONS, "ftol": tolerance, "gtol": 1e-7},
        )
        layer = torch.from_numpy(done.x.reshape(shape)).to(values)
        return layer[:, :-1], layer[:, -1]

    def cross_validated(
        self, scaling: str, folds: Folds, stop: Callable[[], bool]
    ) -> list[Candidate]:
        """Every strength, judged on all held-out samples; [] where `stop` said so."""
        held_out: list[list[Tensor]] = [[] for _ in STRENGTHS]
        truth = []
        for training, held in folds:
            # nothing is known of a class whose only samples are held out
            known = torch.isin(self.labels[held], self.labels[training]).cpu().numpy()
            own, rest = self.subset(training), self.subset(held[known])
            truth.append(rest.labels)
            start = None
            for place, strength in enumerate(STRENGTHS):
                if stop():
                    return []
                weight, bias = own.solve(strength, start, TRIAL_TOLERANCE)
                start = torch.cat([weight, bias[:, None]], 1)
                held_out[place].append(functional.linear(rest.served, weight, bias))
        labels = torch.cat(truth)
        return [
            judged(scaling, strength, torch.cat(scores), labels)
            for strength, scores in zip(STRENGTHS, held_out, strict=True)
        ]


def judged(scaling: str, strength: float, scores: Tensor, labels: Tensor) -> Candidate:
    """The candidate with held-out scores [N, C], at the temperature that suits them best."""
    losses = [functional.cross_entropy(scores / t, labels, reduction="none") for t in TEMPERATURES]
    best = min(range(len(losses)), key=lambda place: float(losses[place].mean()))
    return Candidate(
        scaling,
        strength,
        accuracy=float((scores.argmax(1) == labels).double().mean()),
        loss=float(losses[best].mean()),
        temperature=TEMPERATURES[best],
        losses=losses[best].double().cpu().numpy(),
    )


def choose(candidates: Sequence[Candidate]) -> Candidate:
    """The weakest regularisation that is not clearly worse than the best, by log loss.

    Of few samples the lowest loss is often that of a layer that hardly dares to tell classes apart.
    """
    best = min(candidates, key=lambda c: c.loss)
    equals = [c for c in candidates if c.not_worse_than(best)]
    return max(equals, key=lambda c: (c.strength, -c.loss))


def split_folds(
    labels: npt.NDArray[np.int64], groups: Positions | None = None, seed: int = 0
) -> Folds:
    """(training, held-out) positions, stratified, groups whole; [] where classes are too small.

    As many folds as the median class has samples (or groups), at most 5.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    own = np.arange(len(labels)) if groups is None else groups
    sizes = [len(np.unique(own[labels == label])) for label in np.unique(labels)]
    count = min(FOLDS, int(np.median(sizes)))
    if count < 2 or len(sizes) < 2:
        return []
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    cut = kind(n_splits=count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # a class with fewer samples than folds is in fewer of them, which is all right here
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        found = list(cut.split(labels, labels, groups))
    return found
