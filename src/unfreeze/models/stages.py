"""Divides a network into a stem and stages in forward order, the units of layer freezing."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from unfreeze.models.head import head_layers, removed_heads
from unfreeze.models.segmentation import EncoderFeatures, is_segmentation_network
from unfreeze.models.shape_trace import ForwardTrace, trace_forward
from unfreeze.models.text import TextClassifier, layers_of

# A container is split into its children if it does at least this share of the computation ...
TRUNK_SHARE = 0.5
# ... and works at several resolutions, or if it does at least this share.
NEARLY_ALL_SHARE = 0.85
# A feature map is downsampled if its side falls to this share (299 to 149 is, 149 to 147 is not).
DOWNSAMPLED_BELOW = 0.75
# A network of one or two resolutions (a vision transformer) is split into this many runs of blocks.
EQUAL_STAGES = 4


@dataclass(frozen=True)
class Stage:
    """Consecutive layers. `modules`: dotted names of modules or of single parameters."""

    name: str
    modules: tuple[str, ...]

    def owns(self, parameter: str) -> bool:
        """Whether the parameter or buffer of this name belongs to the stage."""
        return any(parameter == part or parameter.startswith(f"{part}.") for part in self.modules)


@dataclass(frozen=True)
class _Unit:
    """A module that is not split further.

    `order`: position in the forward pass, -1 for bare parameters; `side`: of its output feature
    map in pixels, 0 if it has none.
    """

    name: str
    order: float
    side: float
    single: bool  # one layer, not a block of several
    heavy: bool  # has weights beyond those of a normalisation


def stages(model: nn.Module) -> list[Stage]:
    """Stem and stages in forward order; every parameter but the head's belongs to exactly one.

    A new stage begins where the feature map is downsampled, as in ResNet's layer1 to layer4 or
    between VGG's poolings; a transformer of one resolution is split into four equal runs of blocks.
    Layers between the last feature map and the head (VGG's two Linears) form a last stage;
    normalisations there belong to the stage before.
    """
    if isinstance(model, TextClassifier):
        return _text_stages(model)
    heads: tuple[str, ...] = ()
    if is_segmentation_network(model):  # decoder and head belong to no stage
        model = EncoderFeatures(model)
    traced = trace_forward(model)
    if not isinstance(model, EncoderFeatures):
        heads = removed_heads(model) or head_layers(model, known_trace=traced)
    units = sorted(_units(model, traced, heads), key=lambda unit: unit.order)
    stem, rest = _split_stem(units)
    runs, tail = _split_runs(rest)
    if runs and len(runs) < 3:
        longest = runs.index(max(runs, key=len))
        runs[longest : longest + 1] = _equal_parts(runs[longest], EQUAL_STAGES + 1 - len(runs))
    if tail:
        runs.append(tail)
    return [Stage("stem", _unit_names(stem)), *_named_stages(runs)]


def _text_stages(model: TextClassifier) -> list[Stage]:
    """The embeddings, then each layer of the encoder; what follows belongs to the last one."""
    before, layers, after = layers_of(model.encoder)
    runs = [("embeddings", before), *((f"layer{n}", [name]) for n, name in enumerate(layers, 1))]
    runs[-1][1].extend(after)
    return [Stage(name, tuple(f"encoder.{part}" for part in parts)) for name, parts in runs]


def _split_stem(units: list[_Unit]) -> tuple[list[_Unit], list[_Unit]]:
    # The stem is the first module and the single layers after it at the same resolution. Bare
    # parameters (class token, position embedding) sort first.
    end = next((i for i, unit in enumerate(units) if unit.order >= 0), len(units)) + 1
    while end < len(units) and units[end].single and units[end].side == units[end - 1].side:
        end += 1
    return units[:end], units[end:]


def _split_runs(units: list[_Unit]) -> tuple[list[list[_Unit]], list[_Unit]]:
    runs: list[list[_Unit]] = []
    tail: list[_Unit] = []
    side = math.inf
    for unit in units:
        if unit.side == 0 and unit.heavy:
            tail.append(unit)
        elif runs and (not unit.heavy or unit.side > DOWNSAMPLED_BELOW * side):
            runs[-1].append(unit)
        else:
            runs.append([unit])
            side = unit.side or side
    return runs, tail


def _equal_parts(units: list[_Unit], parts: int) -> list[list[_Unit]]:
    blocks = [unit for unit in units if not unit.single]
    parts = min(parts, len(blocks))
    if parts < 2:
        return [units]
    starts = [units.index(blocks[i * len(blocks) // parts]) for i in range(parts)]
    edges = [0, *starts[1:], len(units)]
    return [units[low:high] for low, high in itertools.pairwise(edges)]


def _named_stages(runs: list[list[_Unit]]) -> list[Stage]:
    # If every stage is one block, use the block names: layer1, stages.2.
    blocks = [[unit.name for unit in run if unit.heavy] for run in runs]
    if all(len(names) == 1 for names in blocks):
        return [Stage(names[0], _unit_names(run)) for names, run in zip(blocks, runs, strict=True)]
    # ShuffleNet's first stage is a module called stage2: use another word to avoid confusion.
    ambiguous = any(name.startswith("stage") for names in blocks for name in names)
    word = "part" if ambiguous else "stage"
    return [Stage(f"{word}{i}", _unit_names(run)) for i, run in enumerate(runs, start=1)]


def _unit_names(units: list[_Unit]) -> tuple[str, ...]:
    return tuple(unit.name for unit in units)


def _units(model: nn.Module, traced: ForwardTrace, heads: tuple[str, ...]) -> Iterator[_Unit]:
    total = sum(
        _multiplications(child, name, traced)
        for name, child in model.named_children()
        if not any(_within(head, name) for head in heads)
    )
    yield from _split_module("", model, traced, heads, total)


def _split_module(
    name: str, module: nn.Module, traced: ForwardTrace, heads: tuple[str, ...], total: float
) -> Iterator[_Unit]:
    for child_name, _ in module.named_parameters(recurse=False):
        yield _Unit(_join(name, child_name), order=-1, side=0, single=True, heavy=True)
    for child_name, child in module.named_children():
        path = _join(name, child_name)
        if path in heads or not _has_parameters(child):
            continue
        around_head = any(_within(head, path) for head in heads)
        if around_head or _is_trunk(path, child, traced, total):
            yield from _split_module(path, child, traced, heads, total)
        else:
            yield _unit(path, child, traced)


def _is_trunk(name: str, module: nn.Module, traced: ForwardTrace, total: float) -> bool:
    children = [
        child_name for child_name, child in module.named_children() if _has_parameters(child)
    ]
    share = _multiplications(module, name, traced) / max(total, 1)
    if not children or share < TRUNK_SHARE:
        return False
    sides = [_side(traced, f"{name}.{child_name}") for child_name in children]
    shrinks = any(
        0 < later <= DOWNSAMPLED_BELOW * side for side, later in itertools.pairwise(sides)
    )
    return shrinks or share >= NEARLY_ALL_SHARE


def _unit(name: str, module: nn.Module, traced: ForwardTrace) -> _Unit:
    inside = [path for path in traced.order if _within(path, name)]
    order = min((traced.order[path] for path in inside), default=math.inf)
    weights = [parameter for parameter in module.parameters() if parameter.dim() > 1]
    single = not weights or not any(True for _ in module.children())
    return _Unit(name, order=order, side=_side(traced, name), single=single, heavy=bool(weights))


def _side(traced: ForwardTrace, name: str) -> float:
    """Side of a module's output feature map; for a container without forward, of its last child."""
    if name not in traced.shapes:
        inside = [path for path in traced.shapes if _within(path, name)]
        if not inside:
            return 0
        name = max(inside, key=lambda path: (-path.count("."), traced.order[path]))
    return _map_side(traced.shapes[name])


def _map_side(shape: tuple[int, ...]) -> float:
    if len(shape) == 3:  # [B, tokens, width]
        return math.sqrt(shape[1])
    if len(shape) == 4:  # [B, C, S, S] or, as in Swin, [B, S, S, C]
        return shape[2]
    return 0


def _within(name: str, outer: str) -> bool:
    return name == outer or name.startswith(f"{outer}.")


def _join(outer: str, name: str) -> str:
    return f"{outer}.{name}" if outer else name


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _multiplications(module: nn.Module, name: str, traced: ForwardTrace) -> float:
    """Approximate multiplications: each layer's parameters times its output positions."""
    total = 0.0
    for layer_name, layer in module.named_modules():
        shape = traced.shapes.get(_join(name, layer_name) if layer_name else name)
        if shape is not None:
            positions = max(_map_side(shape), 1) ** 2
            total += positions * sum(weight.numel() for weight in layer.parameters(recurse=False))
    return total
