"""Checkpoints in the reference implementation's format, written beside our own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unfreeze.checkpoints.state import has_last, to_bytes
from unfreeze.errors import WeightsError
from unfreeze.runtime.atomic import write_bytes
from unfreeze.training.state import TrainState

CHECKPOINT = "checkpoint.pth.tar"


class ReferenceCheckpoints:
    """Epoch callback: writes `checkpoint.pth.tar` and, periodically, `checkpoints/ckp-N.pth`.

    N counts epochs from 0: with `every` 25 of 100 epochs, ckp-0, 25, 50, 75 and 99 are written.
    """

    def __init__(self, folder: str | Path, every: int, epochs: int) -> None:
        self.folder, self.every, self.epochs = Path(folder), every, epochs

    def __call__(self, state: TrainState, done: int) -> None:
        """Write the files after `done` epochs, each one atomically."""
        data = to_bytes(
            {
                "epoch": done,  # index of the next epoch, from 0
                "state_dict": published_names(state.model),
                "optimizer": _to_cpu(state.optimizer.state_dict()),
            }
        )
        last = done - 1
        if last % self.every == 0 or done == self.epochs:
            write_bytes(self.folder / "checkpoints" / f"ckp-{last}.pth", data)
        write_bytes(self.folder / CHECKPOINT, data)


def published_names(model: nn.Module) -> dict[str, torch.Tensor]:
    """State dict under the reference's names: backbone without prefix, then head and prototypes."""
    state = model.state_dict()
    return {k.removeprefix("backbone."): v.cpu().contiguous() for k, v in state.items()}


def refuse_foreign(folder: str | Path) -> None:
    """Raise WeightsError if `folder` holds another program's run, which cannot be resumed."""
    foreign = Path(folder) / CHECKPOINT
    if foreign.exists() and not has_last(foreign.parent / "checkpoints"):
        raise WeightsError(
            f"{foreign} exists without checkpoints/last.ckpt beside it: a run of another program "
            "cannot be resumed, and nothing was changed.",
            f"Use another --dump_path; --init {foreign} starts from its weights.",
        )


def _to_cpu(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, Mapping):
        return {key: _to_cpu(item) for key, item in value.items()}
    return [_to_cpu(item) for item in value] if isinstance(value, list) else value
