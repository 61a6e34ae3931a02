"""Exponential moving average (EMA) of the weights, which is validated and saved instead of them."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn


class WeightAverage:
    """timm's EMA of every entry of the state dict, with its warm-up of the decay.

    Entries that were always frozen are bit-identical to the network's. For entries frozen after
    some training, the EMA still converges to the network's value.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._ema: Any = ModelEmaV3(network, decay=decay, use_warmup=True)

    def update(self, network: nn.Module, step: int) -> None:
        """Update with the weights after step `step`, counted from 1."""
        self._ema.update(network, step)

    def state(self) -> dict[str, Tensor]:
        """State dict of the average, with the network's names."""
        averaged: dict[str, Tensor] = self._ema.module.state_dict()
        return averaged

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load what `state()` returned."""
        self._ema.module.load_state_dict(state)

    def apart(self, network: nn.Module) -> set[str]:
        """Names of the entries that differ from the network's."""
        current = network.state_dict()
        return {
            name for name, value in self.state().items() if not torch.equal(value, current[name])
        }

    @contextlib.contextmanager
    def shown(self, network: nn.Module) -> Iterator[None]:
        """Context manager: the network has the averaged weights inside the block."""
        weights = {name: value.clone() for name, value in network.state_dict().items()}
        network.load_state_dict(self.state())
        try:
            yield
        finally:
            network.load_state_dict(weights)


def weights_to_serve(state: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Weights of a checkpoint to evaluate and export: the EMA if there is one, else the model's."""
    weights: Mapping[str, Tensor] = state.get("average") or state["model"]
    return weights
