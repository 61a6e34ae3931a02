"""The network: backbone, projection head and prototypes (paper, section 3.1 and appendix A.1)."""

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import nn


class SwAV(nn.Module):
    """Views in, (features, scores) out. Names are the reference's: `projection_head`, `prototypes`.

    `backbone` maps `[B, 3, S, S]` to `[B, width]`. `hidden` 0 makes the head one linear layer.
    """

    def __init__(
        self, backbone: nn.Module, width: int, *, hidden: int, feat_dim: int, prototypes: int
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection_head: nn.Module
        if hidden:
            self.projection_head = nn.Sequential(
                nn.Linear(width, hidden),
                nn.BatchNorm1d(hidden),
                nn.ReLU(inplace=True),
                nn.Linear(hidden, feat_dim),
            )
        else:
            self.projection_head = nn.Linear(width, feat_dim)
        self.prototypes = nn.Linear(feat_dim, prototypes, bias=False)

    @torch.no_grad()
    def normalise_prototypes(self) -> None:
        """Put every prototype back on the unit sphere."""
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

    def forward(self, views: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit features `[V*B, d]` and cosines `[V*B, K]` for V views of `[B, 3, S, S]`.

        In float32; float64 stays.

        One pass of the backbone per run of equal sizes, one of the head over everything.
        """
        runs = [list(same) for _, same in groupby(views, key=lambda view: view.shape[-1])]
        return self.projected(torch.cat([self.backbone(torch.cat(run)) for run in runs]))

    def projected(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit features `[B, d]` and cosines `[B, K]` of the backbone's features `[B, width]`."""
        z = self.projection_head(h)
        with torch.autocast(z.device.type, enabled=False):
            Z = F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=1)
            return Z, self.scores(Z)

    def scores(self, Z: torch.Tensor) -> torch.Tensor:
        """Cosines `[B, K]` of unit features `[B, d]` with the prototypes."""
        return F.linear(Z, self.prototypes.weight.to(Z.dtype))
