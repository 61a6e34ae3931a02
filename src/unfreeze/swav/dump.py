"""The files that the reference's users find in its dump folder, beside our own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from unfreeze.checkpoints.state import has_last, serialised
from unfreeze.errors import WeightsError
from unfreeze.runtime.atomic import write_bytes
from unfreeze.swav.model import SwAV
from unfreeze.swav.trainer import Trainer

CHECKPOINT = "checkpoint.pth.tar"


class Dump:
    """Called after each epoch: `checkpoint.pth.tar`, and `checkpoints/ckp-N.pth` now and then.

    N counts epochs from 0: with `every` 25 of 100 epochs, ckp-0, 25, 50, 75 and 99 are kept.
    """

    def __init__(self, folder: str | Path, every: int, epochs: int) -> None:
        self.folder, self.every, self.epochs = Path(folder), every, epochs

    def __call__(self, trainer: Trainer, done: int) -> None:
        """Write what `done` epochs have made of the network; each file whole or not at all."""
        data = serialised(
            {
                "epoch": done,  # the one that comes next, counted from 0
                "state_dict": published_names(trainer.model),
                "optimizer": _on_the_cpu(trainer.optimizer.state_dict()),
            }
        )
        last = done - 1
        if last % self.every == 0 or done == self.epochs:
            write_bytes(self.folder / "checkpoints" / f"ckp-{last}.pth", data)
        write_bytes(self.folder / CHECKPOINT, data)


def published_names(model: SwAV) -> dict[str, torch.Tensor]:
    """The state by the reference's names: the backbone's plain, then its head and prototypes."""
    state = model.state_dict()
    return {k.removeprefix("backbone."): v.cpu().contiguous() for k, v in state.items()}


def refuse_foreign(folder: str | Path) -> None:
    """WeightsError where `folder` holds another program's run, which cannot be gone on with."""
    theirs = Path(folder) / CHECKPOINT
    if theirs.exists() and not has_last(theirs.parent / "checkpoints"):
        raise WeightsError(
            f"{theirs} is there, but no checkpoints/last.ckpt beside it: another program's run "
            "cannot be gone on with, and nothing was changed.",
            f"Name another --dump_path; --init {theirs} starts from its weights.",
        )


def _on_the_cpu(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, Mapping):
        return {key: _on_the_cpu(item) for key, item in value.items()}
    return [_on_the_cpu(item) for item in value] if isinstance(value, list) else value
