"""Loading of projection head and prototypes from other SwAV weights.

Parameter names differ between tools and are matched by name and shape: `projection_head` (the
reference and unfreeze), `projector` (solo-learn), `projection_head.layers` (lightly),
`heads.0.projection_head` (VISSL). Weight-normed prototypes are loaded by their direction.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from unfreeze.checkpoints.key_matching import match_keys
from unfreeze.checkpoints.model_file import model_folder, read_card
from unfreeze.checkpoints.read import read_checkpoint
from unfreeze.checkpoints.tensor_values import why_unusable
from unfreeze.swav.model import SwAV

_PROTOTYPES = re.compile(r"(?:^|\.)prototypes\d*(?:\.heads\.\d+)?\.weight$")
_HEAD = re.compile(r"(?:^|\.)(?:projection_head|projector)(?:\.layers)?\.(\d+)\.weight$")
_OURS = re.compile(r"(?:^|\.)(?:projection_head|projector|prototypes\d*)(?:\.|$)")
# Weight norm's parameters, old and new torch names: (length, direction).
_NORMED = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)


@dataclass(frozen=True)
class LoadedHead:
    """The loaded parts ("projection head", "prototypes"), and a sentence about each part."""

    taken: tuple[str, ...]
    said: tuple[str, ...]


def load_swav_head(model: SwAV, rest: Mapping[str, torch.Tensor]) -> LoadedHead:
    """Copy head and prototypes of `rest` (tensors by name) into `model` where they fit.

    A head counts as SwAV's only together with prototypes, and prototypes are meaningful only in
    the space of their own head: with another head they are not loaded.
    """
    for name, tensor in rest.items():
        if _OURS.search(name) and (why := why_unusable(tensor, tensor)):
            return LoadedHead(
                (), (f"Projection head and prototypes start at random: {name} {why}.",)
            )
    plain = without_weight_norm(rest)
    names = prototypes_in(plain)
    if not names:
        return LoadedHead((), ("No SwAV head in the weights: the head starts at random.",))
    why = _load_head(model, plain)
    if why:
        return LoadedHead((), (f"The SwAV head starts at random: {why}.",))
    current = model.prototypes.weight
    matching = next((name for name in names if plain[name].shape == current.shape), None)
    if matching is None:
        K, d = plain[names[0]].shape
        note = f"Prototypes start at random: {K:,} in the weights, {len(current):,} here"
        note += f" (--nmb-prototypes {K} loads them)." if d == current.shape[1] else "."
        return LoadedHead(("projection head",), ("Projection head loaded.", note))
    with torch.no_grad():
        current.copy_(plain[matching])
    bias = matching.removesuffix("weight") + "bias"
    note = "Projection head and prototypes loaded"
    note += "; the prototypes' bias is not used, scores are cosines." if bias in plain else "."
    return LoadedHead(("projection head", "prototypes"), (note,))


def prototypes_in(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the prototype matrices [K, d] among `tensors`, in order."""
    return [name for name, t in tensors.items() if t.dim() == 2 and _PROTOTYPES.search(name)]


def count_near_identical(
    prototypes: torch.Tensor, *, cosine: float = 0.999, rows: int = 1024
) -> int:
    """Number of the prototypes [K, d] with another one at a cosine above `cosine`."""
    Z = F.normalize(prototypes.float(), dim=1)
    count = 0
    for start in range(0, len(Z), rows):
        block = Z[start : start + rows] @ Z.T
        index = torch.arange(len(block))
        block[index, start + index] = -1.0  # not itself
        count += int((block > cosine).any(1).sum())
    return count


def head_weights_of_run(spec: str) -> tuple[dict[str, torch.Tensor], str]:
    """(head and prototypes of a pretraining run, reason if none): from its last checkpoint."""
    folder = model_folder(spec)
    last = Path(spec) / "checkpoints" / "last.ckpt"
    if folder is None or not last.exists():
        return {}, "" if folder is None else f"{spec} holds only the backbone"
    contents = read_checkpoint(last)
    steps, step = read_card(folder).provenance.get("steps"), contents.meta.get("step")
    if steps != step:
        return {}, f"{last} is of step {step}, the model is of step {steps}"
    parts = ("projection_head.", "prototypes.")
    return {name: t for name, t in contents.tensors.items() if name.startswith(parts)}, ""


def _load_head(model: SwAV, plain: Mapping[str, torch.Tensor]) -> str:
    """Copy the projection head if all of it fits; else return why it does not."""
    state = {n: t for n, t in model.state_dict().items() if n.startswith("projection_head.")}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    pairs = match_keys({n: tuple(t.shape) for n, t in plain.items()}, shapes).pairs
    missing = [n for n in shapes if n not in pairs and not n.endswith("num_batches_tracked")]
    # a bias before batch norm has no effect, and some tools omit it
    unused_bias = "projection_head.0.bias"
    if missing == [unused_bias] and "projection_head.1.running_mean" in pairs:
        missing = []
    if missing:
        return f"it is {_widths(plain)} in the weights, {_widths(state)} here"
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(plain[pairs[name]]) if name in pairs else tensor.zero_()
    return ""


def _widths(tensors: Mapping[str, torch.Tensor]) -> str:
    """Description of the head in `tensors`, as `2048-2048-128 with batch norm`."""
    layers = {int(m[1]): t for n, t in tensors.items() if (m := _HEAD.search(n))}
    linear = [layers[number] for number in sorted(layers) if layers[number].dim() == 2]
    if not linear:
        return "of unknown structure"
    widths = "-".join(str(n) for n in (linear[0].shape[1], *(t.shape[0] for t in linear)))
    normed = any(t.dim() == 1 for t in layers.values())
    return f"{widths} {'with' if normed else 'without'} batch norm"


def without_weight_norm(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors with `weight_g, weight_v` replaced by one `weight` of unit rows.

    The lengths are dropped: scores are cosines.
    """
    plain = dict(tensors)
    for name in tensors:
        for length, direction in _NORMED:
            start = name.removesuffix(direction)
            if start != name and start + length in tensors:
                plain[start + "weight"] = F.normalize(plain.pop(name).float(), dim=1)
                del plain[start + length]
    return plain
