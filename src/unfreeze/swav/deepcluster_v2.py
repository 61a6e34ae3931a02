"""DeepCluster-v2 in SwAV's loop: pseudo-labels from k-means over a memory of all features.

Caron et al., arXiv 2006.09882, appendix: before each epoch, the features stored during the last
epoch are clustered several times. Centroids become the prototypes, and every view predicts the
cluster of its image. Assignments are known before the step: no Sinkhorn, no queue.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from unfreeze.config.pretrain import PretrainSettings
from unfreeze.data.loading.device_loader import to_device_async
from unfreeze.data.loading.loader import Batch, Loader
from unfreeze.runtime.distributed import Distributed
from unfreeze.swav.assignment import Assignment, Features, Scores
from unfreeze.swav.presets import KMEANS, PROTOTYPES
from unfreeze.swav.task import SwAVTask
from unfreeze.tasks.base import TaskContext

CELLS = 2**26  # cosines computed at once


@torch.no_grad()
def spherical_kmeans(
    features: torch.Tensor, K: int, *, iterations: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(centroids `[K, d]` of length 1, labels `[N]` int64) of unit rows `[N, d]`.

    Starts from K random rows (`seed`). An empty cluster keeps its centroid. Deterministic for the
    same rows and precision.
    """
    rows = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:K]
    centroids = features[rows.to(features.device)].clone()
    for _ in range(iterations):
        labels = nearest(features, centroids)
        sums = torch.zeros_like(centroids).index_add_(0, labels, features)
        used = labels.bincount(minlength=K) > 0
        centroids = torch.where(used[:, None], F.normalize(sums, dim=1), centroids)
    return centroids, nearest(features, centroids)


def nearest(features: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Index of the centroid with the largest cosine, int64 `[N]`; computed in chunks of rows."""
    chunks = features.chunk(1 + len(features) * len(centroids) // CELLS)
    return torch.cat([(chunk @ centroids.T).argmax(dim=1) for chunk in chunks])


class ClusterAssignment(Assignment):
    """The feature memory, `[V, N, d]` unit features of V assigned views, and cluster labels.

    Clustering h uses the memory of view h modulo V. Every process stores the complete memory (8 d V
    bytes per image; twice that while processes exchange features). Rank 0 clusters for all: GPU
    sums depend on the order, and any number of processes must have the same labels.
    """

    def __init__(self, s: PretrainSettings, positions: np.ndarray, processes: Distributed) -> None:
        self.assigned, self.temperature = s.crops_for_assign, s.temperature
        self.K, self.clusterings = s.nmb_prototypes or 1, s.clusterings
        self.iterations, self.seed = s.kmeans_iterations, s.seed
        self.positions, self.processes = positions, processes
        self.memory: torch.Tensor | None = None
        self.labels = torch.zeros(0, dtype=torch.int64)  # [clusterings, N]
        self.epoch = -1  # epoch that `labels` belong to
        self._new: list[tuple[torch.Tensor, torch.Tensor]] = []  # rows, [V, B, d]; not merged yet

    def begin(self, loader: Loader, features: Features) -> None:
        """Fill an empty memory with the current network's features; changes nothing else."""
        if self.memory is not None:
            return
        batches = np.array_split(self.positions, -(-len(self.positions) // loader.batch_size))
        shares = [np.array_split(ids, loader.world)[loader.rank] for ids in batches]
        for batch in loader.these(shares, 0):
            self._store(features(batch.views), batch)
        self._merge()

    def prototypes(self, epoch: int) -> torch.Tensor | None:
        """The centroids of new clusterings at the start of an epoch."""
        if epoch == self.epoch:
            return None
        memory = self._merge()
        centroids, labels = self.processes.on_rank_zero(lambda: self._clustered(memory, epoch))
        self.labels, self.epoch = labels.to(memory.device), epoch
        return centroids

    def codes(
        self,
        features: Sequence[torch.Tensor],
        scores: Sequence[torch.Tensor],
        rescored: Scores,
        batch: Batch,
    ) -> list[torch.Tensor]:
        """One-hot assignments `[B, K]` of each clustering; stores the features in the memory."""
        rows = self._store(features, batch)
        return [F.one_hot(labels[rows], self.K).to(scores[0].dtype) for labels in self.labels]

    def loss(self, scores: Sequence[torch.Tensor], codes: Sequence[torch.Tensor]) -> torch.Tensor:
        """Cross-entropy: mean over clusterings, all views and B. `scores`: `[B, clusterings * K]`.

        The assigned views predict too: labels belong to the image, not to a view.
        """
        total = scores[0].new_zeros(())
        for view in scores:
            for part, Q in zip(view.chunk(self.clusterings, dim=1), codes, strict=True):
                log_p = (part / self.temperature).log_softmax(dim=1)
                total = total - (Q * log_p).sum(dim=1).mean()
        return total / (len(scores) * self.clusterings)

    def state_dict(self) -> dict[str, Any]:
        """Memory and labels. Collective: merges the features of all processes first."""
        memory = self._merge() if self.memory is not None or self._new else None
        return {"memory": memory, "labels": self.labels, "epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore `state_dict()`, with memory and labels on `device`."""
        memory: torch.Tensor | None = state["memory"]
        self.memory = None if memory is None else memory.to(device)
        self.labels, self.epoch = state["labels"].to(device), state["epoch"]
        self._new.clear()

    def _clustered(self, memory: torch.Tensor, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Centroids `[clusterings * K, d]` and labels `[clusterings, N]`, on the CPU."""
        results = [
            spherical_kmeans(
                memory[h % len(memory)],
                self.K,
                iterations=self.iterations,
                seed=(self.seed * 1_000_003 + epoch) * 1_009 + h,
            )
            for h in range(self.clusterings)
        ]
        centroids, labels = zip(*results, strict=True)
        return torch.cat(centroids).cpu(), torch.stack(labels).cpu()

    def _store(self, features: Sequence[torch.Tensor], batch: Batch) -> torch.Tensor:
        """Store the features of the assigned views; returns their memory rows `[B]`."""
        rows = to_device_async(np.searchsorted(self.positions, batch.ids), features[0].device)
        self._new.append((rows, torch.stack([features[view] for view in self.assigned])))
        return rows

    def _merge(self) -> torch.Tensor:
        """Merge the new features of all processes into the memory; non-finite rows are skipped.

        Between two merges each image occurs at most once, in one process.
        """
        if self._new:
            rows = torch.cat([rows for rows, _ in self._new])
            features = torch.cat([new for _, new in self._new], dim=1)
            self._new.clear()
            V, _, d = features.shape
            table = features.new_zeros(V, len(self.positions), d + 1)
            sound = features.isfinite().all(dim=2).all(dim=0)
            table[:, rows[sound]] = F.pad(features[:, sound], (0, 1), value=1.0)
            table = self.processes.mean(table) * self.processes.world  # each row has one summand
            fresh = table[:, :, -1:] > 0.5
            old = table.new_zeros(()) if self.memory is None else self.memory.to(table)
            self.memory = torch.where(fresh, table[:, :, :-1], old)
        if self.memory is None:
            raise ValueError("the feature memory is empty")
        return self.memory


class DeepClusterTask(SwAVTask):
    """SwAV's network with labels from k-means instead of Sinkhorn's codes."""

    uses = frozenset((*PROTOTYPES, *KMEANS))

    def make_assignment(self, context: TaskContext) -> Assignment:
        """Labels from k-means over the features of all images."""
        return ClusterAssignment(context.settings, context.positions, context.processes)
