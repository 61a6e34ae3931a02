"""Statistics of a network's features, accumulated by a forward hook during evaluation."""

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from unfreeze.evaluation.checks import FeatureStatistics


class FeatureMeter:
    """Running extremes and moments of the inputs of `layer` in float64 on the CPU."""

    def __init__(self, layer: nn.Module | None) -> None:
        self.layer = layer
        self.images = 0
        self.low = self.high = self.total = self.squares = torch.zeros(0, dtype=torch.float64)

    def take(self, inputs: Tensor) -> None:
        """Add a batch of the layer's inputs; maps and tokens are averaged over positions."""
        if not len(inputs):
            return
        h = pooled_features(inputs.detach().double(), self.layer).cpu()
        unit = h / h.norm(dim=1, keepdim=True).clamp_min(1e-300)
        low, high = h.amin(dim=0), h.amax(dim=0)
        if self.images:
            low, high = torch.minimum(low, self.low), torch.maximum(high, self.high)
            self.total, self.squares = self.total + unit.sum(0), self.squares + unit.square().sum(0)
        else:
            self.total, self.squares = unit.sum(dim=0), unit.square().sum(dim=0)
        self.low, self.high, self.images = low, high, self.images + len(h)

    def statistics(self) -> FeatureStatistics | None:
        """Statistics over all batches; None without images."""
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


def pooled_features(inputs: Tensor, layer: nn.Module | None) -> Tensor:
    """Inputs of `layer` as features [B, D]; maps and tokens are averaged over positions."""
    if inputs.dim() < 3:
        return inputs.reshape(len(inputs), -1)
    channels = 1 if isinstance(layer, nn.Conv2d) else inputs.dim() - 1
    return inputs.mean(dim=[d for d in range(1, inputs.dim()) if d != channels])


@contextlib.contextmanager
def feature_meter(network: nn.Module, head: list[str] | tuple[str, ...]) -> Iterator[FeatureMeter]:
    """Yield a `FeatureMeter` that accumulates all inputs of the head inside the block.

    `head`: names of the head's parameters, those of its first layer first; none: no features.
    """
    if not head:
        yield FeatureMeter(None)
        return
    layer = network.get_submodule(head[0].rpartition(".")[0])
    meter = FeatureMeter(layer)

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        meter.take(inputs[0])

    handle = layer.register_forward_pre_hook(hook)
    try:
        yield meter
    finally:
        handle.remove()
