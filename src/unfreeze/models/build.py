"""Builds networks by name: torchvision/resnet50, timm/vit_small_patch16_224, unfreeze/small."""

import difflib
from typing import Any, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from unfreeze.errors import UsageError
from unfreeze.models.position_embeddings import ANY_SIZE, allow_any_size
from unfreeze.models.segmentation import (
    build_segmentation,
    canonical_segmentation_arch,
    is_segmentation_arch,
)
from unfreeze.models.small import SMALL_NETWORKS
from unfreeze.models.stem import apply_small_stem
from unfreeze.models.text import LIBRARY as TEXT_LIBRARY
from unfreeze.models.text import TextClassifier, encoder_name, is_text_arch, load_encoder_of

WIDE_NETWORKS = ("resnet50w2", "resnet50w4", "resnet50w5")  # SwAV's, under the names of its flags
STEMS = ("imagenet", "small")
# in-place functions that weight initialisers call
_FILLS = {"normal_", "uniform_", "erfinv_", "fill_", "zero_", "mul_", "add_", "clamp_"}


def canonical_arch(arch: str) -> str:
    """The full name of an architecture; a bare name means torchvision, or SwAV's wide ResNets.

    UsageError for an unknown name; it suggests the closest ones.
    """
    if is_segmentation_arch(arch):
        return canonical_segmentation_arch(arch)
    if is_text_arch(arch):
        return f"{TEXT_LIBRARY}/{encoder_name(arch)}"
    library, slash, name = arch.partition("/")
    if not slash:
        library, name = "unfreeze" if arch in WIDE_NETWORKS else "torchvision", arch
    if library in ("torchvision", "timm", "unfreeze") and _exists(library, name):
        return f"{library}/{name}"
    raise UsageError(f"Unknown architecture '{arch}'.", _suggest(arch))


def build(
    arch: str, *, stem: str = "imagenet", classes: int | None = None, image_size: int | None = None
) -> nn.Module:
    """An untrained network with a head of `classes` outputs (None: the library's default).

    No auxiliary classifiers. `stem="small"` makes the first convolution 3x3 with stride 1 and
    removes the pooling after it, for images of 32 to 64 pixels. Vision transformers accept any
    image size, or only `image_size` if it is given.
    """
    if stem not in STEMS:
        raise UsageError(f"'{stem}' is not a stem.", "Use --stem imagenet or --stem small.")
    if is_segmentation_arch(arch):
        return build_segmentation(arch, 2 if classes is None else classes)
    if is_text_arch(arch):
        loaded = load_encoder_of(encoder_name(arch), trained=False)
        return TextClassifier(loaded.encoder, loaded.pooling, 2 if classes is None else classes)
    library, _, name = canonical_arch(arch).partition("/")
    if name in SMALL_NETWORKS and library == "unfreeze":
        return _small(name, classes)
    makers = {"torchvision": _torchvision, "timm": _timm, "unfreeze": _wide}
    model = makers[library](name, classes, image_size)
    if stem == "small":
        apply_small_stem(model)
    return model


def _small(name: str, classes: int | None) -> nn.Module:
    # these networks are for small images and have one stem only: `stem` does not apply
    factory = SMALL_NETWORKS[name]
    return factory() if classes is None else factory(classes)


def _wide(name: str, classes: int | None, _: int | None) -> nn.Module:
    from unfreeze.models import resnet_wide

    network: nn.Module = getattr(resnet_wide, name)(1000 if classes is None else classes)
    return network


def _torchvision(name: str, classes: int | None, image_size: int | None) -> nn.Module:
    import torchvision

    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    if name in ("googlenet", "inception_v3"):
        # The published weights expect inputs rescaled inside the network. Always on, so that a
        # name means one computation, with or without weights.
        options |= {"aux_logits": False, "init_weights": True, "transform_input": True}
    if image_size is not None and name.startswith("vit_"):
        options["image_size"] = image_size
    model = cast(nn.Module, torchvision.models.get_model(name, weights=None, **options))
    return model if image_size else allow_any_size(model)


def _timm(name: str, classes: int | None, image_size: int | None) -> nn.Module:
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    try:
        model = _create_timm(name, options, {"img_size": image_size} if image_size else ANY_SIZE)
    except RuntimeError as error:
        raise UsageError(f"timm cannot build '{name}': {error}", _suggest(name)) from error
    if image_size is not None:
        model.default_cfg = dict(model.default_cfg, input_size=(3, image_size, image_size))
    if model.num_classes == 0:
        # published without a head (self-supervised pretraining)
        model.reset_classifier(1000)
    return cast(nn.Module, model)


def _create_timm(name: str, options: dict[str, Any], size: dict[str, Any]) -> Any:
    """The timm model; without the `size` arguments if its constructor does not accept them."""
    import timm

    try:
        return timm.create_model(name, pretrained=False, **options, **size)
    except TypeError as error:
        if not any(word in str(error) for word in size):
            raise
        return timm.create_model(name, pretrained=False, **options)


def _exists(library: str, name: str) -> bool:
    if library == "unfreeze":
        return name in (*SMALL_NETWORKS, *WIDE_NETWORKS)
    if library == "torchvision":
        return name in torchvision_names()
    import timm

    return bool(timm.is_model(name))


def torchvision_names() -> list[str]:
    """Names of torchvision's classification models, without `torchvision/`."""
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def _suggest(arch: str) -> str:
    import timm

    name = arch.rpartition("/")[2].lower()
    known = [(model, f"torchvision/{model}") for model in torchvision_names()]
    known += [(model, f"unfreeze/{model}") for model in (*SMALL_NETWORKS, *WIDE_NETWORKS)]
    known += [(model, f"timm/{model}") for model in timm.list_models()]
    close = difflib.get_close_matches(name, [short for short, _ in known], n=4, cutoff=0.6)
    full = list(dict.fromkeys(full for match in close for short, full in known if short == match))
    if not full:
        return "Names look like torchvision/resnet50, timm/vit_small_patch16_224, unfreeze/small."
    return f"Did you mean {', '.join(full[:5])}?"


def build_on_meta(arch: str, stem: str = "imagenet") -> nn.Module:
    """The network on the meta device: names and shapes without memory or computation."""
    try:
        with _Weightless():
            return build(arch, stem=stem).to("meta")
    except (UsageError, RuntimeError):  # some timm constructors compute with their weights
        return build(arch, stem=stem).to("meta")


class _Weightless(TorchFunctionMode):
    """Creates weights on the meta device; other tensors that a constructor needs stay real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Redirects `torch.empty`, with which all layers allocate their weights, to meta."""
        options = dict(kwargs or {})
        if func is torch.empty:
            options["device"] = "meta"
        elif func.__name__ in _FILLS and args and args[0].is_meta:
            return args[0]  # nothing to initialise, and torch's meta kernels are slow
        return func(*args, **options)
