"""Image regression: a number for each image, such as a weight, an age or a count.

The labels are numbers in any unit. The network learns them standardised, so that learning rates do
not depend on the unit; metrics and predictions are in the unit of the labels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unfreeze.errors import DataError
from unfreeze.tasks import SupervisedTask


class Regression(SupervisedTask):
    """`mae` and `rmse` are in the labels' unit; `r2` is the share of the variance explained."""

    metric = "mae"
    lower_is_better = True
    lr_scale = 0.1  # the gradient of the error grows with the features, unlike that of a softmax
    outputs = 1

    def __init__(self) -> None:
        self.mean, self.std = 0.0, 1.0  # of the training labels

    def fit(self, labels: Sequence[str]) -> None:
        """Mean and standard deviation of the training labels."""
        values = _numbers(labels)
        self.mean, self.std = float(values.mean()), float(values.std(correction=0)) or 1.0

    def targets(self, labels: Sequence[str]) -> Tensor:
        """Standardised labels `[N]`."""
        return ((_numbers(labels) - self.mean) / self.std).float()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Huber loss: outliers have a bounded gradient."""
        return F.smooth_l1_loss(outputs.squeeze(1), targets.to(outputs.dtype), reduction="none")

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Mean absolute error, root mean square error and R²."""
        errors = (outputs.squeeze(1) - targets).double()
        variance = float(targets.double().var(correction=0))
        square = float(errors.square().mean())
        return {
            "mae": float(errors.abs().mean()) * self.std,
            "rmse": math.sqrt(square) * self.std,
            "r2": 1 - square / variance if variance else math.nan,
        }

    def predict(self, outputs: Tensor) -> list[dict[str, Any]]:
        """The number for each image."""
        return [{"value": value * self.std + self.mean} for value in outputs.squeeze(1).tolist()]

    def state_dict(self) -> dict[str, Any]:
        """The scale of the labels."""
        return {"mean": self.mean, "std": self.std}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`."""
        self.mean, self.std = state["mean"], state["std"]


def _numbers(labels: Sequence[str]) -> Tensor:
    try:
        values = torch.tensor([float(label) for label in labels], dtype=torch.float64)
    except ValueError as error:
        raise DataError(
            f"A label is no number: {error}.", "Give a CSV with the columns path and label."
        ) from error
    if not bool(values.isfinite().all()):
        raise DataError("A label is NaN or infinite.", "Remove its image, or correct the label.")
    return values
