"""Statistics of a network's features, gathered on the way while it is evaluated."""

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from unfreeze.evaluation.checks import FeatureStatistics


class FeatureMeter:
    """What `layer` is fed, image by image: extremes and moments only, in float64 on the CPU."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.images = 0
        self.low = self.high = self.total = self.squares = torch.zeros(0, dtype=torch.float64)

    def take(self, fed: Tensor) -> None:
        """Takes in a batch as the layer gets it; maps and tokens are averaged over places."""
        if not len(fed):
            return
        h = self._pooled(fed.detach().double()).cpu()
        unit = h / h.norm(dim=1, keepdim=True).clamp_min(1e-300)
        low, high = h.amin(dim=0), h.amax(dim=0)
        if self.images:
            low, high = torch.minimum(low, self.low), torch.maximum(high, self.high)
            self.total, self.squares = self.total + unit.sum(0), self.squares + unit.square().sum(0)
        else:
            self.total, self.squares = unit.sum(dim=0), unit.square().sum(dim=0)
        self.low, self.high, self.images = low, high, self.images + len(h)

    def statistics(self) -> FeatureStatistics | None:
        """Of all that was taken in; None where nothing was."""
        if not self.images:
            return None
        width, mean = len(self.low), self.total / self.images
        variance = (self.squares / self.images - mean.square()).clamp_min(0)
        return FeatureStatistics(
            images=self.images,
            width=width,
            spread=float(variance.sqrt().mean() * math.sqrt(width)),
            dead=int((self.low == self.high).sum()),
        )

    def _pooled(self, fed: Tensor) -> Tensor:
        if fed.dim() < 3:
            return fed.reshape(len(fed), -1)
        channels = 1 if isinstance(self.layer, nn.Conv2d) else fed.dim() - 1
        return fed.mean(dim=[d for d in range(1, fed.dim()) if d != channels])


@contextlib.contextmanager
def metered(network: nn.Module, head: list[str] | tuple[str, ...]) -> Iterator[FeatureMeter]:
    """Within the block everything that the head is fed goes into the meter that this yields.

    `head`: names of the head's parameters, those of its first layer first.
    """
    layer = network.get_submodule(head[0].rpartition(".")[0])
    meter = FeatureMeter(layer)

    def taking(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        meter.take(inputs[0])

    handle = layer.register_forward_pre_hook(taking)
    try:
        yield meter
    finally:
        handle.remove()
