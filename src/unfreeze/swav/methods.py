"""What `--method` changes in a plan: which values mean something, and how many prototypes."""

import dataclasses

from unfreeze.errors import UsageError
from unfreeze.settings.knob import flag
from unfreeze.settings.pretrain import PretrainSettings

# what only one of the methods knows
SINKHORN = ("epsilon", "sinkhorn_iterations", "queue_length", "epoch_queue_starts", "queue_start")
EPSILON = 0.05  # arXiv 2006.09882, appendix A.1
SHARPEST = 0.03  # the reference's advice, and what works on digits
KMEANS = ("clusterings", "kmeans_iterations")


def check_method(s: PretrainSettings) -> None:
    """UsageError where a value was given that the method has no use for."""
    clustered = s.method == "deepcluster-v2"
    foreign = SINKHORN if clustered else KMEANS
    usual = {field.name: field.default for field in dataclasses.fields(s)}
    given = [name for name in foreign if getattr(s, name) not in (usual[name], 0)]
    if given:
        raise UsageError(
            f"--method {s.method} knows no {flag(given[0])}.",
            "Leave it out: " + ("codes come from k-means." if clustered else "nothing clusters."),
        )
    if clustered and s.recipe != "auto":
        raise UsageError(
            f"The recipe {s.recipe} is one of SwAV.", "Leave --recipe out, or --method."
        )


def epsilon_of(s: PretrainSettings) -> float:
    """Entropy of the Sinkhorn codes; without a plan the published value."""
    return EPSILON if s.epsilon is None else s.epsilon


def prototypes_of(s: PretrainSettings) -> int:
    """Prototypes of all clusterings together; SwAV has one set."""
    sets = s.clusterings if s.method == "deepcluster-v2" else 1
    return (s.nmb_prototypes or 0) * sets
