"""Spherical k-means: unit rows and the nearest of K directions, again and again."""

import torch
import torch.nn.functional as F

CELLS = 2**26  # cosines that are held at once


@torch.no_grad()
def spherical_kmeans(
    features: torch.Tensor, K: int, *, iterations: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(centroids `[K, d]` of length 1, labels `[N]` int64) of unit rows `[N, d]`.

    Starts from K rows that `seed` chooses. A cluster that nothing is nearest to keeps its centroid.
    The same on every machine that holds the same rows in the same precision.
    """
    chosen = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:K]
    centroids = features[chosen.to(features.device)].clone()
    for _ in range(iterations):
        labels = nearest(features, centroids)
        sums = torch.zeros_like(centroids).index_add_(0, labels, features)
        taken = labels.bincount(minlength=K) > 0
        centroids = torch.where(taken[:, None], F.normalize(sums, dim=1), centroids)
    return centroids, nearest(features, centroids)


def nearest(features: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """The centroid with the largest cosine, int64 `[N]`; a part of the rows at a time."""
    parts = features.chunk(1 + len(features) * len(centroids) // CELLS)
    return torch.cat([(part @ centroids.T).argmax(dim=1) for part in parts])
