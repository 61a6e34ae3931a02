"""SimSiam (Chen and He, arXiv 2011.10566) as a pretraining method of unfreeze.

Two views of an image; a predictor on one predicts the projection of the other, which gets no
gradient. No negatives, no prototypes, no momentum encoder.
"""

from collections.abc import Sequence
from itertools import groupby, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfreeze.tasks import PretrainTask, TaskContext


def mlp(*widths: int, last_norm: bool = False) -> nn.Sequential:
    """Linear layers with batch norm and ReLU between them; `last_norm`: batch norm at the end."""
    layers: list[nn.Module] = []
    for i, (width_in, width_out) in enumerate(pairwise(widths)):
        last = i == len(widths) - 2
        layers.append(nn.Linear(width_in, width_out, bias=last and not last_norm))
        if not last or last_norm:
            layers.append(nn.BatchNorm1d(width_out, affine=not last))
        if not last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class SimSiamModel(nn.Module):
    """Backbone, projector and predictor (section 3 of the paper)."""

    def __init__(self, backbone: nn.Module, width: int, hidden: int, dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = mlp(width, hidden, hidden, dim, last_norm=True)
        self.predictor = mlp(dim, max(8, dim // 4), dim)

    def forward(self, views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Projections z and predictions p, `[V*B, dim]` each, of V views `[B, 3, S, S]`."""
        # views of one size go through the backbone together
        groups = [list(group) for _, group in groupby(views, key=lambda view: view.shape[-1])]
        z = self.projector(torch.cat([self.backbone(torch.cat(group)) for group in groups]))
        return z, self.predictor(z)


def unit(rows: Tensor) -> Tensor:
    """Rows of length 1, in float32 also under mixed precision (float64 stays)."""
    return F.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=1)


class SimSiam(PretrainTask):
    """`--hidden-mlp` and `--feat-dim` are the widths of the projector."""

    model: SimSiamModel

    def build_model(self, context: TaskContext) -> SimSiamModel:
        """The network around the backbone."""
        s = context.settings
        return SimSiamModel(context.backbone, context.width, s.hidden_mlp or 2048, s.feat_dim)

    def loss(self, output: tuple[Tensor, Tensor], views: int) -> Tensor:
        """Negative cosine of each view's prediction with the other large views' projections."""
        z, p = (unit(part).chunk(views) for part in output)
        targets = [part.detach() for part in z[:2]]  # the large crops: "stop-gradient"
        pairs = [(i, j) for i in range(views) for j in range(2) if i != j]
        return -torch.stack([(p[i] * targets[j]).sum(dim=1).mean() for i, j in pairs]).mean()

    def project(self, h: Tensor) -> Tensor:
        """Unit projections `[B, dim]`, for the feature evaluations."""
        return unit(self.model.projector(h))
