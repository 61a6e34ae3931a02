"""The device and precision that a run computes in."""

from dataclasses import dataclass

import torch

from unfreeze.data.augment.multicrop import normalize


@dataclass(frozen=True)
class ComputeContext:
    """Device, precision, and the mean and standard deviation that images are normalised with.

    `layout`: memory format of images and weights, channels_last or contiguous.
    """

    device: torch.device
    precision: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: str = "channels_last"

    def network_input(self, view: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Network input `[B, 3, S, S]` in `dtype`, normalised, of a uint8 view `[B, S, S, 3]`."""
        moved = view.to(self.device, non_blocking=True)
        images = normalize(moved, self.mean, self.std).to(dtype)
        return images.contiguous() if self.layout == "contiguous" else images
