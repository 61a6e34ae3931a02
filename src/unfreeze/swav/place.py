"""Where the arithmetic happens, and how pictures get there."""

from dataclasses import dataclass

import torch

from unfreeze.data.views import normalise


@dataclass(frozen=True)
class Place:
    """The device, its precision, and the mean and deviation that pictures are normalised with.

    `layout`: how pictures and weights lie in memory, channels_last or contiguous.
    """

    device: torch.device
    precision: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: str = "channels_last"

    def takes(self, view: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A view `[B, S, S, 3]` as the network takes it: `[B, 3, S, S]`, normalised, in `dtype`."""
        there = view.to(self.device, non_blocking=True)
        found = normalise(there, self.mean, self.std).to(dtype)
        return found.contiguous() if self.layout == "contiguous" else found
