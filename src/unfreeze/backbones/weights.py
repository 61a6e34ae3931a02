"""Weights from anywhere into a network, with an account of what found its place."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from unfreeze.backbones.adapt import adapted, fitted, gathered
from unfreeze.backbones.build import canonical
from unfreeze.backbones.head import head_layers, is_headless
from unfreeze.backbones.origins import Origin, fetch
from unfreeze.backbones.stem import first_convolution
from unfreeze.checkpoints.keys import Match, Mismatch, is_averaged, match
from unfreeze.checkpoints.values import oddity, scar
from unfreeze.data.preprocess import Preprocess
from unfreeze.errors import WeightsError

# Below this share of the backbone's parameters a file is taken for another network's.
ENOUGH = 0.9
# Telling parts of names, the most telling first: what a file looks like that does not fit.
_LOOKS = (
    ("layer4.0.conv3", "a ResNet-50 or deeper"),
    ("layer4.0.conv2", "a ResNet-18 or -34"),
    ("denseblock1", "a DenseNet"),
    ("squeeze.weight", "a SqueezeNet"),
    ("inception3a", "a GoogLeNet"),
    ("Mixed_5b", "an Inception-v3"),
    ("encoder_layer_0", "a torchvision vision transformer"),
    ("blocks.0.attn.qkv", "a vision transformer of timm's or DINO's kind"),
    ("trunk_output.", "a RegNet"),
    ("relative_position_bias_table", "a Swin transformer"),
    ("layer_scale", "a ConvNeXt"),
    ("classifier.6", "an AlexNet or VGG"),
    ("block.0.0", "a MobileNet or EfficientNet"),
    ("vision_model.", "a transformers model"),
)


@dataclass(frozen=True)
class Loaded:
    """What came of loading weights.

    `share`: of the backbone's parameters, 0..1 (None: no weights were asked for); `matched`,
    `missing`: names in the network, `unexpected`: names in the file; the head stands in none of
    them where it was skipped, but in `head`. `preprocess`: what the weights want (None: unknown);
    `source`: what they are, in words. `prefix`: what stood before the names in the file; `random`:
    parameters of the backbone that kept their untrained values (only where that was allowed);
    `rest`: vectors and matrices of the file that found no place, a SwAV head among them, under
    their names with the keys that led there; `licence`: a sentence for whoever uses them, or "";
    `notes`: what was done so that they fit, and whether a checksum vouches for them.
    """

    share: float | None
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    preprocess: Preprocess | None
    source: str
    prefix: str = ""
    head: tuple[str, ...] = ()
    random: tuple[str, ...] = ()
    rest: Mapping[str, torch.Tensor] = field(default_factory=dict)
    licence: str = ""
    notes: tuple[str, ...] = ()

    @property
    def account(self) -> str:
        """One line: how much was found where, what found no place, and what stayed random."""
        said = [f"{self.share or 0:.1%} of the backbone found in {self.source}"]
        said += [f"'{self.prefix}' taken off the names"] if self.prefix else []
        said += ["an averaged copy"] if is_averaged(self.prefix) else []
        said += self.notes
        said += [f"head {', '.join(self.head)} not loaded"] if self.head else []
        unused = [name.removeprefix(self.prefix) for name in self.unexpected]
        said += [f"not used: {_grouped(unused)}"] if unused else []
        said += [f"STAYED RANDOM: {_grouped(self.random)}"] if self.random else []
        return "; ".join(said)


def load_weights(
    model: nn.Module, spec: str, *, arch: str, skip_head: bool = True, allow_partial: bool = False
) -> Loaded:
    """Load `spec` (none, imagenet, NAME, URL, FILE or RUN) into a network in place.

    The network is touched only when all is well. WeightsError where less than 90 % of the
    backbone's parameters are found, where any of them has another shape or a batch norm would be
    left without its statistics (with `allow_partial` only where nothing is found), where a tensor
    holds no plain, finite numbers, and where the weights cannot be had.
    """
    if spec == "none":
        return Loaded(None, (), (), (), None, "none")
    name = canonical(arch)
    origin = fetch(spec, name)
    heads = head_layers(model) if skip_head and not is_headless(model) else ()
    entries = model.state_dict()
    wanted = {entry: tuple(tensor.shape) for entry, tensor in entries.items()}
    found = {entry: tuple(tensor.shape) for entry, tensor in origin.tensors.items()}
    result = adapted(model, without_head(heads, match(found, wanted)))
    share = backbone_share(model, heads, result)
    _check(model, origin, result, share, name, allow_partial)
    _check_values(origin, result, entries)
    with torch.no_grad():
        for own, theirs in result.pairs.items():
            tensor = gathered(origin.tensors, theirs, result)
            entries[own].copy_(fitted(model, own, tensor, entries[own]))
    left = {*result.missing, *(clash.wanted for clash in result.mismatched)}
    return Loaded(
        share=share,
        matched=tuple(result.pairs),
        missing=result.missing,
        unexpected=result.unexpected,
        preprocess=origin.preprocess,
        source=origin.source,
        prefix=result.prefix,
        head=heads,
        random=tuple(name for name, _ in model.named_parameters() if name in left),
        rest=_rest(origin, result),
        licence=origin.licence,
        notes=(*([f"paired {result.how}"] if result.how else []), *result.notes, *origin.notes),
    )


def _check_values(origin: Origin, result: Match, entries: Mapping[str, torch.Tensor]) -> None:
    """WeightsError where a tensor that would be loaded is not plain, or not finite."""
    for own, theirs in result.pairs.items():
        for part in result.joined.get(theirs, (theirs,)):
            tensor = origin.tensors[part]
            reason = oddity(tensor, entries[own])
            if not reason and origin.unproved and (reason := scar(tensor)):
                reason += ": the file is damaged (its format has no checksum)"
            if reason:
                raise WeightsError(
                    f"{origin.name}: {part} {reason}.",
                    "Give other weights, or save these again as plain floating-point tensors.",
                )


def _rest(origin: Origin, result: Match) -> dict[str, torch.Tensor]:
    """What a projection head or prototypes could be: nothing that a convolution needs."""
    rest = {name: origin.tensors[name] for name in result.unexpected}
    for container, inside in origin.beside.items():
        rest |= {f"{container}.{name}" if container else name: t for name, t in inside.items()}
    return {name: tensor for name, tensor in rest.items() if tensor.dim() <= 2}


def _grouped(names: Iterable[str]) -> str:
    """`projection_head (7), prototypes (1)`: names by their first part."""
    counts = Counter(name.partition(".")[0] for name in names)
    listed = [f"{part} ({count})" for part, count in counts.items()]
    return ", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "")


def load_exactly(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load our own saved state: the same names and shapes on both sides, else WeightsError.

    Copies, because `load_state_dict` may want a version that safetensors does not carry (MNASNet).
    """
    entries = model.state_dict()
    odd = sorted(set(entries) ^ set(tensors)) or [
        name for name, entry in entries.items() if entry.shape != tensors[name].shape
    ]
    if odd:
        raise WeightsError(
            f"The saved model and {type(model).__name__} differ in {len(odd)} entries, first "
            f"{odd[0]}.",
            "Use the --arch, --stem and classes it was saved with.",
        )
    with torch.no_grad():
        for name, entry in entries.items():
            if reason := oddity(tensors[name], entry):
                raise WeightsError(
                    f"The saved model cannot be used: {name} {reason}.",
                    "Take an earlier checkpoint of the run, or train it again.",
                )
            entry.copy_(tensors[name])


def without_head(heads: tuple[str, ...], result: Match) -> Match:
    """The same pairing with the head's entries in none of its parts."""

    def backbone(name: str) -> bool:
        return not any(name.startswith(f"{head}.") for head in heads)

    return replace(
        result,
        pairs={own: theirs for own, theirs in result.pairs.items() if backbone(own)},
        missing=tuple(name for name in result.missing if backbone(name)),
        mismatched=tuple(clash for clash in result.mismatched if backbone(clash.wanted)),
    )


def backbone_share(model: nn.Module, heads: tuple[str, ...], result: Match) -> float:
    """Matched share of the parameters; buffers are loaded, but a few more would hide a layer."""
    sizes = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if not any(name.startswith(f"{head}.") for head in heads)
    }
    matched = sum(size for name, size in sizes.items() if name in result.pairs)
    return matched / max(sum(sizes.values()), 1)


def _check(
    model: nn.Module, origin: Origin, result: Match, share: float, arch: str, partial: bool
) -> None:
    if partial and share:
        return
    if share < ENOUGH and result.doubt:
        raise WeightsError(
            f"{origin.name} has the shapes of {arch} in order, but under other names, and that is "
            f"no proof: {result.doubt}.",
            "Save it with the parameter names of the library named in --arch.",
        )
    if share < ENOUGH:
        raise WeightsError(
            f"{origin.name} holds {share:.1%} of the parameters of {arch}: it looks like "
            f"{_looks(origin.tensors)}, expected was {_example(model.state_dict())}.",
            "Name the architecture of the file with --arch (`unfreeze inspect` says which it is), "
            "or give other weights" + ("; --allow-partial loads what fits." if share else "."),
        )
    if result.mismatched:
        raise _clash(model, origin, result.mismatched)
    lost = [name for name in result.missing if name.endswith(("running_mean", "running_var"))]
    if lost:
        raise WeightsError(
            f"{origin.name} lacks batch-norm statistics ({len(lost)}, first {lost[0]}).",
            "Save the whole state_dict(), not the parameters alone.",
        )


def _clash(model: nn.Module, origin: Origin, clashes: tuple[Mismatch, ...]) -> WeightsError:
    first = clashes[0]
    stem = next((one for one in clashes if one.wanted == first_convolution(model)), None)
    if stem is not None and stem.found_shape[1:2] != stem.wanted_shape[1:2]:
        return WeightsError(
            f"The first convolution of {origin.name} is {_text(stem.found_shape)}: it takes "
            f"{stem.found_shape[1]} channels, and that of this network is "
            f"{_text(stem.wanted_shape)}.",
            "Use the --arch and --stem it was trained with.",
        )
    if stem is not None:
        return WeightsError(
            f"The first convolution of {origin.name} is {_text(stem.found_shape)}, that of this "
            f"network {_text(stem.wanted_shape)}.",
            "Use --stem small." if stem.found_shape[-1] == 3 else "Use --stem imagenet.",
        )
    return WeightsError(
        f"{len(clashes)} tensors of {origin.name} differ in shape from this network, first "
        f"{first.wanted}: {_text(first.found_shape)} instead of {_text(first.wanted_shape)}.",
        "Use the --arch and --image-size the weights were trained with.",
    )


def _looks(tensors: Mapping[str, torch.Tensor]) -> str:
    family = next(
        (kind for part, kind in _LOOKS if any(part in name for name in tensors)), "another network"
    )
    return f"{family} ({_example(tensors)})"


def _example(tensors: Mapping[str, torch.Tensor]) -> str:
    name, tensor = next(iter(tensors.items()))
    return f"{len(tensors)} tensors such as {name} {_text(tuple(tensor.shape))}"


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
