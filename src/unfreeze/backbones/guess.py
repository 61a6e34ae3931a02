"""Identifies the architecture of a checkpoint by comparing names and shapes with candidates."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from torch import nn

from unfreeze.backbones.adapt import adapted
from unfreeze.backbones.build import STEMS, canonical, skeleton
from unfreeze.backbones.catalogue import resembling, same_computation
from unfreeze.backbones.head import head_layers
from unfreeze.backbones.stem import first_convolution
from unfreeze.backbones.weights import backbone_share, without_head
from unfreeze.checkpoints.dialects import shape_of, variants
from unfreeze.checkpoints.keys import Match, Shape, match
from unfreeze.errors import UsageError

# Below this share of matched backbone parameters a network is not considered the file's.
LIKELY = 0.5
# Factor on the likeness of a network whose first layer is missing: the file is of a larger network.
_WITHOUT_FIRST = 0.25
# (parameter name, architecture) patterns that decide between equal fits: a checkpoint with this
# parameter is a port of TensorFlow's EfficientNet, with TensorFlow's padding and normalisation.
_MEANT = ((re.compile(r"(^|\.)_conv_stem\.weight$"), re.compile(r"timm/tf_")),)


@dataclass(frozen=True)
class Guess:
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
    result: Match
    rivals: tuple[str, ...] = ()


def guess(found: Mapping[str, Shape], hints: Iterable[str] = (), file: str = "") -> Guess | None:
    """The architecture that best matches a file's names and shapes; None if nothing matches.

    `found`: shapes by parameter name; `hints`: architecture names from the file's metadata, tried
    first. Then the torchvision, timm and unfreeze networks with the most shapes in common are
    compared. Between equal matches, parameter names and the name of the `file` decide.
    """
    fits = _fits(found, _named(hints))
    if not fits or fits[0].likeness < LIKELY:
        fits = sorted([*fits, *_fits(found, _candidates(found))], key=_Fit.order)
    if not fits or not fits[0].likeness:
        return None
    best = [fit.arch for fit in fits if fit.order() == fits[0].order()]
    chosen = _meant(best, found, file, fits[0].way)
    made = fitted(found, chosen or best[0])
    rivals = tuple(arch for arch in best if not same_computation(arch, best[0]))
    return made if chosen else replace(made, rivals=rivals)


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


def _candidates(found: Mapping[str, Shape]) -> Iterator[str]:
    """One network of each group that resembles the file, as written or with translated names."""
    tables = [{name: shape_of(olds, found) for name, olds in t.items()} for _, t in variants(found)]
    for table in (found, *tables[-1:]):
        for alike in resembling(table):
            for group in alike.groups:
                yield from islice(_named(_by_size(group, found)), 1)


def _by_size(group: Sequence[str], found: Mapping[str, Shape]) -> list[str]:
    """A group's names; first those with the image size that the file's position embeddings have."""
    patches = next((s for s in found.values() if len(s) == 4 and s[1] == 3), ())
    places = next((s for n, s in found.items() if re.search(r"pos(ition)?_embed", n)), ())
    if len(patches) != 4 or len(places) != 3:
        return list(group)
    side = math.isqrt(max(places[1] - 1, 0)) * patches[-1]
    # prefer the shortest of several names for one network (vit_, deit_, ...)
    return sorted(group, key=lambda n: (not re.search(rf"(?<!\d){side}(?!\d)", n), len(n)))


def _meant(best: Sequence[str], found: Mapping[str, Shape], file: str, way: int) -> str:
    """The network among equal matches that names point to; "" if none do.

    The file name decides first. Then torchvision's network is preferred, as others reuse its
    parameter names with another computation; for translated vision transformers, timm's.
    """
    for entries, archs in _MEANT:
        if any(entries.search(name) for name in found):
            best = [arch for arch in best if archs.match(arch)] or best
    flat = re.sub(r"[^a-z0-9]+", "_", file.lower())
    within = [arch for arch in best if re.sub(r"[^a-z0-9]+", "_", _bare(arch)) in flat]
    if within:
        return max(within, key=lambda arch: len(_bare(arch)))
    if way == 1:
        best = [arch for arch in best if not arch.startswith("torchvision/vit_")] or best
    plain = [arch for arch in best if not arch.startswith("timm/")]
    if len(plain) == 1 and way < 2:
        return plain[0]
    same = all(same_computation(best[0], other) for other in best[1:])
    return best[0] if same else ""


def _bare(arch: str) -> str:
    return arch.partition("/")[2].partition(".")[0].lower()


def fitted(found: Mapping[str, Shape], arch: str, stem: str = "imagenet") -> Guess:
    """How a file matches one architecture; with the other stem if its first layer has that."""
    model = skeleton(arch, stem)
    heads = head_layers(model)
    whole = match(found, _shapes(model))
    first = next((c for c in whole.mismatched if c.wanted == first_convolution(model)), None)
    other = STEMS[1 - STEMS.index(stem)]
    if first is not None and first.found_shape[-1] == (3 if other == "small" else 7):
        try:
            return fitted(found, arch, other)
        except UsageError:
            pass  # the network has one stem only
    result = adapted(model, without_head(heads, whole))
    return Guess(
        arch=arch,
        stem=stem,
        share=backbone_share(model, heads, result),
        head=heads,
        headed=all(f"{head}.weight" in whole.pairs for head in heads),
        result=result,
    )


def _fits(found: Mapping[str, Shape], candidates: Iterable[str]) -> list[_Fit]:
    """How well candidates match, the best first, without those that cannot win.

    Matching names is slow; counting common shapes is fast and bounds the match from above. So
    candidates are matched in order of that bound, until it drops below the best match.
    """
    theirs = Counter(found.values())
    for _, table in variants(found):
        theirs |= Counter(shape_of(olds, found) for olds in table.values())
    models = {arch: skeleton(arch) for arch in dict.fromkeys(candidates)}
    wanted = {arch: _shapes(model) for arch, model in models.items()}
    most = {
        arch: _likeness(_elements(theirs & Counter(shapes.values())), shapes, found)
        for arch, shapes in wanted.items()
    }
    fits: list[_Fit] = []
    for arch in sorted(wanted, key=lambda one: -most[one]):
        if fits and most[arch] < max(fit.likeness for fit in fits):
            break
        result = match(found, wanted[arch])
        matched = _elements(Counter(wanted[arch][name] for name in result.pairs))
        likeness = _likeness(matched, wanted[arch], found)
        if first_convolution(models[arch]) not in _named_in(result):
            likeness *= _WITHOUT_FIRST
        fits.append(_Fit(arch, likeness, _way(result.how)))
    return sorted(fits, key=_Fit.order)


def _way(how: str) -> int:
    return 0 if not how else 1 if "names" in how else 2


def _named_in(result: Match) -> set[str]:
    """The model's names that the file has an entry for, of any shape."""
    return {*result.pairs, *(clash.wanted for clash in result.mismatched)}


def _likeness(matched: int, ours: Mapping[str, Shape], theirs: Mapping[str, Shape]) -> float:
    """Matched elements relative to those of both sides: a part of a network scores low."""
    whole, held = (_elements(Counter(shapes.values())) for shapes in (ours, theirs))
    # other tensors of the file (heads, copies) count little: all candidates lack them
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


def _shapes(model: nn.Module) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
