"""Distillation: every crop of an image predicts what a teacher computed of the whole image."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfreeze.data.loading.loader import Batch, Loader
from unfreeze.errors import WeightsError
from unfreeze.tasks.base import Forward, PretrainTask, TaskContext, Views
from unfreeze.tasks.distillation.targets import PrincipalAxes


class Student(nn.Module):
    """A backbone and a predictor of the teacher's features."""

    def __init__(self, backbone: nn.Module, width: int, hidden: int, dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.predictor: nn.Module = nn.Linear(width, dim)
        if hidden:
            self.predictor = nn.Sequential(
                nn.Linear(width, hidden),
                nn.BatchNorm1d(hidden),
                nn.ReLU(inplace=True),
                nn.Linear(hidden, dim),
            )

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """Predictions `[V*B, dim]` of V views `[B, 3, S, S]`."""
        # views of one size go through the backbone together
        groups = [list(group) for _, group in groupby(views, key=lambda view: view.shape[-1])]
        features = torch.cat([self.backbone(torch.cat(group)) for group in groups])
        predictions: Tensor = self.predictor(features)
        return predictions


class DistillTask(PretrainTask):
    """The cosine of each crop's prediction with the teacher's features of its image.

    The teacher sees each image once, whole, before the first step. Its features are centred and
    reduced to `--feat-dim` principal components.
    """

    needs_teacher = True
    model: Student

    def __init__(self, context: TaskContext) -> None:
        super().__init__(context)
        self.positions, self.teacher = context.positions, context.teacher
        self.principal: PrincipalAxes | None = None
        self.targets: Tensor | None = None  # [N, d]; None: built to measure steps only

    def build_model(self, context: TaskContext) -> Student:
        """The backbone and its predictor."""
        s = context.settings
        return Student(context.backbone, context.width, s.hidden_mlp or 0, s.feat_dim)

    # ----------------------------------------------------------------------------------- training

    def begin(self, loader: Loader, forward: Forward) -> None:
        """Reduce the teacher's features to targets, with the axes of the checkpoint if resumed."""
        if self.teacher is None:
            return
        if self.principal is None:
            parts = self.teacher.parts
            # rank 0 for all: signs of axes depend on rounding
            self.principal = self.processes.on_rank_zero(
                lambda: PrincipalAxes.of(parts, self.settings.feat_dim)
            )
        device = next(self.model.parameters()).device
        self.targets = self.principal.targets(self.teacher.parts).to(device)

    def share(self, parts: list[Views], batch: Batch, forward: Forward) -> list[Tensor]:
        """The targets of each micro-batch."""
        return list(self.targets_of(batch).chunk(len(parts)))

    def training_step(self, views: Views, batch: Batch, forward: Forward, shared: Any) -> Tensor:
        """The loss of a micro-batch."""
        targets = self.targets_of(batch) if shared is None else shared
        return distillation_loss(forward(views), targets, len(views))

    def targets_of(self, batch: Batch) -> Tensor:
        """The targets `[B, d]` of this process's share of a batch."""
        if self.targets is None:
            device = next(self.model.parameters()).device
            return torch.zeros(len(batch.ids), self.settings.feat_dim, device=device)
        rows = torch.from_numpy(np.searchsorted(self.positions, batch.ids))
        return self.targets[rows.to(self.targets.device)]

    def loss(self, output: Tensor, views: int) -> Tensor:
        """The loss for targets of zeros, whose memory use is that of a step."""
        return distillation_loss(output, torch.zeros_like(output[: len(output) // views]), views)

    # ------------------------------------------------------------------ evaluation and checkpoints

    def project(self, h: Tensor) -> Tensor:
        """Unit predictions `[B, d]` of backbone features `[B, width]`."""
        return unit(self.model.predictor(h))

    def state_dict(self) -> dict[str, Any]:
        """The principal axes, and the teacher's digest."""
        if self.teacher is None or self.principal is None:
            return {}
        return {**self.principal.state_dict(), "teacher": self.teacher.sha256}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore `state_dict()`; WeightsError if the teacher is another one."""
        if not state:
            return
        if self.teacher is not None and state["teacher"] != self.teacher.sha256:
            raise WeightsError(
                f"The weights of the teacher {self.settings.teacher} changed since the checkpoint.",
                "Restore them, or start a new run (--init loads this run's weights).",
            )
        self.principal = PrincipalAxes.from_state(state)

    def for_timing(self) -> None:
        """Targets of zeros: their values cost nothing."""
        self.teacher = None


def distillation_loss(predictions: Tensor, targets: Tensor, views: int) -> Tensor:
    """Mean over views and images of 1 - cosine, a scalar in 0 .. 2.

    `predictions`: `[V*B, d]`, view after view; `targets`: `[B, d]`, unit vectors.
    """
    Z = unit(predictions)
    return 1 - (Z * targets.to(Z.dtype).repeat(views, 1)).sum(dim=1).mean()


def unit(rows: Tensor) -> Tensor:
    """Rows of length 1, in float32 also under mixed precision (float64 stays)."""
    return F.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=1)
