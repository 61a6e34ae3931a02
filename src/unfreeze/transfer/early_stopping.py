"""BestEpoch of the best checkpoint, and early stopping."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from unfreeze.tasks.supervised import SupervisedTask

# --select -> key of a validation line
DECIDES = {
    "accuracy": "accuracy",
    "balanced": "balanced_accuracy",
    "macro-f1": "macro_f1",
    "loss": "loss",
}


@dataclass
class BestEpoch:
    """The best validation result so far: the higher score, then the lower loss.

    `accuracy` (the score for tasks without one) and `loss` are those of the best epoch, whichever
    metric selects it. Epochs count from 0, as in metrics.jsonl. `patience` 0: no early stopping.
    """

    patience: int = 0
    epoch: int | None = None
    accuracy: float = -1.0
    loss: float = float("inf")
    waited: int = 0
    score: float = float("-inf")

    def update(self, epoch: int, accuracy: float, loss: float, score: float | None = None) -> bool:
        """Add the result of an epoch; return whether it is the best (`score` None: accuracy)."""
        score = accuracy if score is None else score
        better = (score, -loss) > (self.score, -self.loss)
        if better:
            self.epoch, self.accuracy, self.loss, self.waited = epoch, accuracy, loss, 0
            self.score = score
        else:
            self.waited += 1
        return better

    @property
    def exhausted(self) -> bool:
        """Whether `patience` epochs have passed without improvement."""
        return 0 < self.patience <= self.waited

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return asdict(self)


def score_of(line: Mapping[str, Any], select: str, task: SupervisedTask | None = None) -> float:
    """Score of a validation line by `--select`; higher is better."""
    if task is not None and select in ("metric", task.metric):
        metric = float(line[task.metric])
        if math.isnan(metric):  # such as a kappa of constant predictions: worse than any number
            return -math.inf
        return -metric if task.lower_is_better else metric
    value = float(line["accuracy" if select == "metric" else DECIDES[select]])
    return -value if select == "loss" else value
