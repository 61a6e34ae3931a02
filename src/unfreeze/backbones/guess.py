"""Which network a file is of: candidates built without numbers, compared by names and shapes."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from unfreeze.backbones.build import OWN, STEMS, WIDE, build, canonical, torchvision_names
from unfreeze.backbones.head import head_layers
from unfreeze.backbones.stem import first_convolution
from unfreeze.backbones.weights import backbone_share, without_head
from unfreeze.checkpoints.keys import Match, Shape, match
from unfreeze.errors import UsageError

# Below this share of its backbone a network is not what the file is of.
LIKELY = 0.5
# A telling part of a name -> the torchvision networks (by how they begin) that write such names.
_FAMILIES = (
    (r"denselayer\d", "densenet"),
    (r"\.\d+\.conv2\.weight", "res|wide"),
    (r"squeeze\.weight", "squeezenet"),
    (r"inception\d", "googlenet"),
    (r"Mixed_\d", "inception"),
    (r"encoder_layer_\d", "vit"),
    (r"trunk_output\.", "regnet"),
    (r"relative_position_bias_table|cpb_mlp", "swin|maxvit"),
    (r"layer_scale", "convnext"),
    (r"\.block\.\d+\.\d+\.", "efficientnet|mobilenet_v3"),
    (r"\.conv\.\d+\.\d+\.weight", "mobilenet_v2"),
    (r"layers\.\d+\.\d+\.layers\.", "mnasnet"),
    (r"branch2\.\d", "shufflenet"),
    (r"(^|\.)features(\.module)?\.\d+\.weight", "alexnet|vgg"),
)
_FILLS = {"normal_", "uniform_", "erfinv_", "fill_", "zero_", "mul_", "add_", "clamp_"}
_VIT_SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}


@dataclass(frozen=True)
class Guess:
    """A network and how a file fits it.

    `share`: of its backbone's parameters found, 0..1; `head`: names of its head's layers, `headed`:
    whether the file has them in that shape; `result`: the pairing, without the head.
    """

    arch: str
    stem: str
    share: float
    head: tuple[str, ...]
    headed: bool
    result: Match


def guess(found: Mapping[str, Shape], hints: Iterable[str] = ()) -> Guess | None:
    """The closest network to a file's names and shapes; None where nothing fits at all.

    `hints`: what the file says of itself, tried first. Compared are torchvision's classification
    networks, our own, and those of timm's that a hint or a vision transformer's shapes name.
    """
    likeness, arch = _closest(found, _named(hints))
    if likeness < LIKELY:
        telling = list(_telling(found))
        likeness, arch = max((likeness, arch), _closest(found, telling or _others(found)))
    return fitted(found, arch) if arch else None


def fitted(found: Mapping[str, Shape], arch: str, stem: str = "imagenet") -> Guess:
    """How a file fits one network; with the other stem where its first layer is of that."""
    model = skeleton(arch, stem)
    heads = head_layers(model)
    whole = match(found, _shapes(model))
    first = next((c for c in whole.mismatched if c.wanted == first_convolution(model)), None)
    other = STEMS[1 - STEMS.index(stem)]
    if first is not None and first.found_shape[-1] == (3 if other == "small" else 7):
        try:
            return fitted(found, arch, other)
        except UsageError:
            pass  # the network has but one stem
    result = without_head(heads, whole)
    return Guess(
        arch=arch,
        stem=stem,
        share=backbone_share(model, heads, result),
        head=heads,
        headed=all(f"{head}.weight" in whole.pairs for head in heads),
        result=result,
    )


def skeleton(arch: str, stem: str = "imagenet") -> nn.Module:
    """The network on the meta device: names and shapes, no memory, no arithmetic."""
    with _Weightless():
        return build(arch, stem=stem).to("meta")


class _Weightless(TorchFunctionMode):
    """Large tensors are made without memory; small ones that a constructor computes with stay."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """`torch.empty`, from which all layers make their weights, makes them on meta."""
        options = dict(kwargs or {})
        if func is torch.empty:
            options["device"] = "meta"
        elif func.__name__ in _FILLS and args and args[0].is_meta:
            return args[0]  # there are no numbers to set, and finding that out takes long
        return func(*args, **options)


def _closest(found: Mapping[str, Shape], candidates: Iterable[str]) -> tuple[float, str]:
    """(likeness, architecture) of the best candidate; 0 and "" where none has anything in common.

    Pairing names is dear and counting shapes is cheap, and no pairing matches more than the shapes
    that both sides have: candidates come in that order, until none left can be better.
    """
    theirs = Counter(found.values())
    wanted = {arch: _shapes(skeleton(arch)) for arch in dict.fromkeys(candidates)}
    most = {
        arch: _likeness(_elements(theirs & Counter(shapes.values())), shapes, found)
        for arch, shapes in wanted.items()
    }
    best = (0.0, "")
    for arch in sorted(wanted, key=lambda one: -most[one]):
        if most[arch] <= best[0]:
            break
        pairs = match(found, wanted[arch]).pairs
        matched = _elements(Counter(wanted[arch][name] for name in pairs))
        likeness = _likeness(matched, wanted[arch], found)
        best = max(best, (likeness, arch), key=lambda one: one[0])
    return best


def _likeness(matched: int, ours: Mapping[str, Shape], theirs: Mapping[str, Shape]) -> float:
    """Matched elements over those of both sides: a part of a network is not the network."""
    whole, held = (_elements(Counter(shapes.values())) for shapes in (ours, theirs))
    # what else a file holds (heads, copies) counts little: all candidates lack it
    return matched / max(whole + 0.01 * max(held - matched, 0), 1)


def _elements(shapes: Counter[Shape]) -> int:
    return sum(count * math.prod(shape) for shape, count in shapes.items())


def _named(hints: Iterable[str]) -> Iterator[str]:
    for hint in dict.fromkeys(hints):
        for name in (hint, f"timm/{hint}"):
            try:
                yield canonical(name)
                break
            except UsageError:
                continue


def _telling(found: Mapping[str, Shape]) -> Iterator[str]:
    """Networks of the families whose way of naming shows in the file."""
    begins = [start for part, start in _FAMILIES if any(re.search(part, name) for name in found)]
    if any(re.search(r"\.\d+\.conv2\.weight", name) for name in found):
        yield from (f"unfreeze/{name}" for name in WIDE)
    if any(re.search(r"(^|\.)stage\d\.conv1\.", name) for name in found):
        yield from (f"unfreeze/{name}" for name in OWN)
    for name in torchvision_names():
        if begins and re.match("|".join(begins), name):
            yield f"torchvision/{name}"
    yield from _vision_transformer(found)


def _others(found: Mapping[str, Shape]) -> Iterator[str]:
    """Every network of torchvision's, for what has a convolution, as all of them have."""
    if any(len(shape) == 4 for shape in found.values()):
        yield from (f"torchvision/{name}" for name in torchvision_names())


def _vision_transformer(found: Mapping[str, Shape]) -> Iterator[str]:
    """Timm's name of a plain vision transformer (DINO's are such) from its first layer."""
    patches = next((s for n, s in found.items() if n.endswith("patch_embed.proj.weight")), None)
    places = next((s for n, s in found.items() if n.endswith("pos_embed")), None)
    if patches is None or places is None or len(patches) != 4 or len(places) != 3:
        return
    size, patch = _VIT_SIZES.get(patches[0]), patches[-1]
    side = round((places[1] - 1) ** 0.5) * patch
    yield from _named([f"timm/vit_{size}_patch{patch}_{side}"] if size else [])


def _shapes(model: nn.Module) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
