"""Loads weights from any source into a network and reports what was matched."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from unfreeze.checkpoints.key_matching import KeyMatch, ShapeMismatch, is_averaged, match_keys
from unfreeze.checkpoints.model_file import licence_text, licences_in
from unfreeze.checkpoints.tensor_values import damage_sign, why_unusable
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.errors import WeightsError
from unfreeze.models.adapt import adapt_tensor, matched_tensor, resolve_mismatches
from unfreeze.models.build import canonical_arch
from unfreeze.models.head import head_layers, is_headless
from unfreeze.models.stem import first_convolution
from unfreeze.models.weight_sources import WeightSource, read_weights

# Below this matched share of the backbone's parameters a file counts as another network's.
MIN_MATCHED_SHARE = 0.9
# (part of a parameter name, network family), the most specific first: for the error message.
_FAMILIES = (
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
class LoadedWeights:
    """The result of loading weights.

    `share`: loaded share of the backbone's parameters, 0..1 (None: no weights were requested);
    `matched`, `missing`: names in the network; `unexpected`: names in the file. A skipped head is
    in none of them, but in `head`. `preprocess`: the weights' preprocessing (None: unknown);
    `source`: a description of the weights; `prefix`: prefix of the names in the file; `random`:
    backbone parameters that keep their random initialisation (only with `allow_partial`); `rest`:
    unused vectors and matrices of the file, such as a SwAV head, by name with the keys of their
    container; `terms`: a sentence about the `licence` and what is known of a teacher
    (`ModelCard.terms`); `notes`: how the weights were adapted, and whether the file has no
    checksum.
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
    terms: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def licence(self) -> str:
        """Sentences about the licences of the weights and of their teacher, or ""."""
        return licence_text(self.terms)

    @property
    def licences(self) -> dict[str, str]:
        """The licence of the weights, and that of their teacher, where they are known."""
        return licences_in(self.terms)

    @property
    def account(self) -> str:
        """One line: how much was loaded from where, what was not used, and what stayed random."""
        parts = [f"{self.share or 0:.1%} of the backbone loaded from {self.source}"]
        parts += [f"prefix '{self.prefix}' removed"] if self.prefix else []
        parts += ["averaged (EMA) weights"] if is_averaged(self.prefix) else []
        parts += self.notes
        names = "" if self.head == ("head",) else f" {', '.join(self.head)}"
        parts += [f"head{names} not loaded"] if self.head else []
        unused = [name.removeprefix(self.prefix) for name in self.unexpected]
        parts += [f"not used: {_grouped_names(unused)}"] if unused else []
        parts += [f"NOT LOADED (random): {_grouped_names(self.random)}"] if self.random else []
        return "; ".join(parts)


def load_weights(
    model: nn.Module, spec: str, *, arch: str, skip_head: bool = True, allow_partial: bool = False
) -> LoadedWeights:
    """Load `spec` (none, imagenet, NAME, URL, FILE or RUN) into a network in place.

    On an error the network is unchanged. WeightsError if less than 90 % of the backbone's
    parameters are matched, if any of them has another shape or batch-norm statistics are missing
    (with `allow_partial` only if nothing is matched), if a tensor is not dense and finite, and if
    the weights cannot be read or downloaded.
    """
    if spec == "none":
        return LoadedWeights(None, (), (), (), None, "none")
    name = canonical_arch(arch)
    origin = read_weights(spec, name)
    heads = head_layers(model) if skip_head and not is_headless(model) else ()
    entries = model.state_dict()
    model_shapes = {entry: tuple(tensor.shape) for entry, tensor in entries.items()}
    file_shapes = {entry: tuple(tensor.shape) for entry, tensor in origin.tensors.items()}
    result = resolve_mismatches(model, without_head(heads, match_keys(file_shapes, model_shapes)))
    share = backbone_share(model, heads, result)
    _check(model, origin, result, share, name, allow_partial)
    _check_values(origin, result, entries)
    with torch.no_grad():
        for model_name, file_name in result.pairs.items():
            tensor = matched_tensor(origin.tensors, file_name, result)
            entries[model_name].copy_(adapt_tensor(model, model_name, tensor, entries[model_name]))
    unmatched = {*result.missing, *(clash.wanted for clash in result.mismatched)}
    return LoadedWeights(
        share=share,
        matched=tuple(result.pairs),
        missing=result.missing,
        unexpected=result.unexpected,
        preprocess=origin.preprocess,
        source=origin.source,
        prefix=result.prefix,
        head=heads,
        random=tuple(name for name, _ in model.named_parameters() if name in unmatched),
        rest=_unused_tensors(origin, result),
        terms=origin.terms,
        notes=(*([f"matched {result.how}"] if result.how else []), *result.notes, *origin.notes),
    )


def _check_values(
    origin: WeightSource, result: KeyMatch, entries: Mapping[str, torch.Tensor]
) -> None:
    """WeightsError if a tensor to load is not dense and finite, or looks damaged."""
    for name, file_name in result.pairs.items():
        for part in result.joined.get(file_name, (file_name,)):
            tensor = origin.tensors[part]
            reason = why_unusable(tensor, entries[name])
            if not reason and origin.unproved and (reason := damage_sign(tensor)):
                reason += ": the file is damaged (its format has no checksum)"
            if reason:
                raise WeightsError(
                    f"{origin.name}: {part} {reason}.",
                    "Give other weights, or save these again as plain floating-point tensors.",
                )


def _unused_tensors(origin: WeightSource, result: KeyMatch) -> dict[str, torch.Tensor]:
    """Unused vectors and matrices: what could be a projection head or prototypes."""
    rest = {name: origin.tensors[name] for name in result.unexpected}
    for container, inside in origin.beside.items():
        rest |= {f"{container}.{name}" if container else name: t for name, t in inside.items()}
    return {name: tensor for name, tensor in rest.items() if tensor.dim() <= 2}


def _grouped_names(names: Iterable[str]) -> str:
    """`projection_head (7), prototypes (1)`: names counted by their first part."""
    counts = Counter(name.partition(".")[0] for name in names)
    listed = [f"{part} ({count})" for part, count in counts.items()]
    return ", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "")


def load_strict(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load an unfreeze model's tensors in place; WeightsError unless all names and shapes match.

    Copies, because `load_state_dict` may need a version that safetensors does not store (MNASNet).
    """
    entries = model.state_dict()
    differing = sorted(set(entries) ^ set(tensors)) or [
        name for name, entry in entries.items() if entry.shape != tensors[name].shape
    ]
    if differing:
        raise WeightsError(
            f"The saved model and {type(model).__name__} differ in {len(differing)} entries, first "
            f"{differing[0]}.",
            "Use the --arch, --stem and classes it was saved with.",
        )
    with torch.no_grad():
        for name, entry in entries.items():
            if reason := why_unusable(tensors[name], entry):
                raise WeightsError(
                    f"The saved model cannot be used: {name} {reason}.",
                    "Use an earlier checkpoint of the run, or train it again.",
                )
            entry.copy_(tensors[name])


def without_head(heads: tuple[str, ...], result: KeyMatch) -> KeyMatch:
    """The match without the head's entries."""

    def backbone(name: str) -> bool:
        return not any(name.startswith(f"{head}.") for head in heads)

    return replace(
        result,
        pairs={
            model_name: file_name
            for model_name, file_name in result.pairs.items()
            if backbone(model_name)
        },
        missing=tuple(name for name in result.missing if backbone(name)),
        mismatched=tuple(clash for clash in result.mismatched if backbone(clash.wanted)),
    )


def backbone_share(model: nn.Module, heads: tuple[str, ...], result: KeyMatch) -> float:
    """Matched share of the backbone's parameters, 0..1; buffers do not count."""
    sizes = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if not any(name.startswith(f"{head}.") for head in heads)
    }
    matched = sum(size for name, size in sizes.items() if name in result.pairs)
    return matched / max(sum(sizes.values()), 1)


def _check(
    model: nn.Module, origin: WeightSource, result: KeyMatch, share: float, arch: str, partial: bool
) -> None:
    if partial and share:
        return
    if share < MIN_MATCHED_SHARE and result.doubt:
        raise WeightsError(
            f"{origin.name} has the shapes of {arch} in order, but other names, which is not "
            f"conclusive: {result.doubt}.",
            "Save it with the parameter names of the library named in --arch.",
        )
    if share < MIN_MATCHED_SHARE:
        raise WeightsError(
            f"{origin.name} holds {share:.1%} of the parameters of {arch}: it looks like "
            f"{_family(origin.tensors)}, expected {_example_tensor(model.state_dict())}.",
            "Name the architecture of the file with --arch (`unfreeze inspect` shows it), or give "
            "other weights" + ("; --allow-partial loads what matches." if share else "."),
        )
    if result.mismatched:
        raise _mismatch_error(model, origin, result.mismatched)
    missing = [name for name in result.missing if name.endswith(("running_mean", "running_var"))]
    if missing:
        raise WeightsError(
            f"{origin.name} lacks batch-norm statistics ({len(missing)}, first {missing[0]}).",
            "Save the complete state_dict(), not only the parameters.",
        )


def _mismatch_error(
    model: nn.Module, origin: WeightSource, clashes: tuple[ShapeMismatch, ...]
) -> WeightsError:
    first = clashes[0]
    stem = next((clash for clash in clashes if clash.wanted == first_convolution(model)), None)
    if stem is not None and stem.found_shape[1:2] != stem.wanted_shape[1:2]:
        return WeightsError(
            f"The first convolution of {origin.name} is {_shape_text(stem.found_shape)}: it takes "
            f"{stem.found_shape[1]} channels, and that of this network is "
            f"{_shape_text(stem.wanted_shape)}.",
            "Use the --arch and --stem it was trained with.",
        )
    if stem is not None:
        return WeightsError(
            f"The first convolution of {origin.name} is {_shape_text(stem.found_shape)}, that of "
            f"this network {_shape_text(stem.wanted_shape)}.",
            "Use --stem small." if stem.found_shape[-1] == 3 else "Use --stem imagenet.",
        )
    return WeightsError(
        f"{len(clashes)} tensors of {origin.name} differ in shape from this network, first "
        f"{first.wanted}: {_shape_text(first.found_shape)} instead of "
        f"{_shape_text(first.wanted_shape)}.",
        "Use the --arch and --image-size the weights were trained with.",
    )


def _family(tensors: Mapping[str, torch.Tensor]) -> str:
    family = next(
        (kind for part, kind in _FAMILIES if any(part in name for name in tensors)),
        "another network",
    )
    return f"{family} ({_example_tensor(tensors)})"


def _example_tensor(tensors: Mapping[str, torch.Tensor]) -> str:
    name, tensor = next(iter(tensors.items()))
    return f"{len(tensors)} tensors such as {name} {_shape_text(tuple(tensor.shape))}"


def _shape_text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
