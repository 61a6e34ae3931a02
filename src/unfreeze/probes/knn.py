"""k-nearest neighbours on frozen features (Wu et al., arXiv 1805.01978, section 3.4)."""

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
        near = (part @ bank.T).topk(min(k, len(bank)), dim=1)
        votes = torch.zeros(len(part), classes, device=part.device)
        # relative to the nearest: exp never overflows and the order stays
        weight = ((near.values - near.values[:, :1]) / temperature).exp()
        votes.scatter_add_(1, labels[near.indices], weight)
        answers.append(votes.argmax(1))
    return torch.cat(answers)


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
