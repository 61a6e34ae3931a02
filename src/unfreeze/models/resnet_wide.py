"""SwAV's wide networks: ResNet-50 with w times the channels in every layer (paper, table 2).

The width multiplies all layers, including the stem's 64 channels: features are 2048 w wide.
(torchvision's `wide_resnet50_2` widens only the 3x3 convolutions.) Blocks, forward pass and names
are torchvision's ResNet's; the published files have the same names, and no `fc`.
"""

from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

BLOCKS = (3, 4, 6, 3)


class WideResNet50(ResNet):  # type: ignore[misc]  # torchvision is untyped
    """A ResNet-50 with `width` times the channels; [B, 3, H, W] to [B, classes]."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__(Bottleneck, list(BLOCKS), num_classes=classes)
        stem = 64 * width
        self.inplanes = stem
        self.conv1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        for number, blocks in enumerate(BLOCKS, start=1):
            planes = stem * 2 ** (number - 1)
            layer = self._make_layer(Bottleneck, planes, blocks, stride=1 if number == 1 else 2)
            self.add_module(f"layer{number}", layer)
        self.fc = nn.Linear(8 * stem * Bottleneck.expansion, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def resnet50w2(classes: int = 1000) -> WideResNet50:
    """`unfreeze/resnet50w2`, untrained: 94 million parameters without the head."""
    return WideResNet50(2, classes)


def resnet50w4(classes: int = 1000) -> WideResNet50:
    """`unfreeze/resnet50w4`, untrained: 375 million parameters without the head."""
    return WideResNet50(4, classes)


def resnet50w5(classes: int = 1000) -> WideResNet50:
    """`unfreeze/resnet50w5`, untrained: 586 million parameters without the head."""
    return WideResNet50(5, classes)
