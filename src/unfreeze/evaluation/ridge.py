"""Linear classification on frozen features: ridge regression on the classes, by scikit-learn.

Fitted without iterations, and its leave-one-out predictions need no second fit, so it can be used
during training.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

PENALTIES = (0.1, 1.0)  # times the mean eigenvalue of the kernel; by leave-one-out accuracy


def ridge_hits(
    features: Tensor, labels: Tensor, query_features: Tensor | None, queries: Tensor | None
) -> Tensor:
    """Whether the classifier is right, bool: leave-one-out on `features` `[N, D]`, or of queries.

    `labels` `[N]`, `queries` `[M]`: of `query_features` `[M, D]`. Features are standardised; those
    that are not finite, of a network that diverges, count as 0. Leave-one-out equals a fit without
    the image, but for the standardisation.
    """
    from sklearn.linear_model import Ridge, RidgeCV  # a second, for continued runs alone
    from sklearn.preprocessing import StandardScaler

    classes, truth = np.unique(labels.numpy(), return_inverse=True)
    targets = np.eye(len(classes))[truth]
    scaler = StandardScaler().fit(_finite(features))
    varied = max(1, int((scaler.var_ > 0).sum()))
    x = scaler.transform(_finite(features)) / varied**0.5
    mean = targets.mean(0)
    # given a scoring, scikit-learn keeps the left-out predictions [N, classes, penalties]
    search = RidgeCV(PENALTIES, scoring="neg_mean_squared_error", store_cv_results=True)
    left_out = search.fit(x, targets - mean).cv_results_ + mean[:, None]
    hits = left_out.argmax(1) == truth[:, None]
    best = int(hits.sum(0).argmax())
    if query_features is None or queries is None:
        return torch.from_numpy(hits[:, best])
    scores = (
        Ridge(PENALTIES[best])
        .fit(x, targets)
        .predict(scaler.transform(_finite(query_features)) / varied**0.5)
    )
    return torch.from_numpy(classes[scores.argmax(1)] == queries.numpy())


def _finite(features: Tensor) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = (
        features.double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).numpy()
    )
    return found
