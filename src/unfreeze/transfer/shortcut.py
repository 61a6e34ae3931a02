"""Training from the border on: kept features in the place of images and the frozen part."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unfreeze.data.loader import Batch, Loader
from unfreeze.transfer.border import Border
from unfreeze.transfer.evaluate import Scores
from unfreeze.transfer.holdout import HoldOut, recorded
from unfreeze.transfer.kept import Kept

BLOCK_BYTES = 32 * 2**20  # of features that are scored at once


class Held:
    """Features of images as the border gives them: maps are kept with their channels last.

    `places`: which rows of `kept` they are, int64 [N]; None where they are all.
    """

    def __init__(
        self,
        kept: Kept,
        *,
        channels_last: bool,
        device: torch.device,
        places: Tensor | None = None,
    ) -> None:
        self.kept, self.channels_last, self.device = kept, channels_last, device
        self.places = places

    def __len__(self) -> int:
        return len(self.kept if self.places is None else self.places)

    def take(self, rows: Tensor) -> Tensor:
        """Features [B, ...] of these rows, in memory of their own."""
        places = rows if self.places is None else self.places[rows]
        found = self.kept.take(places).to(self.device, non_blocking=True)
        return found.permute(0, 3, 1, 2) if self.channels_last else found

    def blocks(self, *, copied: bool = True) -> Iterator[Tensor]:
        """All rows in order, some at a time; not `copied`, they are not to be written to."""
        if not copied and not self.channels_last and self.places is None:
            yield from (part.to(self.device) for part in self.kept.parts)
            return
        size = max(1, BLOCK_BYTES * len(self.kept) // max(1, self.kept.nbytes))
        for start in range(0, len(self), size):
            yield self.take(torch.arange(start, min(start + size, len(self))))


class Shortcut:
    """One stretch of epochs on features: epoch e takes view e modulo `count`.

    The order of the images, their labels and what is scored are those of `loader` and `holdout`.
    `hashes`: of the weights that the features follow from.
    """

    def __init__(
        self,
        border: Border,
        views: Mapping[int, Held],
        held_out: Held | None,
        *,
        count: int,
        loader: Loader,
        holdout: HoldOut | None,
        hashes: dict[str, str],
    ) -> None:
        self.border, self.views, self.held_out = border, dict(views), held_out
        self.count = count
        self.loader, self.holdout, self.hashes = loader, holdout, hashes

    def whole(self) -> "Shortcut":
        """The same with the batches of all processes."""
        other = copy.copy(self)
        other.loader = copy.copy(self.loader)
        other.loader.rank, other.loader.world = 0, 1
        return other

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches that `loader.epoch` would give, with features in the place of images."""
        view = self.views[epoch % self.count]
        first = epoch * self.loader.steps_per_epoch
        for step in range(first + start, first + self.loader.steps_per_epoch):
            ids = self.loader.ids(step)
            rows = torch.from_numpy(ids)
            yield Batch(step, epoch, ids, self.loader.dataset.labels[rows], [view.take(rows)])

    def logits(self, batch: Batch) -> Tensor:
        """Scores [B, C] of a batch."""
        return self.border.after(batch.views[0])

    @torch.inference_mode()
    def scores(self, network: nn.Module) -> Scores:
        """What `holdout.score(network)` gives, from features."""
        if self.holdout is None or self.held_out is None:
            raise ValueError("no image is held out")
        training = network.training
        network.eval()
        after, learner = self.border.after, self.border.learner
        if learner is not None and self.border.direct:
            after = network.get_submodule(learner)
        blocks = self.held_out.blocks(copied=not self.border.direct)
        logits = [after(block) for block in blocks]
        network.train(training)
        return self.holdout.judged(torch.cat(logits))

    def record(self, network: nn.Module) -> dict[str, Any]:
        """The numbers of a validation line."""
        return recorded(self.scores(network))
