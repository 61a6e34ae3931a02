"""Segmentation networks of segmentation_models_pytorch, named `smp/DECODER/ENCODER`.

An encoder is one of that library (`resnet18`), `unfreeze-small`, or, as `tu-NAME`, one of timm. Its
weights come from the classification network of the same name: torchvision's, unfreeze's or timm's.
"""

import difflib
from typing import Any

import torch
from torch import Tensor, nn

from unfreeze.errors import UsageError, WeightsError
from unfreeze.models.small import SmallEncoder

LIBRARY = "smp"
SMALL_ENCODER = "unfreeze-small"
DEFAULT_DECODER = "unet"
DEFAULT_ENCODER = "resnet34"
SEGMENTATION_HEADS = ("decoder", "segmentation_head")  # modules that no weights are loaded into
INSTALL = "Install it: pip install 'unfreeze[segmentation]'."


def is_segmentation_arch(arch: str) -> bool:
    """Whether a name is `smp/DECODER/ENCODER`."""
    return arch.partition("/")[0] == LIBRARY


def segmentation_library() -> Any:
    """The imported segmentation_models_pytorch; UsageError if it is not installed."""
    try:
        import segmentation_models_pytorch
    except ImportError as error:
        raise UsageError(
            "Segmentation needs the package segmentation_models_pytorch.", INSTALL
        ) from error
    encoders = segmentation_models_pytorch.encoders.encoders
    encoders.setdefault(
        SMALL_ENCODER, {"encoder": SmallEncoder, "pretrained_settings": {}, "params": {}}
    )
    return segmentation_models_pytorch


def canonical_segmentation_arch(arch: str) -> str:
    """`smp/DECODER/ENCODER`; UsageError for an unknown decoder or encoder."""
    decoder, encoder = _parts(arch)
    smp = segmentation_library()
    decoders = list(smp.MODEL_ARCHITECTURES_MAPPING)
    if decoder not in decoders:
        raise UsageError(
            f"Unknown decoder '{decoder}' in '{arch}'.", f"Choose from: {', '.join(decoders)}."
        )
    if encoder.startswith("tu-"):
        import timm

        if not timm.is_model(encoder.removeprefix("tu-")):
            raise UsageError(
                f"timm has no network '{encoder.removeprefix('tu-')}'.",
                _suggest(encoder.removeprefix("tu-"), timm.list_models(), "tu-"),
            )
    elif encoder not in smp.encoders.encoders:
        raise UsageError(
            f"Unknown encoder '{encoder}' in '{arch}'.",
            _suggest(encoder, list(smp.encoders.encoders), ""),
        )
    return f"{LIBRARY}/{decoder}/{encoder}"


def _parts(arch: str) -> tuple[str, str]:
    _, decoder, encoder = (*arch.split("/", 2), "", "")[:3]
    if not decoder or not encoder:
        raise UsageError(
            f"'{arch}' is no segmentation network.",
            "Names look like smp/unet/resnet34 or, with an encoder of timm, "
            "smp/fpn/tu-convnext_tiny.",
        )
    return decoder.lower(), encoder


def _suggest(name: str, known: list[str], prefix: str) -> str:
    close = difflib.get_close_matches(name, known, n=4, cutoff=0.6)
    if close:
        return f"Did you mean {', '.join(prefix + match for match in close)}?"
    return "Use an encoder of segmentation_models_pytorch, or tu-NAME for one of timm."


def build_segmentation(arch: str, classes: int) -> nn.Module:
    """An untrained network: [B, 3, H, W] to logits [B, classes, H, W]; H, W multiples of 32."""
    decoder, encoder = _parts(canonical_segmentation_arch(arch))
    smp = segmentation_library()
    try:
        network: nn.Module = smp.create_model(
            decoder, encoder_name=encoder, encoder_weights=None, in_channels=3, classes=classes
        )
    except (ValueError, RuntimeError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise UsageError(
            f"segmentation_models_pytorch cannot build {arch}: {error}.",
            "Choose another encoder or decoder.",
        ) from error
    return network


def is_segmentation_network(model: nn.Module) -> bool:
    """Whether a model has an encoder, a decoder and a segmentation head."""
    return all(hasattr(model, part) for part in ("encoder", "decoder", "segmentation_head"))


def decoder_parameters(model: nn.Module) -> list[str]:
    """Names of the parameters of decoder and head: all that are not the encoder's."""
    return [name for name, _ in model.named_parameters() if not name.startswith("encoder.")]


class EncoderFeatures(nn.Module):
    """Maps [B, 3, H, W] to the means [B, C] of the encoder's last feature map."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.encoder: Any = model.encoder

    def forward(self, images: Tensor) -> Tensor:
        """Features of images."""
        features: Tensor = self.encoder(images)[-1]
        return features.mean(dim=(2, 3))


def backbone_arch(arch: str) -> str | None:
    """The classification network with an encoder's weights; None if no library has it."""
    _, encoder = _parts(arch)
    if encoder.startswith("tu-"):
        return f"timm/{encoder.removeprefix('tu-')}"
    if encoder == SMALL_ENCODER:
        return "unfreeze/small"
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    return f"torchvision/{encoder}" if encoder in known else None


def arch_with_encoder(backbone: str | None, decoder: str = DEFAULT_DECODER) -> str:
    """The segmentation network whose encoder takes weights of `backbone` (None: the default)."""
    if backbone is None:
        return f"{LIBRARY}/{decoder}/{DEFAULT_ENCODER}"
    if is_segmentation_arch(backbone):
        return backbone  # weights of a segmentation run
    if backbone == "unfreeze/small":
        return f"{LIBRARY}/{decoder}/{SMALL_ENCODER}"
    library, _, name = backbone.partition("/")
    native = library == "torchvision" and name in segmentation_library().encoders.encoders
    if library == "timm" or native:
        return f"{LIBRARY}/{decoder}/{name if native else f'tu-{name}'}"
    raise UsageError(
        f"No encoder of segmentation_models_pytorch has the layers of {backbone}.",
        "Use weights of a torchvision ResNet, of unfreeze/small or of a network of timm.",
    )


def load_encoder(model: nn.Module, backbone: nn.Module) -> None:
    """Copy a classification network's weights into the encoder of a segmentation network.

    Names are compared without dots, because feature extractors of timm write `stages_0` for
    `stages.0`. WeightsError if a parameter or a batch-norm statistic of the encoder has no
    counterpart of its shape. Layers after the last feature map (a head) are not used.
    """
    source = {name.replace(".", "_"): tensor for name, tensor in backbone.state_dict().items()}
    entries: dict[str, Tensor] = model.encoder.state_dict()  # type: ignore[union-attr]
    pairs = {name: source.get(name.removeprefix("model.").replace(".", "_")) for name in entries}
    missing = [
        name
        for name, tensor in pairs.items()
        if tensor is None or tensor.shape != entries[name].shape
    ]
    if missing:
        raise WeightsError(
            f"{len(missing)} entries of the encoder, first {missing[0]}, have no counterpart of "
            "their shape in the weights.",
            "Use an encoder of the same name as the network of the weights, with its usual stem.",
        )
    with torch.no_grad():
        for name, tensor in pairs.items():
            if tensor is not None:
                entries[name].copy_(tensor)
