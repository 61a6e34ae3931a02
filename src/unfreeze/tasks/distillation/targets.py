"""What a teacher's features tell a student: their principal components, as unit vectors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 4096  # images at a time, which limits the memory


@dataclass(frozen=True)
class PrincipalAxes:
    """The `mean` `[D]` of features and their first principal `axes` `[D, d]`, both float32.

    Axes beyond the rank of the features are zero.
    """

    mean: Tensor
    axes: Tensor

    @classmethod
    def of(cls, parts: Sequence[Tensor], dim: int) -> "PrincipalAxes":
        """The `dim` axes of largest variance of features `[n, D]`, computed in float64."""
        count, width = sum(len(part) for part in parts), parts[0].shape[1]
        mean = sum((part.double().sum(0) for part in parts), torch.zeros(width).double()) / count
        scatter = torch.zeros(width, width, dtype=torch.float64)
        for part in parts:
            for rows in torch.split(part, ROWS):
                centred = rows.double() - mean
                scatter.addmm_(centred.T, centred)
        values, vectors = torch.linalg.eigh(scatter)
        used = min(dim, max(1, min(count - 1, width)))
        axes = torch.zeros(width, dim, dtype=torch.float64)
        axes[:, :used] = vectors.flip(1)[:, :used] * (values.flip(0)[:used] > 0)
        return cls(mean.float(), axes.float())

    def targets(self, parts: Sequence[Tensor]) -> Tensor:
        """Unit vectors `[N, d]`, float32, of features `[n, D]` in parts.

        An image whose features are the mean gets zeros: nothing is learned from it.
        """
        rows = [
            (rows.float() - self.mean) @ self.axes
            for part in parts
            for rows in torch.split(part, ROWS)
        ]
        return F.normalize(torch.cat(rows), dim=1)

    def state_dict(self) -> dict[str, Tensor]:
        """Both tensors."""
        return {"mean": self.mean, "axes": self.axes}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "PrincipalAxes":
        """The inverse of `state_dict`."""
        return cls(state["mean"], state["axes"])
