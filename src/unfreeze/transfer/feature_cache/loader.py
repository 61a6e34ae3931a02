"""Training on cached features instead of images and frozen layers."""

import copy
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unfreeze.data.loading.loader import Batch, Loader
from unfreeze.transfer.evaluate import Scores
from unfreeze.transfer.feature_cache.store import CachedFeatures
from unfreeze.transfer.freezing.split_model import SplitPoint
from unfreeze.transfer.validation import ValidationSet

BLOCK_BYTES = 32 * 2**20  # of features per forward pass of evaluation


class CachedView:
    """Cached features of a dataset; feature maps are stored with channels last.

    `places`: rows of `kept` that belong to the dataset, int64 [N]; None for all.
    """

    def __init__(
        self,
        kept: CachedFeatures,
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
        """Features [B, ...] of these rows, as a new tensor."""
        positions = rows if self.places is None else self.places[rows]
        features = self.kept.take(positions).to(self.device, non_blocking=True)
        return features.permute(0, 3, 1, 2) if self.channels_last else features

    def blocks(self, *, copied: bool = True) -> Iterator[Tensor]:
        """All rows in order, in blocks; without `copied`, blocks may be read-only memory maps."""
        if not copied and not self.channels_last and self.places is None:
            yield from (part.to(self.device) for part in self.kept.parts)
            return
        size = max(1, BLOCK_BYTES * len(self.kept) // max(1, self.kept.nbytes))
        for start in range(0, len(self), size):
            yield self.take(torch.arange(start, min(start + size, len(self))))


class CachedLoader:
    """Trains and validates one phase on cached features; epoch e uses view e modulo `count`.

    Batches and labels are those of `loader`, validation is that of `holdout`. `hashes`: of the
    weights that the features were computed with.
    """

    def __init__(
        self,
        split_point: SplitPoint,
        views: Mapping[int, CachedView],
        held_out: CachedView | None,
        *,
        count: int,
        loader: Loader,
        holdout: ValidationSet | None,
        hashes: dict[str, str],
    ) -> None:
        self.split_point, self.views, self.held_out = split_point, dict(views), held_out
        self.count = count
        self.loader, self.holdout, self.hashes = loader, holdout, hashes

    def whole(self) -> "CachedLoader":
        """A copy that yields the global batches instead of this process's share."""
        clone = copy.copy(self)
        clone.loader = copy.copy(self.loader)
        clone.loader.rank, clone.loader.world = 0, 1
        return clone

    def stream(self, start: int, stop: int) -> Generator[Batch]:
        """The batches of `loader.stream`, with features instead of images."""
        for step in range(start, stop):
            epoch = step // self.loader.steps_per_epoch
            ids = self.loader.ids(step)
            rows = torch.from_numpy(ids)
            features = self.views[epoch % self.count].take(rows)
            yield Batch(step, epoch, ids, self.loader.dataset.targets[rows], [features])

    def logits(self, batch: Batch) -> Tensor:
        """Logits [B, C] of a batch."""
        return self.split_point.after(batch.views[0])

    @torch.inference_mode()
    def scores(self, network: nn.Module) -> Scores:
        """Same as `holdout.score(network)`, from cached features."""
        if self.holdout is None or self.held_out is None:
            raise ValueError("there is no validation set")
        training = network.training
        network.eval()
        after = self.after(network)
        blocks = self.held_out.blocks(copied=not self.split_point.direct)
        logits = [after(block) for block in blocks]
        network.train(training)
        return self.holdout.scores_of(torch.cat(logits))

    def after(self, network: nn.Module) -> Callable[[Tensor], Tensor]:
        """The function of cached features [B, ...] to logits [B, C], in `network`'s mode."""
        after, learner = self.split_point.after, self.split_point.learner
        if learner is not None and self.split_point.direct:
            return network.get_submodule(learner)
        return after

    def record(self, network: nn.Module) -> dict[str, Any]:
        """Numbers for a validation line of metrics.jsonl."""
        return self.scores(network).record()
