"""Which epoch is kept, and when to stop waiting for a better one."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Selection:
    """The best validation result so far; higher accuracy wins, then lower loss.

    Epochs are counted from 0, as in metrics.jsonl. `patience` 0 never stops.
    """

    patience: int = 0
    epoch: int | None = None
    accuracy: float = -1.0
    loss: float = float("inf")
    waited: int = 0

    def update(self, epoch: int, accuracy: float, loss: float) -> bool:
        """Take one epoch's result in; whether it is the best so far."""
        better = (accuracy, -loss) > (self.accuracy, -self.loss)
        if better:
            self.epoch, self.accuracy, self.loss, self.waited = epoch, accuracy, loss, 0
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
