"""The small networks of unfreeze, for digits and for training without a GPU."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional


class ResidualBlock(nn.Module):
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
            self.add_module(
                f"stage{number}", ResidualBlock(channels, width, 1 if number == 1 else 2)
            )
            channels = width
        self.head: nn.Module = nn.Linear(channels, classes)
        _initialise(self)

    def feature_maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The maps `[B, C, H, W]` of the stages, in order."""
        x, maps = self.stem(x), []
        for number in range(1, self.depth + 1):
            x = self.get_submodule(f"stage{number}")(x)
            maps.append(x)
        return maps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, 3, H, W]` to `[B, classes]`."""
        scores: torch.Tensor = self.head(self.feature_maps(x)[-1].mean(dim=(2, 3)))
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


SMALL_NETWORKS = {"small": small, "tiny": tiny}


class SmallEncoder(nn.Module):
    """`unfreeze/small` as an encoder of segmentation_models_pytorch.

    That library reads `out_channels` and `output_stride`. Decoders want maps of strides 2, 4, 8, 16
    and 32; the network ends at 8, so what follows are means over 2x2 values of its last map (where
    `output_stride` ends them: copies).
    """

    def __init__(self, depth: int = 5, output_stride: int = 32) -> None:
        super().__init__()
        if not 3 <= depth <= 5:
            raise ValueError(f"this encoder has depth 3, 4 or 5, not {depth}")
        self.depth, self.output_stride = depth, min(output_stride, 2**depth)
        self.out_channels = (3, 64, 128, 256, 256, 256)[: depth + 1]
        self.model = small()
        self.model.head = nn.Identity()

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """ValueError for other images than RGB."""
        if in_channels != 3:
            raise ValueError(f"this encoder takes 3 channels, not {in_channels}")

    def make_dilated(self, output_stride: int) -> None:
        """Nothing: the maps after stride 8 have no convolutions."""

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """`[B, 3, H, W]`, and maps `[B, C, H / s, W / s]` of strides s = 2, 4, ..., 2^depth."""
        maps = [x, *self.model.feature_maps(x)]
        for level in range(4, self.depth + 1):
            last = maps[-1]
            maps.append(functional.avg_pool2d(last, 2) if 2**level <= self.output_stride else last)
        return maps
