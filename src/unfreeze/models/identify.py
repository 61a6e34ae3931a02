"""Identifies the architecture of a checkpoint by comparing names and shapes with candidates."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from torch import nn

from unfreeze.checkpoints.key_dialects import concatenated_shape, translated_names
from unfreeze.checkpoints.key_matching import KeyMatch, Shape, match_keys
from unfreeze.errors import UsageError
from unfreeze.models.adapt import resolve_mismatches
from unfreeze.models.build import STEMS, build_on_meta, canonical_arch
from unfreeze.models.catalogue import same_computation, similar_entries
from unfreeze.models.head import head_layers
from unfreeze.models.load_weights import backbone_share, without_head
from unfreeze.models.stem import first_convolution

# Below this share of matched backbone parameters a network is not considered the file's.
LIKELY = 0.5
# Factor on the likeness of a network whose first layer is missing: the file is of a larger network.
_WITHOUT_FIRST = 0.25
# (parameter name, architecture) patterns that decide between equal fits: a checkpoint with this
# parameter is a port of TensorFlow's EfficientNet, with TensorFlow's padding and normalisation.
_MEANT = ((re.compile(r"(^|\.)_conv_stem\.weight$"), re.compile(r"timm/tf_")),)


@dataclass(frozen=True)
class ArchitectureMatch:
    """An architecture and how well a file matches it.

    `share`: matched share of the backbone's parameters, 0..1; `head`: names of the head's layers;
    `headed`: whether the file has them with equal shapes; `result`: the match, without the head;
    `rivals`: other architectures that match equally well but compute another function.
    """

    arch: str
    stem: str
    share: float
    head: tuple[str, ...]
    headed: bool
    result: KeyMatch
    rivals: tuple[str, ...] = ()


def identify_arch(
    file_shapes: Mapping[str, Shape], hints: Iterable[str] = (), file: str = ""
) -> ArchitectureMatch | None:
    """The architecture that best matches a file's names and shapes; None if nothing matches.

    `file_shapes`: by parameter name; `hints`: architecture names from the file's metadata, tried
    first. Then the torchvision, timm and unfreeze networks with the most shapes in common are
    compared. Between equal matches, parameter names and the name of the `file` decide.
    """
    fits = _fits(file_shapes, _known_archs(hints))
    if not fits or fits[0].likeness < LIKELY:
        fits = sorted([*fits, *_fits(file_shapes, _candidates(file_shapes))], key=_Fit.order)
    if not fits or not fits[0].likeness:
        return None
    best_archs = [fit.arch for fit in fits if fit.order() == fits[0].order()]
    named_arch = _choose_by_names(best_archs, file_shapes, file, fits[0].way)
    best_guess = match_arch(file_shapes, named_arch or best_archs[0])
    rivals = tuple(arch for arch in best_archs if not same_computation(arch, best_archs[0]))
    return best_guess if named_arch else replace(best_guess, rivals=rivals)


@dataclass(frozen=True)
class _Fit:
    """How well a file matches a network (`likeness`).

    `way`: 0 by names, 1 by translated names, 2 by order of shapes.
    """

    arch: str
    likeness: float
    way: int

    def order(self) -> tuple[float, int]:
        """Sort key: the best fit first."""
        return -self.likeness, self.way


def _candidates(file_shapes: Mapping[str, Shape]) -> Iterator[str]:
    """One network of each group that resembles the file, as written or with translated names."""
    tables = [
        {name: concatenated_shape(olds, file_shapes) for name, olds in t.items()}
        for _, t in translated_names(file_shapes)
    ]
    for table in (file_shapes, *tables[-1:]):
        for entry in similar_entries(table):
            for group in entry.groups:
                yield from islice(_known_archs(_sort_by_image_size(group, file_shapes)), 1)


def _sort_by_image_size(group: Sequence[str], file_shapes: Mapping[str, Shape]) -> list[str]:
    """A group's names; first those with the image size that the file's position embeddings have."""
    patch_kernel = next((s for s in file_shapes.values() if len(s) == 4 and s[1] == 3), ())
    positions = next((s for n, s in file_shapes.items() if re.search(r"pos(ition)?_embed", n)), ())
    if len(patch_kernel) != 4 or len(positions) != 3:
        return list(group)
    side = math.isqrt(max(positions[1] - 1, 0)) * patch_kernel[-1]
    # prefer the shortest of several names for one network (vit_, deit_, ...)
    return sorted(group, key=lambda n: (not re.search(rf"(?<!\d){side}(?!\d)", n), len(n)))


def _choose_by_names(
    best: Sequence[str], file_shapes: Mapping[str, Shape], file: str, method: int
) -> str:
    """The network among equal matches that names point to; "" if none do.

    The file name decides first. Then torchvision's network is preferred, as others reuse its
    parameter names with another computation; for translated vision transformers, timm's.
    """
    for entries, archs in _MEANT:
        if any(entries.search(name) for name in file_shapes):
            best = [arch for arch in best if archs.match(arch)] or best
    flat = re.sub(r"[^a-z0-9]+", "_", file.lower())
    in_file_name = [arch for arch in best if re.sub(r"[^a-z0-9]+", "_", _bare(arch)) in flat]
    if in_file_name:
        return max(in_file_name, key=lambda arch: len(_bare(arch)))
    if method == 1:
        best = [arch for arch in best if not arch.startswith("torchvision/vit_")] or best
    other_archs = [arch for arch in best if not arch.startswith("timm/")]
    if len(other_archs) == 1 and method < 2:
        return other_archs[0]
    same = all(same_computation(best[0], other) for other in best[1:])
    return best[0] if same else ""


def _bare(arch: str) -> str:
    return arch.partition("/")[2].partition(".")[0].lower()


def match_arch(
    file_shapes: Mapping[str, Shape], arch: str, stem: str = "imagenet"
) -> ArchitectureMatch:
    """How a file matches one architecture; with the other stem if its first layer has that."""
    model = build_on_meta(arch, stem)
    heads = head_layers(model)
    full_match = match_keys(file_shapes, _shapes(model))
    first = next((c for c in full_match.mismatched if c.wanted == first_convolution(model)), None)
    other = STEMS[1 - STEMS.index(stem)]
    if first is not None and first.found_shape[-1] == (3 if other == "small" else 7):
        try:
            return match_arch(file_shapes, arch, other)
        except UsageError:
            pass  # the network has one stem only
    result = resolve_mismatches(model, without_head(heads, full_match))
    return ArchitectureMatch(
        arch=arch,
        stem=stem,
        share=backbone_share(model, heads, result),
        head=heads,
        headed=all(any(name.startswith(f"{head}.") for name in full_match.pairs) for head in heads),
        result=result,
    )


def _fits(file_shapes: Mapping[str, Shape], candidates: Iterable[str]) -> list[_Fit]:
    """How well candidates match, the best first, without those that cannot win.

    Matching names is slow; counting common shapes is fast and bounds the match from above. So
    candidates are matched in order of that bound, until it drops below the best match.
    """
    file_counts = Counter(file_shapes.values())
    for _, table in translated_names(file_shapes):
        file_counts |= Counter(concatenated_shape(olds, file_shapes) for olds in table.values())
    models = {arch: build_on_meta(arch) for arch in dict.fromkeys(candidates)}
    model_shapes = {arch: _shapes(model) for arch, model in models.items()}
    upper_bounds = {
        arch: _likeness(_elements(file_counts & Counter(shapes.values())), shapes, file_shapes)
        for arch, shapes in model_shapes.items()
    }
    fits: list[_Fit] = []
    for arch in sorted(model_shapes, key=lambda candidate: -upper_bounds[candidate]):
        if fits and upper_bounds[arch] < max(fit.likeness for fit in fits):
            break
        result = match_keys(file_shapes, model_shapes[arch])
        matched = _elements(Counter(model_shapes[arch][name] for name in result.pairs))
        likeness = _likeness(matched, model_shapes[arch], file_shapes)
        if first_convolution(models[arch]) not in _matched_names(result):
            likeness *= _WITHOUT_FIRST
        fits.append(_Fit(arch, likeness, _method_of(result.how)))
    return sorted(fits, key=_Fit.order)


def _method_of(how: str) -> int:
    return 0 if not how else 1 if "names" in how else 2


def _matched_names(result: KeyMatch) -> set[str]:
    """The model's names that the file has an entry for, of any shape."""
    return {*result.pairs, *(clash.wanted for clash in result.mismatched)}


def _likeness(
    matched: int, model_shapes: Mapping[str, Shape], file_shapes: Mapping[str, Shape]
) -> float:
    """Matched elements relative to those of both sides: a part of a network scores low."""
    model_elements, file_elements = (
        _elements(Counter(shapes.values())) for shapes in (model_shapes, file_shapes)
    )
    # other tensors of the file (heads, copies) count little: all candidates lack them
    return matched / max(model_elements + 0.01 * max(file_elements - matched, 0), 1)


def _elements(shapes: Counter[Shape]) -> int:
    return sum(count * math.prod(shape) for shape, count in shapes.items())


def _known_archs(hints: Iterable[str]) -> Iterator[str]:
    for hint in dict.fromkeys(hints):
        for name in (hint, f"timm/{hint}"):
            try:
                yield canonical_arch(name)
                break
            except UsageError:
                continue


def _shapes(model: nn.Module) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
