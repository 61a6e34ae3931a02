"""Linear probe on frozen features, with scikit-learn."""

import numpy as np
import numpy.typing as npt

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
