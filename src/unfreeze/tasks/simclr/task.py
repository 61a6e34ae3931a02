"""SimCLR as a pretraining method (Chen et al., arXiv 2002.05709)."""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfreeze.data.loading.loader import Batch
from unfreeze.models.norm import frozen_running_statistics
from unfreeze.tasks.base import Forward, PretrainTask, TaskContext, Views
from unfreeze.tasks.simclr.loss import nt_xent


class SimCLRNetwork(nn.Module):
    """Backbone and projection head, with a hidden layer unless `hidden` is 0."""

    def __init__(self, backbone: nn.Module, width: int, hidden: int, feat_dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection_head: nn.Module = nn.Linear(width, feat_dim)
        if hidden:
            self.projection_head = nn.Sequential(
                nn.Linear(width, hidden, bias=False),
                nn.BatchNorm1d(hidden),
                nn.ReLU(inplace=True),
                nn.Linear(hidden, feat_dim),
            )

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """Unit features `[V*B, d]` of V views `[B, 3, S, S]`, in float32 (float64 stays)."""
        groups = [list(group) for _, group in groupby(views, key=lambda view: view.shape[-1])]
        return self.projected(torch.cat([self.backbone(torch.cat(group)) for group in groups]))

    def projected(self, h: Tensor) -> Tensor:
        """Unit features `[B, d]` of the backbone's features `[B, width]`."""
        z = self.projection_head(h)
        return F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=1)


class LossGradient(NamedTuple):
    """The loss of a whole batch, and its gradient by the features of one part of it."""

    loss: Tensor  # scalar
    features: Tensor  # [V, B, d]


class SimCLRTask(PretrainTask):
    """The loss compares all images of a batch, those of other processes and micro-batches too.

    So its gradient by the features is computed for the complete batch, and the chain rule does the
    rest in each part (as GradCache, arXiv 2101.06983).
    """

    uses = frozenset(("temperature",))
    model: SimCLRNetwork

    def build_model(self, context: TaskContext) -> SimCLRNetwork:
        """The network around the backbone."""
        s = context.settings
        return SimCLRNetwork(context.backbone, context.width, s.hidden_mlp or 0, s.feat_dim)

    def training_step(
        self, views: Views, batch: Batch, forward: Forward, shared: LossGradient | None
    ) -> Tensor:
        """The loss of the batch; its gradient is that of this process's micro-batch."""
        Z = torch.stack(forward(views).chunk(len(views)))
        if shared is None:
            if self.processes.world == 1:
                return self.loss(Z.flatten(0, 1), len(views))
            (shared,) = self.gradients([Z.detach()])
        # its value is the loss, its derivative by Z the gradient
        along = (Z * shared.features).sum()
        return shared.loss + along - along.detach()

    @torch.no_grad()
    def share(self, parts: list[Views], batch: Batch, forward: Forward) -> list[LossGradient]:
        """The loss and its gradients for each micro-batch, from a first pass over all of them."""
        with frozen_running_statistics(self.model):
            return self.gradients(
                [torch.stack(forward(views).chunk(len(views))) for views in parts]
            )

    def gradients(self, parts: list[Tensor]) -> list[LossGradient]:
        """Loss of the features of all processes; gradients by `parts` `[V, B, d]`. Collective.

        Scaled so that the mean over processes and over micro-batches is the gradient of the loss.
        """
        own = torch.cat(parts, dim=1).requires_grad_()
        gathered = self.processes.gather(own.detach()) if self.processes.world > 1 else [own]
        rank = self.processes.rank
        with torch.enable_grad():
            everything = torch.cat([*gathered[:rank], own, *gathered[rank + 1 :]], dim=1)
            loss = nt_xent(list(everything), self.settings.temperature)
            (gradient,) = torch.autograd.grad(loss, own)
        gradient = gradient * (self.processes.world * len(parts))
        sizes = [part.shape[1] for part in parts]
        return [LossGradient(loss.detach(), g) for g in torch.split(gradient, sizes, dim=1)]

    def loss(self, output: Tensor, views: int) -> Tensor:
        """NT-Xent of the features `[V*B, d]` of one process."""
        return nt_xent(output.chunk(views), self.settings.temperature)

    def project(self, h: Tensor) -> Tensor:
        """Unit projections `[B, d]`."""
        return self.model.projected(h)
