"""k-NN classification on frozen features (Wu et al., arXiv 1805.01978, section 3.4)."""

import math

import torch
import torch.nn.functional as F


@torch.no_grad()
def knn_predict(
    features: torch.Tensor,
    labels: torch.Tensor,
    queries: torch.Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    rows: int = 1024,
) -> torch.Tensor:
    """Classes int64 `[M]` of `queries` `[M, D]`, from `features` `[N, D]` and `labels` `[N]`.

    The k nearest neighbours by cosine similarity vote with weight exp(cosine / temperature).
    `rows`: queries per chunk, which limits the memory.
    """
    train = F.normalize(features.float(), dim=1)
    classes = int(labels.max()) + 1
    predicted = []
    for chunk in torch.split(F.normalize(queries.float(), dim=1), rows):
        predicted.append(_vote(chunk @ train.T, labels, classes, k, temperature))
    return torch.cat(predicted)


@torch.no_grad()
def leave_one_out(
    features: torch.Tensor,
    labels: torch.Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    rows: int = 1024,
) -> torch.Tensor:
    """Leave-one-out `knn_predict`: the class of each of `features` `[N, D]`, int64 `[N]`."""
    train = F.normalize(features.float(), dim=1)
    classes, predicted = int(labels.max()) + 1, []
    for start in range(0, len(train), rows):
        cosines = train[start : start + rows] @ train.T
        cosines.diagonal(start).fill_(-math.inf)
        predicted.append(_vote(cosines, labels, classes, min(k, len(train) - 1), temperature))
    return torch.cat(predicted)


def _vote(
    cosines: torch.Tensor, labels: torch.Tensor, classes: int, k: int, temperature: float
) -> torch.Tensor:
    nearest = cosines.topk(min(k, cosines.shape[1]), dim=1)
    votes = torch.zeros(len(cosines), classes, device=cosines.device)
    # relative to the nearest neighbour, so that exp cannot overflow
    weight = ((nearest.values - nearest.values[:, :1]) / temperature).exp()
    votes.scatter_add_(1, labels[nearest.indices], weight)
    return votes.argmax(1)


def knn_accuracy(
    features: torch.Tensor,
    labels: torch.Tensor,
    queries: torch.Tensor,
    truth: torch.Tensor,
    *,
    k: int = 20,
) -> float:
    """k-NN accuracy on `queries` with labels `truth`, 0..1."""
    return float((knn_predict(features, labels, queries, k=k) == truth).float().mean())
