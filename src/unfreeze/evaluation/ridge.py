"""Linear classification on frozen features in closed form: ridge regression on the classes.

Fitted without iterations, and its leave-one-out predictions need no second fit, so it can be used
during training. Features are standardised; one-hot targets; the intercept is not penalised.
"""

import torch
from torch import Tensor

PENALTIES = (0.1, 1.0)  # times the mean eigenvalue of the kernel; by leave-one-out accuracy


def ridge_hits(
    features: Tensor, labels: Tensor, query_features: Tensor | None, queries: Tensor | None
) -> Tensor:
    """Whether the classifier is right, bool: leave-one-out on `features` `[N, D]`, or of queries.

    `labels` `[N]`, `queries` `[M]`: of `query_features` `[M, D]`. Leave-one-out equals a fit
    without the image, but for the standardisation. Deterministic; O(N^3), in float64.
    """
    classes, truth = torch.unique(labels, return_inverse=True)
    targets = torch.nn.functional.one_hot(truth).double()
    mean, std = features.double().mean(0), features.double().std(0, correction=0)
    scale = torch.where(std > 0, std, 1.0) * features.shape[1] ** 0.5
    x = (features.double() - mean) / scale
    values, vectors = torch.linalg.eigh(x @ x.T)
    fits = [_fit(values, vectors, targets, penalty) for penalty in PENALTIES]
    hits: list[Tensor] = [left_out.argmax(1) == truth for _, left_out in fits]
    best = max(range(len(fits)), key=lambda i: int(hits[i].sum()))
    if query_features is None or queries is None:
        return hits[best]
    weights = x.T @ fits[best][0]
    scores = (query_features.double() - mean) / scale @ weights + targets.mean(0)
    right: Tensor = classes[scores.argmax(1)] == queries
    return right


def _fit(values: Tensor, vectors: Tensor, targets: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """(dual coefficients, leave-one-out predictions), both `[N, C]`.

    From the eigendecomposition of the centred kernel K. With G = (K + s)^-1 the residuals are
    s G (T - mean), and those of a fit without image i are them divided by s G_ii - 1 / N.
    """
    strength = penalty * float(values.clamp_min(0).mean()) or 1.0  # 1 if all features are equal
    inverse = (vectors / (values.clamp_min(0) + strength)) @ vectors.T
    dual = inverse @ (targets - targets.mean(0))
    share = (strength * inverse.diagonal() - 1 / len(targets)).clamp_min(1e-12)
    return dual, targets - strength * dual / share[:, None]
