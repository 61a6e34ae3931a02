"""Weights adapted to another shape: first convolutions (input channels), position embeddings."""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from unfreeze.checkpoints.key_matching import KeyMatch, Shape, ShapeMismatch
from unfreeze.models.position_embeddings import grid_side, prefix_tokens, resample_positions
from unfreeze.models.stem import first_convolution

COLOURS = 3
_POSITIONS = ("pos_embed", "pos_embedding")  # last part of the parameter name in timm, torchvision


def resolve_mismatches(model: nn.Module, result: KeyMatch) -> KeyMatch:
    """The match, with the shape mismatches that `fitted` can resolve moved into its pairs."""
    resolved = [mismatch for mismatch in result.mismatched if _adaptation(model, mismatch)]
    if not resolved:
        return result
    return replace(
        result,
        pairs=result.pairs | {mismatch.wanted: mismatch.found for mismatch in resolved},
        mismatched=tuple(mismatch for mismatch in result.mismatched if mismatch not in resolved),
        notes=(*result.notes, *(_adaptation(model, mismatch) for mismatch in resolved)),
    )


def adapt_tensor(model: nn.Module, name: str, tensor: Tensor, target: Tensor) -> Tensor:
    """The tensor in the shape of `wanted`, the model's state-dict entry `name`."""
    if tensor.shape == target.shape:
        return tensor
    if name == first_convolution(model):
        return _to_three_channels(tensor)
    prefix = prefix_tokens(model)
    side = grid_side(target.shape[1], prefix)
    return resample_positions(tensor, (side, side), prefix)


def matched_tensor(tensors: Mapping[str, Tensor], name: str, result: KeyMatch) -> Tensor:
    """The tensor of a matched name: from the file, or several of its tensors concatenated."""
    if name in result.joined:
        return torch.cat([tensors[part] for part in result.joined[name]])
    return tensors[name]


def _adaptation(model: nn.Module, mismatch: ShapeMismatch) -> str:
    """How a shape mismatch is resolved; "" if it cannot be."""
    file_shape, model_shape = mismatch.found_shape, mismatch.wanted_shape
    name = mismatch.wanted
    if name == first_convolution(model) and _differ_in_channels(file_shape, model_shape):
        channels = file_shape[1]
        return f"first layer adapted from {channels} to 3 channels ({_channel_note(channels)})"
    if name.rpartition(".")[2] in _POSITIONS and _square_grids(file_shape, model_shape, model):
        prefix = prefix_tokens(model)
        old, new = grid_side(file_shape[1], prefix), grid_side(model_shape[1], prefix)
        return f"position embeddings interpolated from {old}x{old} to {new}x{new}"
    return ""


def _differ_in_channels(file_shape: Shape, model_shape: Shape) -> bool:
    return (
        len(file_shape) == len(model_shape) == 4
        and model_shape[1] == COLOURS != file_shape[1]
        and (file_shape[0], *file_shape[2:]) == (model_shape[0], *model_shape[2:])
    )


def _channel_note(channels: int) -> str:
    if channels == 1:
        return "weights divided by 3: same output on greyscale images"
    used = "first three channels" if channels > COLOURS else "channels repeated"
    return f"{used}, scaled by {channels}/3"


def _to_three_channels(weight: Tensor) -> Tensor:
    """Kernels [O, n, h, w] as [O, 3, h, w], as timm does: channels repeated or dropped, scaled."""
    channels = weight.shape[1]
    repeated = weight.float().repeat(1, math.ceil(COLOURS / channels), 1, 1)[:, :COLOURS]
    return (repeated * (channels / COLOURS)).to(weight.dtype)


def _square_grids(file_shape: Shape, model_shape: Shape, model: nn.Module) -> bool:
    if (
        len(file_shape) != 3
        or len(model_shape) != 3
        or (file_shape[0], file_shape[2]) != (model_shape[0], model_shape[2])
    ):
        return False
    prefix = prefix_tokens(model)
    return bool(grid_side(file_shape[1], prefix) and grid_side(model_shape[1], prefix))
