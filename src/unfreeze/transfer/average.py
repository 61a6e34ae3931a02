"""A running average of the weights, which is validated and kept in their place."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn


class Average:
    """timm's exponential average of every entry of the state dict, with its warm-up of the decay.

    What has always stood still in the network is bit for bit the same here; what froze after it
    had moved is still approached.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.kept: Any = ModelEmaV3(network, decay=decay, use_warmup=True)

    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights after step `step`, counted from 1."""
        self.kept.update(network, step)

    def state(self) -> dict[str, Tensor]:
        """Its entries under the network's names."""
        found: dict[str, Tensor] = self.kept.module.state_dict()
        return found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state()` gave."""
        self.kept.module.load_state_dict(state)

    def apart(self, network: nn.Module) -> set[str]:
        """Names of the entries that are not what the network has."""
        own = network.state_dict()
        return {name for name, value in self.state().items() if not torch.equal(value, own[name])}

    @contextlib.contextmanager
    def shown(self, network: nn.Module) -> Iterator[None]:
        """Within the block the network's weights are the average."""
        own = {name: value.clone() for name, value in network.state_dict().items()}
        network.load_state_dict(self.state())
        try:
            yield
        finally:
            network.load_state_dict(own)


def served(state: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The weights of a checkpoint that are judged and travel: the average, where there is one."""
    found: Mapping[str, Tensor] = state.get("average") or state["model"]
    return found
