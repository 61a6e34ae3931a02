"""Label-free metrics of features and codes (RankMe, alignment, uniformity, ...).

Pure functions. Features are `[N, d]`; codes and predictions `[N, K]`, each row sums to 1.
"""

import math

import torch
import torch.nn.functional as F

SAME = 0.99  # cosine from which two prototypes are duplicates


def effective_rank(features: torch.Tensor) -> float:
    """Effective rank of the features, 1 .. d: exp of the entropy of their singular values.

    RankMe (Garrido et al., arXiv 2210.02885, equation 1), not centred: constant features
    have rank 1.
    """
    # on the CPU in float64: squaring the singular values costs half of the digits
    X = features.detach().cpu().double()
    values = torch.linalg.eigvalsh(X.T @ X if X.shape[0] >= X.shape[1] else X @ X.T)
    return perplexity(values.clamp_min(0).sqrt())


def perplexity(weights: torch.Tensor) -> float:
    """Exp of the entropy of `weights`, normalised to sum 1: the effective number of parts."""
    p = weights / weights.sum().clamp_min(1e-300)
    return float(torch.exp(-torch.xlogy(p, p).sum()))


def feature_std(features: torch.Tensor) -> float:
    """Mean standard deviation per dimension of unit features, 0 .. 1; 1: evenly spread.

    The collapse measure of Chen and He (arXiv 2011.10566, section 4.1), times sqrt(d).
    """
    Z = F.normalize(features.float(), dim=1)
    return float(Z.std(dim=0, correction=0).mean() * math.sqrt(Z.shape[1]))


def alignment(one: torch.Tensor, other: torch.Tensor) -> float:
    """Mean squared distance of two views' unit features, 0 .. 4; 0 is perfect.

    Wang and Isola, arXiv 2005.10242, equation 1 with exponent 2.
    """
    gap = F.normalize(one.float(), dim=1) - F.normalize(other.float(), dim=1)
    return float(gap.square().sum(dim=1).mean())


def uniformity(features: torch.Tensor) -> float:
    """Log of the mean of exp(-2 distance²) over pairs of unit features; 0: constant, lower: even.

    Wang and Isola, arXiv 2005.10242, equation 2 with t = 2.
    """
    Z = F.normalize(features.float(), dim=1)
    return float(torch.pdist(Z).square().mul(-2).exp().mean().log())


def code_entropy(codes: torch.Tensor) -> torch.Tensor:
    """Mean entropy of the rows as a share of ln K, a scalar on their device; 1: uniform rows."""
    return -torch.xlogy(codes, codes).sum(dim=1).mean() / math.log(codes.shape[1])


def usage_entropy(codes: torch.Tensor) -> float:
    """Entropy of the mean row as a share of ln K, 0 .. 1; 1: prototypes are used equally."""
    return math.log(perplexity(codes.mean(dim=0))) / math.log(codes.shape[1])


def mutual_information(predictions: torch.Tensor) -> float:
    """Mutual information of image and prototype as a share of ln K, 0 .. 1.

    The entropy of the mean row minus the mean entropy of the rows: 0 for identical and for uniform
    rows.
    """
    return usage_entropy(predictions) - float(code_entropy(predictions))


def prototypes_in_use(nearest: torch.Tensor, prototypes: int) -> int:
    """Number of prototypes that are nearest to at least one image."""
    return int((nearest.bincount(minlength=prototypes) > 0).sum())


def agreement(one: torch.Tensor, other: torch.Tensor) -> float:
    """Share of the images whose two views have the same prototype as the maximum of their codes."""
    return float((one.argmax(dim=1) == other.argmax(dim=1)).float().mean())


def duplicate_share(prototypes: torch.Tensor, *, same: float = SAME) -> float:
    """Share of the prototypes `[K, d]` with another prototype at a cosine of at least `same`."""
    C = F.normalize(prototypes.detach().float(), dim=1)
    cosines = (C @ C.T).fill_diagonal_(-1)
    return float((cosines >= same).any(dim=1).float().mean())
