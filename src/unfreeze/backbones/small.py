"""Two small residual networks (3x3 convolutions, batch norm) for small images and CPUs.

`unfreeze/tiny`: 3 stages of 32, 64, 128 channels from full resolution on, for 8 to 24 pixels.
`unfreeze/small`: 3 stages of 64, 128, 256 channels from half resolution on, for 24 to 64 pixels: at
full resolution the first stage would take longer than all others.
"""

from collections.abc import Sequence

import torch
from torch import nn


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., arXiv 1512.03385)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, inward, H, W]` to `[B, outward, H/stride, W/stride]`."""
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class SmallNet(nn.Module):
    """A 3x3 stem, one block per stage (stride 2 from the second on), global mean, linear head."""

    def __init__(self, widths: Sequence[int], classes: int, *, stride: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, stride, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        self.depth = len(widths)
        channels = widths[0]
        for number, width in enumerate(widths, 1):
            self.add_module(f"stage{number}", Block(channels, width, 1 if number == 1 else 2))
            channels = width
        self.head: nn.Module = nn.Linear(channels, classes)
        _initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, 3, H, W]` to `[B, classes]`."""
        x = self.stem(x)
        for number in range(1, self.depth + 1):
            x = self.get_submodule(f"stage{number}")(x)
        scores: torch.Tensor = self.head(x.mean(dim=(2, 3)))
        return scores


def tiny(classes: int = 10) -> SmallNet:
    """`unfreeze/tiny`, untrained."""
    return SmallNet((32, 64, 128), classes)


def small(classes: int = 10) -> SmallNet:
    """`unfreeze/small`, untrained."""
    return SmallNet((64, 128, 256), classes, stride=2)


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
