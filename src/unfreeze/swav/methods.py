"""Settings that depend on `--method`: which ones apply, and the number of prototypes."""

import dataclasses

from unfreeze.errors import UsageError
from unfreeze.settings.knob import flag
from unfreeze.settings.pretrain import PretrainSettings

# settings of one method only
SINKHORN = ("epsilon", "sinkhorn_iterations", "queue_length", "epoch_queue_starts", "queue_start")
EPSILON = 0.05  # arXiv 2006.09882, appendix A.1
SHARPEST = 0.03  # the reference's advice against collapse, and what works on digits
KMEANS = ("clusterings", "kmeans_iterations")


def check_method(s: PretrainSettings) -> None:
    """Raise UsageError for a given setting that the method does not have."""
    clustered = s.method == "deepcluster-v2"
    inapplicable = SINKHORN if clustered else KMEANS
    defaults = {field.name: field.default for field in dataclasses.fields(s)}
    given = [name for name in inapplicable if getattr(s, name) not in (defaults[name], 0)]
    if given:
        raise UsageError(
            f"{flag(given[0])} has no effect with --method {s.method}.",
            "Leave it out: " + ("codes come from k-means." if clustered else "no k-means here."),
        )
    if clustered and s.recipe != "auto":
        raise UsageError(
            f"--recipe {s.recipe} is for --method swav.", "Leave out --recipe or --method."
        )


def epsilon_of(s: PretrainSettings) -> float:
    """Sinkhorn's epsilon; the published value if it is not set."""
    return EPSILON if s.epsilon is None else s.epsilon


def prototypes_of(s: PretrainSettings) -> int:
    """Number of prototypes over all clusterings; SwAV has one set."""
    sets = s.clusterings if s.method == "deepcluster-v2" else 1
    return (s.nmb_prototypes or 0) * sets
