"""Prepares a file's tensors for loading: merges adapters, refuses quantised weights."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from unfreeze.checkpoints.adapters import merged
from unfreeze.checkpoints.read import Contents
from unfreeze.checkpoints.values import scales_in
from unfreeze.errors import WeightsError

_UNQUANTISED = "Give the weights from before the quantisation, or dequantise and save them."


@dataclass(frozen=True)
class Usable:
    """Named tensors ready to load, and notes on what was changed."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def usable(contents: Contents, path: Path | None, name: str) -> Usable:
    """The tensors of a file, ready to be matched with a network's.

    `path`: the file's path; `name`: for messages. WeightsError for a quantised file and for
    adapters that cannot be merged.
    """
    scales = scales_in(contents.tensors)
    if scales:
        raise WeightsError(
            f"{name} is quantised: {scales[0]} ({len(scales)} such tensors) is a scale for integer "
            "codes, not a weight.",
            _UNQUANTISED,
        )
    merge = merged(contents.tensors, contents.meta, path, name)
    note = f"LoRA adapters of {merge.layers} layers merged"
    return Usable(merge.tensors, (note,) if merge.layers else ())
