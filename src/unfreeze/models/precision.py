"""The precision to train a network in, where `auto` leaves it open."""

from collections.abc import Container

import torch
from torch import nn

from unfreeze.runtime.device import pick_precision


def pick_training_precision(
    name: str, device: torch.device, network: nn.Module, frozen: Container[str] = ()
) -> tuple[str, str]:
    """(precision, reason) as `pick_precision`, for training; `frozen`: parameters never trained.

    On a CPU `auto` is fp32 if depthwise convolutions are trained: their backward pass is slow in
    bf16. Measured on one core with AVX512-BF16 in three runs, batch 16 at 96 pixels, a training
    step took 1.7 times as long in bf16 for EfficientNet-Lite0, 2.1 to 2.2 times for
    MobileNetV3-Small, 1.3 to 1.4 times for MobileNetV2, but 0.5 to 0.6 times for ResNet-18.
    """
    precision, why = pick_precision(name, device)
    if name != "auto" or device.type != "cpu" or precision != "bf16":
        return precision, why
    if trains_depthwise(network, frozen):
        return "fp32", "depthwise convolutions train faster in fp32 on a CPU"
    return precision, why


def trains_depthwise(network: nn.Module, frozen: Container[str] = ()) -> bool:
    """Whether the network has a depthwise convolution of which a parameter is not `frozen`."""
    return any(
        f"{name}.{own}".lstrip(".") not in frozen
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1
        for own, _ in layer.named_parameters()
    )
