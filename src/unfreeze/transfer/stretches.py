"""Phases of a run with the same frozen parameters, and which features each phase can cache."""

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from unfreeze.transfer.freeze import FreezeSchedule

# cached tensor of a phase: the input of the head, or of the first trainable layer
FEATURES, ACTIVATIONS = "features", "activations"


@dataclass(frozen=True)
class Stretch:
    """Epochs `first` to `last` (exclusive) with the parameters `frozen`.

    `kind`: FEATURES if only the head is trained, ACTIVATIONS if anything is frozen, else "".
    """

    first: int
    last: int
    frozen: frozenset[str]
    kind: str

    @property
    def epochs(self) -> int:
        """Number of epochs."""
        return self.last - self.first

    def views(self, count: int) -> list[int]:
        """Views out of `count` that the epochs use: epoch e uses view e modulo `count`."""
        return sorted({epoch % count for epoch in range(self.first, self.last)})


def stretches(
    network: nn.Module, schedule: FreezeSchedule, epochs: int, head: Collection[str]
) -> list[Stretch]:
    """Split `epochs` wherever the frozen parameters change; `head`: parameters of the new head."""
    names = {name for name, _ in network.named_parameters()}
    starts = [e for e in range(epochs) if e == 0 or schedule.at(e) != schedule.at(e - 1)]
    phases = []
    for first, last in zip(starts, [*starts[1:], epochs], strict=True):
        frozen = schedule.at(first)
        only_head = names - frozen <= set(head)
        kind = FEATURES if only_head and frozen else ACTIVATIONS if frozen else ""
        phases.append(Stretch(first, last, frozen, kind))
    return phases


def wanted(mode: str, stretch: Stretch) -> bool:
    """Whether `--cache MODE` caches anything in this phase."""
    return stretch.kind == FEATURES or (mode == ACTIVATIONS and stretch.kind == ACTIVATIONS)
