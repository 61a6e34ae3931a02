"""k-nearest neighbours on frozen features (Wu et al., arXiv 1805.01978, section 3.4)."""

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
    """int64 `[M]`: the class of each of `queries` `[M, D]` by `features` `[N, D]`, `labels` `[N]`.

    The k nearest by cosine vote with weight exp(cosine / temperature). `rows` queries at a time
    bound the memory.
    """
    bank = F.normalize(features.float(), dim=1)
    classes = int(labels.max()) + 1
    answers = []
    for part in torch.split(F.normalize(queries.float(), dim=1), rows):
        answers.append(_voted(part @ bank.T, labels, classes, k, temperature))
    return torch.cat(answers)


@torch.no_grad()
def leave_one_out(
    features: torch.Tensor,
    labels: torch.Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    rows: int = 1024,
) -> torch.Tensor:
    """int64 `[N]`: the class of each of `features` `[N, D]` by all the others; as `knn_predict`."""
    bank = F.normalize(features.float(), dim=1)
    classes, answers = int(labels.max()) + 1, []
    for start in range(0, len(bank), rows):
        cosines = bank[start : start + rows] @ bank.T
        cosines.diagonal(start).fill_(-math.inf)
        answers.append(_voted(cosines, labels, classes, min(k, len(bank) - 1), temperature))
    return torch.cat(answers)


def _voted(
    cosines: torch.Tensor, labels: torch.Tensor, classes: int, k: int, temperature: float
) -> torch.Tensor:
    near = cosines.topk(min(k, cosines.shape[1]), dim=1)
    votes = torch.zeros(len(cosines), classes, device=cosines.device)
    # relative to the nearest: exp never overflows and the order stays
    weight = ((near.values - near.values[:, :1]) / temperature).exp()
    votes.scatter_add_(1, labels[near.indices], weight)
    return votes.argmax(1)


def knn_accuracy(
    features: torch.Tensor,
    labels: torch.Tensor,
    queries: torch.Tensor,
    truth: torch.Tensor,
    *,
    k: int = 20,
) -> float:
    """Share of `queries` whose class `knn_predict` finds, 0..1."""
    return float((knn_predict(features, labels, queries, k=k) == truth).float().mean())
