"""Spherical k-means: Lloyd's algorithm with cosine similarity."""

import torch
import torch.nn.functional as F

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
