"""SwAV as a task: codes from one view predict those of another (arXiv 2006.09882)."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from unfreeze.data.loading.loader import Batch, Loader
from unfreeze.evaluation.feature_metrics import (
    agreement,
    code_entropy,
    duplicate_share,
    mutual_information,
    perplexity,
    prototypes_in_use,
    usage_entropy,
)
from unfreeze.models.norm import frozen_running_statistics
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.swav.assignment import Assignment, SinkhornAssignment
from unfreeze.swav.collapse_detector import CollapseDetector
from unfreeze.swav.head_weights import load_swav_head
from unfreeze.swav.loss import swapped_prediction_loss
from unfreeze.swav.model import SwAV
from unfreeze.swav.presets import PROTOTYPES, SINKHORN, epsilon_of, prototypes_of
from unfreeze.swav.queue import FeatureQueue
from unfreeze.swav.sinkhorn import sinkhorn
from unfreeze.tasks.base import Forward, PretrainTask, TaskContext, Views


class QueueSnapshot(NamedTuple):
    """The queue before a step; `queue`: None before it exists."""

    queue: FeatureQueue | None
    features: Tensor | None = None
    filled: int = 0
    full: bool = False


class SwAVTask(PretrainTask):
    """SwAV's network and its assignment of codes."""

    uses = frozenset((*PROTOTYPES, *SINKHORN))
    # the metric closest to k-NN accuracy (rank correlation over the epochs of a run 0.51; of the
    # effective rank 0.06: docs/LOG.md)
    selection_metric = "information"
    model: SwAV

    def __init__(self, context: TaskContext) -> None:
        super().__init__(context)
        self.assignment = self.make_assignment(context)
        self.codes: Tensor | None = None  # of the first assigned view in the last step, [B, K]

    def build_model(self, context: TaskContext) -> SwAV:
        """Backbone, projection head and prototypes."""
        s = context.settings
        return SwAV(
            context.backbone,
            context.width,
            hidden=s.hidden_mlp or 0,
            feat_dim=s.feat_dim,
            prototypes=prototypes_of(s),
        )

    def make_assignment(self, context: TaskContext) -> Assignment:
        """Sinkhorn's codes, with the queue."""
        return SinkhornAssignment.of(context.settings, context.processes)

    # ----------------------------------------------------------------------------------- training

    def begin(self, loader: Loader, forward: Forward) -> None:
        """Prepare the assignment, whose memory may need features of all images."""

        def features(views: Views) -> Sequence[Tensor]:
            with torch.no_grad(), frozen_running_statistics(self.model):
                return self.by_view(forward(views), len(views))[0]

        self.assignment.begin(loader, features)

    @torch.no_grad()
    def begin_step(self, step: int, epoch: int) -> None:
        """Normalise the prototypes; take new ones if the assignment made some."""
        prototypes = self.assignment.prototypes(epoch)
        if prototypes is not None:
            self.model.prototypes.weight.copy_(prototypes)
        self.model.normalise_prototypes()

    @torch.no_grad()
    def share(self, parts: list[Views], batch: Batch, forward: Forward) -> list[list[Tensor]]:
        """Codes of the complete batch, cut into those of each micro-batch.

        A first pass without gradients, as in gradient caching; running statistics do not change.
        """
        with frozen_running_statistics(self.model):
            passes = [self.by_view(forward(views), len(views)) for views in parts]
        features, scores = zip(*passes, strict=True)
        codes = self.assign(
            [torch.cat(same) for same in zip(*features, strict=True)],
            [torch.cat(same) for same in zip(*scores, strict=True)],
            batch,
        )
        return [[Q.chunk(len(parts))[k] for Q in codes] for k in range(len(parts))]

    def training_step(self, views: Views, batch: Batch, forward: Forward, shared: Any) -> Tensor:
        """The swapped prediction loss of a micro-batch."""
        features, scores = self.by_view(forward(views), len(views))
        codes = self.assign(features, scores, batch) if shared is None else shared
        return self.assignment.loss(scores, codes)

    def by_view(self, output: Any, views: int) -> tuple[list[Tensor], list[Tensor]]:
        """Unit features `[B, d]`, detached, and scores `[B, K]` of each view."""
        Z, scores = output
        return list(Z.detach().chunk(views)), list(scores.chunk(views))

    def assign(
        self, features: Sequence[Tensor], scores: Sequence[Tensor], batch: Batch
    ) -> list[Tensor]:
        """Codes `[B, K]` for each assigned view of this process's share."""
        codes = self.assignment.codes(features, scores, self.model.scores, batch)
        self.codes = codes[0]
        return codes

    def before_update(self, step: int) -> None:
        """Keep the prototypes frozen for the first steps."""
        if step < (self.settings.freeze_prototypes_niters or 0):
            self.model.prototypes.weight.grad = None  # no step, no decay, no momentum

    def metrics(self) -> dict[str, float]:
        """Number of prototypes used, and entropy of the codes as a share of ln K."""
        if self.codes is None:
            return {}
        used = perplexity(self.processes.mean(self.codes.mean(0)))
        entropy = float(self.processes.mean(code_entropy(self.codes)))
        return {"prototypes_used": round(used, 2), "code_entropy": round(entropy, 6)}

    # ------------------------------------------------------------------ evaluation and checkpoints

    def project(self, h: Tensor) -> Tensor:
        """Unit features `[B, d]` of backbone features `[B, width]`."""
        return self.model.projected(h)[0]

    def feature_metrics(self, h: Tensor, Z: Tensor, pair: Sequence[Tensor]) -> dict[str, float]:
        """All label-free metrics, those of prototypes and codes included."""
        s, K = self.settings, self.settings.nmb_prototypes or 1
        # with several clusterings, the first one is evaluated
        prototypes = F.normalize(self.model.prototypes.weight[:K], dim=1)
        scores = [F.linear(z, prototypes.to(z.dtype)) for z in (Z, *pair)]
        balanced = partial(
            sinkhorn, epsilon=epsilon_of(s), iterations=s.sinkhorn_iterations, alone=True
        )
        codes = [balanced(C) for C in scores[1:]]
        loss = swapped_prediction_loss(scores[1:], codes, (0, 1), temperature=s.temperature)
        return super().feature_metrics(h, Z, pair) | {
            "loss_share": float(loss) / math.log(K),
            "code_entropy": float(code_entropy(codes[0])),
            "usage_entropy": usage_entropy(codes[0]),
            "information": mutual_information((scores[0] / s.temperature).softmax(dim=1)),
            "prototypes_in_use": prototypes_in_use(scores[0].argmax(dim=1), K),
            "duplicate_prototypes": duplicate_share(prototypes),
            "agreement": agreement(codes[0], codes[1]),
        }

    def state_dict(self) -> dict[str, Any]:
        """The state of the assignment. Collective."""
        return self.assignment.state_dict()

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore `state_dict()`."""
        self.assignment.load_state_dict(state, device)

    def snapshot(self) -> QueueSnapshot:
        """The queue before a step."""
        queue = self.assignment.queue
        if queue is None:
            return QueueSnapshot(None)
        return QueueSnapshot(queue, queue.features, queue.filled, queue.full)

    def revert(self, snapshot: QueueSnapshot, bad: Tensor | None = None) -> None:
        """The queue as before the step."""
        queue, features, filled, _ = snapshot
        if bad is None:
            self.assignment.queue = queue
        if queue is not None and features is not None:
            queue.features = features if bad is None else torch.where(bad, features, queue.features)
            queue.filled = filled if bad is None else queue.filled

    def growing(self, snapshot: QueueSnapshot) -> bool:
        """Whether the queue is being filled."""
        return self.assignment.queue is not None and not snapshot.full

    # --------------------------------------------------------------------- before and after a run

    def callbacks(self, run: RunFolder, steps_per_epoch: int) -> list[CollapseDetector]:
        """The collapse detector."""
        return [
            CollapseDetector.of(
                self.settings, steps_per_epoch=steps_per_epoch, images=self.images, run=run
            )
        ]

    def for_timing(self) -> None:
        """Codes that need neither a queue nor a memory of all images; their cost is negligible."""
        self.assignment = SinkhornAssignment.without_queue(self.settings)

    def example_loss(self, output: Any, views: int) -> Tensor:
        """The loss for codes of zeros: Sinkhorn's are computed without gradients."""
        scores = self.by_view(output, views)[1]
        codes = [torch.zeros_like(scores[view]) for view in self.settings.crops_for_assign]
        return swapped_prediction_loss(
            scores, codes, self.settings.crops_for_assign, temperature=self.settings.temperature
        )

    def load_head(self, tensors: Mapping[str, Tensor]) -> Sequence[str]:
        """Load projection head and prototypes if they fit."""
        return load_swav_head(self.model, tensors).said
