"""A start that is more than a backbone: projection head and prototypes of other SwAV weights.

Names differ from tool to tool and are found by shape and place: the reference's and our own
`projection_head`, solo-learn's `projector`, lightly's `projection_head.layers`, VISSL's
`heads.0.projection_head`; prototypes by their name, weight-normed ones by their direction.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from unfreeze.checkpoints.keys import match
from unfreeze.checkpoints.modelfile import card_of, model_folder
from unfreeze.checkpoints.read import read_checkpoint
from unfreeze.checkpoints.values import oddity
from unfreeze.swav.model import SwAV

_PROTOTYPES = re.compile(r"(?:^|\.)prototypes\d*(?:\.heads\.\d+)?\.weight$")
_HEAD = re.compile(r"(?:^|\.)(?:projection_head|projector)(?:\.layers)?\.(\d+)\.weight$")
_OURS = re.compile(r"(?:^|\.)(?:projection_head|projector|prototypes\d*)(?:\.|$)")
# What weight norm leaves of a matrix, in torch's older and newer writing; the direction is second.
_NORMED = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)


@dataclass(frozen=True)
class Inherited:
    """What was taken ("projection head", "prototypes"), and a sentence about each part."""

    taken: tuple[str, ...]
    said: tuple[str, ...]


def inherit(model: SwAV, rest: Mapping[str, torch.Tensor]) -> Inherited:
    """Copy head and prototypes out of `rest` (tensors by name) where they fit, in place.

    A head is one of SwAV only where prototypes are beside it, and prototypes mean something only
    in the space of their own head: with another head they are left out, too.
    """
    for name, tensor in rest.items():
        if _OURS.search(name) and (why := oddity(tensor, tensor)):
            return Inherited((), (f"Projection head and prototypes start anew: {name} {why}.",))
    plain = without_weight_norm(rest)
    found = prototypes_in(plain)
    if not found:
        return Inherited((), ("No SwAV head in the weights: it starts at random.",))
    why = _take_head(model, plain)
    if why:
        return Inherited((), (f"The SwAV head starts at random: {why}.",))
    own = model.prototypes.weight
    fitting = next((name for name in found if plain[name].shape == own.shape), None)
    if fitting is None:
        K, d = plain[found[0]].shape
        said = f"Prototypes start at random: {K:,} in the weights, {len(own):,} here"
        said += f" (--nmb-prototypes {K} takes them)." if d == own.shape[1] else "."
        return Inherited(("projection head",), ("Projection head loaded.", said))
    with torch.no_grad():
        own.copy_(plain[fitting])
    bias = fitting.removesuffix("weight") + "bias"
    said = "Projection head and prototypes loaded"
    said += "; the prototypes' bias is not used, scores are cosines." if bias in plain else "."
    return Inherited(("projection head", "prototypes"), (said,))


def prototypes_in(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of prototype matrices [K, d] among named tensors, in their order."""
    return [name for name, t in tensors.items() if t.dim() == 2 and _PROTOTYPES.search(name)]


def near_identical(prototypes: torch.Tensor, *, cosine: float = 0.999, rows: int = 1024) -> int:
    """How many of K prototypes [K, d] have a twin: another whose cosine with them is above."""
    Z = F.normalize(prototypes.float(), dim=1)
    count = 0
    for start in range(0, len(Z), rows):
        block = Z[start : start + rows] @ Z.T
        place = torch.arange(len(block))
        block[place, start + place] = -1.0  # not with itself
        count += int((block > cosine).any(1).sum())
    return count


def rest_of_run(spec: str) -> tuple[dict[str, torch.Tensor], str]:
    """(head and prototypes of a pretraining run, why there are none): its model/ has none."""
    folder = model_folder(spec)
    last = Path(spec) / "checkpoints" / "last.ckpt"
    if folder is None or not last.exists():
        return {}, "" if folder is None else f"{spec} holds the backbone alone"
    contents = read_checkpoint(last)
    steps, step = card_of(folder).provenance.get("steps"), contents.meta.get("step")
    if steps != step:
        return {}, f"{last} is of step {step}, the model of step {steps}"
    parts = ("projection_head.", "prototypes.")
    return {name: t for name, t in contents.tensors.items() if name.startswith(parts)}, ""


def _take_head(model: SwAV, plain: Mapping[str, torch.Tensor]) -> str:
    """Copy the projection head where it fits whole; else why it does not."""
    state = {n: t for n, t in model.state_dict().items() if n.startswith("projection_head.")}
    wanted = {name: tuple(tensor.shape) for name, tensor in state.items()}
    pairs = match({n: tuple(t.shape) for n, t in plain.items()}, wanted).pairs
    lacking = [n for n in wanted if n not in pairs and not n.endswith("num_batches_tracked")]
    # a bias before a batch norm does nothing, and some leave it out
    idle = "projection_head.0.bias"
    if lacking == [idle] and "projection_head.1.running_mean" in pairs:
        lacking = []
    if lacking:
        return f"theirs is {_widths(plain)}, here {_widths(state)}"
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(plain[pairs[name]]) if name in pairs else tensor.zero_()
    return ""


def _widths(tensors: Mapping[str, torch.Tensor]) -> str:
    """`2048-2048-128 with batch norm` of the head among named tensors."""
    layers = {int(hit[1]): t for n, t in tensors.items() if (hit := _HEAD.search(n))}
    linear = [layers[number] for number in sorted(layers) if layers[number].dim() == 2]
    if not linear:
        return "written in a way that is not known"
    widths = "-".join(str(n) for n in (linear[0].shape[1], *(t.shape[0] for t in linear)))
    normed = any(t.dim() == 1 for t in layers.values())
    return f"{widths} {'with' if normed else 'without'} batch norm"


def without_weight_norm(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same with `weight_g, weight_v` as one `weight` of unit rows.

    Their lengths are no part of a prototype: its scores are cosines.
    """
    plain = dict(tensors)
    for name in tensors:
        for length, direction in _NORMED:
            start = name.removesuffix(direction)
            if start != name and start + length in tensors:
                plain[start + "weight"] = F.normalize(plain.pop(name).float(), dim=1)
                del plain[start + length]
    return plain
