"""When a pretraining run evaluates its features, and on how many images."""

import math
from dataclasses import dataclass

TIMES, SHARE = 10, 0.05
FEWEST, EVALUATED_MOST = 512, 2048  # images
VIEWS = 2  # passes per image: the centre crop, and two random views of half of them


@dataclass(frozen=True)
class EvaluationSchedule:
    """Evaluation schedule of a run; `work`: pixels of all views of an image.

    `precise`: as many images as allowed, because their result decides about the weights.
    """

    images: int
    epochs: int
    work: int
    side: int  # of the large view, in pixels
    precise: bool = False

    @property
    def sample(self) -> int:
        """Images per evaluation, as many as the budget allows."""
        if self.precise:
            return min(self.images, EVALUATED_MOST)
        budget = SHARE * self.epochs * self._epoch / ((TIMES + 1) * VIEWS * self.side**2)
        return min(self.images, max(FEWEST, min(EVALUATED_MOST, int(budget))))

    @property
    def every(self) -> int:
        """Epochs between two evaluations; the last epoch always has one."""
        cost = VIEWS * self.sample * self.side**2
        return max(1, math.ceil(self.epochs / TIMES), math.ceil(cost / (SHARE * self._epoch)))

    @property
    def why(self) -> str:
        """Reason of `every`, for people."""
        often = self.every == max(1, math.ceil(self.epochs / TIMES))
        return "ten times per run" if often else "at most 5 % of the work"

    @property
    def _epoch(self) -> float:
        return 3.0 * max(1, self.images) * max(1, self.work)
