"""How often a run is looked at, and on how many images: ten times, for a twentieth of its work.

Reckoned in pixels through the network and not on a clock, so that it is the same on every machine
and after a resume. A training pixel counts three times: forwards, and twice as much backwards.
"""

import math
from dataclasses import dataclass

TIMES, SHARE = 10, 0.05
FEWEST, MOST = 512, 2048  # images
VIEWS = 2  # passes a image: the centre, and for half of them two random views


@dataclass(frozen=True)
class Looks:
    """What follows from a run's size; `work` is the pixels of all views of a image."""

    images: int
    epochs: int
    work: int
    side: int  # of the large view, pixels

    @property
    def sample(self) -> int:
        """Images that are looked at: as many as the budget allows."""
        budget = SHARE * self.epochs * self._epoch / ((TIMES + 1) * VIEWS * self.side**2)
        return min(self.images, max(FEWEST, min(MOST, int(budget))))

    @property
    def every(self) -> int:
        """Epochs between two looks; the last epoch has one in any case."""
        look = VIEWS * self.sample * self.side**2
        return max(1, math.ceil(self.epochs / TIMES), math.ceil(look / (SHARE * self._epoch)))

    @property
    def why(self) -> str:
        """The reason, in words."""
        often = self.every == max(1, math.ceil(self.epochs / TIMES))
        return "ten times a run" if often else "a twentieth of the work at most"

    @property
    def _epoch(self) -> float:
        return 3.0 * max(1, self.images) * max(1, self.work)
