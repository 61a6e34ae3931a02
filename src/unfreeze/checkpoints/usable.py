"""What of a file a network can be given: adapters merged, codes of quantised files refused."""

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
    """Named tensors as a network would have them, and what was done for that."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def usable(contents: Contents, place: Path | None, name: str) -> Usable:
    """The tensors of a file, ready to be paired with a network's.

    WeightsError for a quantised file and for adapters that cannot be merged.
    """
    scales = scales_in(contents.tensors)
    if scales:
        raise WeightsError(
            f"{name} is quantised: {scales[0]} ({len(scales)} such tensors) scales codes that are "
            "no weights by themselves.",
            _UNQUANTISED,
        )
    found = merged(contents.tensors, contents.meta, place, name)
    note = f"LoRA adapters of {found.layers} layers merged"
    return Usable(found.tensors, (note,) if found.layers else ())
