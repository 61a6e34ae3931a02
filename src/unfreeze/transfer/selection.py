"""Which epoch is kept, and when to stop waiting for a better one."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

# --select -> the number of a validation line that decides
DECIDES = {
    "accuracy": "accuracy",
    "balanced": "balanced_accuracy",
    "macro-f1": "macro_f1",
    "loss": "loss",
}


@dataclass
class Selection:
    """The best validation result so far; the higher score wins, then the lower loss.

    `accuracy` and `loss` are those of the best epoch, whatever it was chosen by. Epochs are counted
    from 0, as in metrics.jsonl. `patience` 0 never stops.
    """

    patience: int = 0
    epoch: int | None = None
    accuracy: float = -1.0
    loss: float = float("inf")
    waited: int = 0
    score: float = float("-inf")

    def update(self, epoch: int, accuracy: float, loss: float, score: float | None = None) -> bool:
        """Take one epoch's result in; whether it is the best so far (`score` None: accuracy)."""
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
        """Whether `patience` epochs have passed without a better one."""
        return 0 < self.patience <= self.waited

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return asdict(self)


def score_of(found: Mapping[str, Any], select: str) -> float:
    """What `--select` makes of a validation line: more is better."""
    value = float(found[DECIDES[select]])
    return -value if select == "loss" else value
