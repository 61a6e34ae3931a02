"""Which network a file is of: candidates built without numbers, compared by names and shapes."""

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

# Below this share of its backbone a network is not what the file is of.
LIKELY = 0.5
# A network whose first layer is not in the file is taken for a part of another one by this factor.
_WITHOUT_FIRST = 0.25
# Names of entries -> how the networks are called that are meant where several fit: this one is the
# port of TensorFlow's EfficientNet, which pads and normalises as TensorFlow does.
_MEANT = ((re.compile(r"(^|\.)_conv_stem\.weight$"), re.compile(r"timm/tf_")),)


@dataclass(frozen=True)
class Guess:
    """A network and how a file fits it.

    `share`: of its backbone's parameters found, 0..1; `head`: names of its head's layers, `headed`:
    whether the file has them in that shape; `result`: the pairing, without the head; `rivals`:
    other networks that it fits as well and that compute something else.
    """

    arch: str
    stem: str
    share: float
    head: tuple[str, ...]
    headed: bool
    result: Match
    rivals: tuple[str, ...] = ()


def guess(found: Mapping[str, Shape], hints: Iterable[str] = (), file: str = "") -> Guess | None:
    """The closest network to a file's names and shapes; None where nothing fits at all.

    `hints`: what the file says of itself, tried first. Compared are those of torchvision's, timm's
    and our own networks that have the most shapes in common with it. Of several that fit equally
    the one is taken that the entries' names or the name of the `file` mean, if any.
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
    """How like a network a file is, and by what: 0 names, 1 translated names, 2 order alone."""

    arch: str
    likeness: float
    way: int

    def order(self) -> tuple[float, int]:
        """The best first."""
        return -self.likeness, self.way


def _candidates(found: Mapping[str, Shape]) -> Iterator[str]:
    """One network of each group that resembles the file, also where it is read by other rules."""
    tables = [{name: shape_of(olds, found) for name, olds in t.items()} for _, t in variants(found)]
    for table in (found, *tables[-1:]):
        for alike in resembling(table):
            for group in alike.groups:
                yield from islice(_named(_by_size(group, found)), 1)


def _by_size(group: Sequence[str], found: Mapping[str, Shape]) -> list[str]:
    """A group's names; those first that say the image size the file's embeddings are for."""
    patches = next((s for s in found.values() if len(s) == 4 and s[1] == 3), ())
    places = next((s for n, s in found.items() if re.search(r"pos(ition)?_embed", n)), ())
    if len(patches) != 4 or len(places) != 3:
        return list(group)
    side = math.isqrt(max(places[1] - 1, 0)) * patches[-1]
    # of vit_, deit_ and longer names of one network the plainest
    return sorted(group, key=lambda n: (not re.search(rf"(?<!\d){side}(?!\d)", n), len(n)))


def _meant(best: Sequence[str], found: Mapping[str, Shape], file: str, way: int) -> str:
    """Of networks that fit equally the one that names say; "" where none do.

    The name of the file comes first; then torchvision's networks, whose names of entries others
    took over with another computation; of translated vision transformers timm's.
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
    """How candidates fit, the best first; those are left out that cannot win.

    Pairing names is dear and counting shapes is cheap, and no pairing matches more than the shapes
    that both sides have: candidates come in that order, until none left can be as good.
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
    """Wanted names for which the file has an entry, whatever its shape."""
    return {*result.pairs, *(clash.wanted for clash in result.mismatched)}


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


def _shapes(model: nn.Module) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
