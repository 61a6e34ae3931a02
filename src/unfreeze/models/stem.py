"""Stems: the small stem keeps the resolution of small images."""

from torch import nn

from unfreeze.errors import UsageError

# (first convolution, pooling after it) in ResNets of torchvision and timm, and in timm's
# pre-activation ResNets.
STEM_LAYERS = (("conv1", "maxpool"), ("stem.conv", "stem.pool"))
SMALL_IMAGE = 64  # pixels; up to this size the small stem is used


def choose_stem(
    stem: str, network: nn.Module, weights: str, own: str | None, side: int
) -> tuple[str, str]:
    """(stem, reason) for images of `side` pixels.

    `auto` takes the stem that the weights were trained with (`own`, None if unknown), never
    modifies a loaded layer, and chooses the small stem only for networks that have one.
    """
    if stem != "auto":
        return stem, "given"
    if own is not None:
        return own, "as in the weights"
    if weights != "none":
        return "imagenet", "loaded layers are never modified"
    if side <= SMALL_IMAGE and supports_small_stem(network):
        return "small", f"keeps the resolution of images of {side} pixels"
    return "imagenet", "the architecture's default"


def supports_small_stem(network: nn.Module) -> bool:
    """Whether `small_stem` supports the network."""
    modules = dict(network.named_modules())
    return any(
        type(modules.get(convolution)) is nn.Conv2d and pooling in modules
        for convolution, pooling in STEM_LAYERS
    )


def apply_small_stem(model: nn.Module) -> None:
    """Make a ResNet's first convolution 3x3 with stride 1 and remove the pooling, in place.

    A 32x32 image then reaches the last stage as 4x4 instead of 1x1 (He et al. 2016, section
    4.2; SimCLR, appendix B.9). The new convolution has ResNet's initialisation. UsageError for
    networks with another stem.
    """
    modules = dict(model.named_modules())
    for convolution, pooling in STEM_LAYERS:
        layer = modules.get(convolution)
        if type(layer) is nn.Conv2d and pooling in modules:
            model.set_submodule(convolution, _small_convolution(layer))
            model.set_submodule(pooling, nn.Identity())
            return
    raise UsageError(
        f"No small stem for {type(model).__name__}: only ResNets have one.",
        "Use --stem imagenet with a larger --image-size, or a ResNet.",
    )


def first_convolution(model: nn.Module) -> str | None:
    """Parameter name of the first registered convolution's weight; None if there is none."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            return f"{name}.weight"
    return None


def _small_convolution(old: nn.Conv2d) -> nn.Conv2d:
    new = nn.Conv2d(
        old.in_channels,
        old.out_channels,
        3,
        padding=1,
        bias=old.bias is not None,
        device=old.weight.device,
        dtype=old.weight.dtype,
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    return new
