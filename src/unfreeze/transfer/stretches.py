"""The stretches of a run in which the same parameters stand still, and what of each can be kept."""

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from unfreeze.transfer.freeze import FreezeSchedule

# what is kept of a stretch: the head's input, or whatever comes before the first part that learns
FEATURES, ACTIVATIONS = "features", "activations"


@dataclass(frozen=True)
class Stretch:
    """Epochs `first` to `last` (not included) with the parameters `frozen` standing still.

    `kind`: FEATURES where only the head learns, ACTIVATIONS where something stands still, or "".
    """

    first: int
    last: int
    frozen: frozenset[str]
    kind: str

    @property
    def epochs(self) -> int:
        """How many."""
        return self.last - self.first

    def views(self, count: int) -> list[int]:
        """Which of `count` views its epochs use, when epoch e takes view e modulo `count`."""
        return sorted({epoch % count for epoch in range(self.first, self.last)})


def stretches(
    network: nn.Module, schedule: FreezeSchedule, epochs: int, head: Collection[str]
) -> list[Stretch]:
    """The run of `epochs` cut where another set of parameters stands still.

    `head`: names of the parameters of the new head.
    """
    names = {name for name, _ in network.named_parameters()}
    starts = [e for e in range(epochs) if e == 0 or schedule.at(e) != schedule.at(e - 1)]
    found = []
    for first, last in zip(starts, [*starts[1:], epochs], strict=True):
        frozen = schedule.at(first)
        only_head = names - frozen <= set(head)
        kind = FEATURES if only_head and frozen else ACTIVATIONS if frozen else ""
        found.append(Stretch(first, last, frozen, kind))
    return found


def wanted(mode: str, stretch: Stretch) -> bool:
    """Whether `--cache MODE` keeps anything in this stretch."""
    return stretch.kind == FEATURES or (mode == ACTIVATIONS and stretch.kind == ACTIVATIONS)
