"""DeepCluster-v2 in SwAV's loop: labels from k-means over a memory of all images' features.

Caron et al., arXiv 2006.09882, appendix: before each epoch the features that the last one left are
clustered, several times over; centroids become the prototypes, and every view predicts the cluster
of its image. Codes are known before the step, so there is neither Sinkhorn nor queue.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from unfreeze.backbones.norm import frozen_statistics
from unfreeze.data.device import sent
from unfreeze.data.loader import Batch
from unfreeze.runtime.processes import Processes
from unfreeze.settings.pretrain import PretrainSettings
from unfreeze.swav.kmeans import spherical_kmeans
from unfreeze.swav.targets import Scores, Targets

if TYPE_CHECKING:
    from unfreeze.swav.trainer import Trainer


class Clusters(Targets):
    """The memory, `[V, N, d]` unit features of V assigned views, and each image's clusters.

    Clustering h looks at the memory of view h modulo V. Every process holds the whole memory (8 d V
    bytes a image in all, while it is brought together twice that); the first clusters it for all,
    as a GPU adds up in any order: any number of processes has the same labels.
    """

    def __init__(self, s: PretrainSettings, positions: np.ndarray, processes: Processes) -> None:
        self.assigned, self.temperature = s.crops_for_assign, s.temperature
        self.K, self.clusterings = s.nmb_prototypes or 1, s.clusterings
        self.iterations, self.seed = s.kmeans_iterations, s.seed
        self.positions, self.processes = positions, processes
        self.memory: torch.Tensor | None = None
        self.labels = torch.zeros(0, dtype=torch.int64)  # [clusterings, N]
        self.epoch = -1  # that the labels are for
        self._new: list[tuple[torch.Tensor, torch.Tensor]] = []  # rows, [V, B, d]; not joined yet

    def begin(self, trainer: "Trainer") -> None:
        """Fill the memory, where it is empty, by the network as it is; changes nothing else."""
        if self.memory is not None or not trainer.plan.steps:
            return
        loader, model = trainer.loader, trainer.model
        batches = np.array_split(self.positions, -(-len(self.positions) // loader.batch_size))
        own = [np.array_split(ids, loader.world)[loader.rank] for ids in batches]
        with torch.no_grad(), frozen_statistics(model):
            for batch in loader.these(own, 0):
                self._remember(trainer.seen(model, batch.views)[0], batch)
        self._join()

    def turn(self, trainer: "Trainer", epoch: int) -> None:
        """Cluster anew where an epoch begins; the centroids become the prototypes."""
        if epoch == self.epoch:
            return
        memory = self._join()
        centroids, labels = self.processes.leads(lambda: self._clustered(memory, epoch))
        self.labels, self.epoch = labels.to(memory.device), epoch
        with torch.no_grad():
            trainer.model.prototypes.weight.copy_(centroids)

    def codes(
        self,
        features: Sequence[torch.Tensor],
        scores: Sequence[torch.Tensor],
        rescored: Scores,
        batch: Batch,
    ) -> list[torch.Tensor]:
        """One row of 0 and a 1, `[B, K]`, for each clustering; remembers the features."""
        rows = self._remember(features, batch)
        return [F.one_hot(labels[rows], self.K).to(scores[0].dtype) for labels in self.labels]

    def loss(self, scores: Sequence[torch.Tensor], codes: Sequence[torch.Tensor]) -> torch.Tensor:
        """Cross-entropy: mean over clusterings, all views and B. `scores`: `[B, clusterings * K]`.

        The assigned views predict too: their label is the image's, not their own.
        """
        total = scores[0].new_zeros(())
        for view in scores:
            for part, Q in zip(view.chunk(self.clusterings, dim=1), codes, strict=True):
                log_p = (part / self.temperature).log_softmax(dim=1)
                total = total - (Q * log_p).sum(dim=1).mean()
        return total / (len(scores) * self.clusterings)

    def state(self) -> dict[str, Any]:
        """Memory and labels. Collective: what each process saw since is brought together."""
        memory = self._join() if self.memory is not None or self._new else None
        return {"memory": memory, "labels": self.labels, "epoch": self.epoch}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """The reverse of `state`: memory and labels on `device`, where rows are looked up."""
        memory: torch.Tensor | None = state["memory"]
        self.memory = None if memory is None else memory.to(device)
        self.labels, self.epoch = state["labels"].to(device), state["epoch"]
        self._new.clear()

    def _clustered(self, memory: torch.Tensor, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Centroids `[clusterings * K, d]` and labels `[clusterings, N]`, on the CPU."""
        found = [
            spherical_kmeans(
                memory[h % len(memory)],
                self.K,
                iterations=self.iterations,
                seed=(self.seed * 1_000_003 + epoch) * 1_009 + h,
            )
            for h in range(self.clusterings)
        ]
        centroids, labels = zip(*found, strict=True)
        return torch.cat(centroids).cpu(), torch.stack(labels).cpu()

    def _remember(self, features: Sequence[torch.Tensor], batch: Batch) -> torch.Tensor:
        """Note the features of the assigned views; which rows of the memory they are."""
        rows = sent(np.searchsorted(self.positions, batch.ids), features[0].device)
        self._new.append((rows, torch.stack([features[view] for view in self.assigned])))
        return rows

    def _join(self) -> torch.Tensor:
        """The memory with what all processes saw; rows that are not numbers stay as they were.

        Between two joinings each image is seen once at most, by one process.
        """
        if self._new:
            rows = torch.cat([rows for rows, _ in self._new])
            seen = torch.cat([features for _, features in self._new], dim=1)
            self._new.clear()
            V, _, d = seen.shape
            table = seen.new_zeros(V, len(self.positions), d + 1)
            sound = seen.isfinite().all(dim=2).all(dim=0)
            table[:, rows[sound]] = F.pad(seen[:, sound], (0, 1), value=1.0)
            table = self.processes.mean(table) * self.processes.world  # each row has one summand
            fresh = table[:, :, -1:] > 0.5
            old = table.new_zeros(()) if self.memory is None else self.memory.to(table)
            self.memory = torch.where(fresh, table[:, :, :-1], old)
        if self.memory is None:
            raise ValueError("nothing was seen yet")
        return self.memory
