"""Warnings about a plan: given hyper-parameters that fail at this dataset size.

The auto recipe never causes one. A published recipe on a small dataset causes several: the known
ways in which the reference implementation fails there.
"""

from collections.abc import Iterator

from unfreeze.swav.counts import fillable
from unfreeze.swav.facts import Facts
from unfreeze.swav.recipe import Plan, usual_lr

FAR = 3.0  # times the usual learning rate


def doubts(plan: Plan, facts: Facts) -> tuple[str, ...]:
    """One sentence per value that does not suit the dataset; empty where all do."""
    warnings = (*_frozen(plan), *_prototypes(plan, facts), *_queue(plan, facts), *_rate(plan))
    return tuple(warnings)


def _frozen(plan: Plan) -> Iterator[str]:
    steps = plan.settings.freeze_prototypes_niters or 0
    if plan.settings.method != "swav":
        return  # prototypes are always frozen between two clusterings
    if plan.steps and steps > max(plan.steps_per_epoch, 0.1 * plan.steps):
        epochs = steps / plan.steps_per_epoch
        yield (
            f"--freeze-prototypes-niters {steps:,} is {epochs:,.0f} epochs of "
            f"{plan.settings.epochs} here; the recipe intends one epoch."
        )


def _prototypes(plan: Plan, facts: Facts) -> Iterator[str]:
    s = plan.settings
    K, batch, queue = s.nmb_prototypes or 0, s.batch_size or 0, s.queue_length or 0
    if facts.images < K:
        yield f"--nmb-prototypes {K:,} exceeds the {facts.images:,} images."
    elif s.method == "swav" and fillable(batch, queue) < K:
        queued = f" and {queue:,} queued features" if queue else ""
        yield (
            f"A batch of {batch:,}{queued} cannot fill --nmb-prototypes {K:,}: codes are spread "
            "equally over all prototypes, so many stay empty."
        )


def _queue(plan: Plan, facts: Facts) -> Iterator[str]:
    queue = plan.settings.queue_length or 0
    if queue > facts.images / 2:
        yield (
            f"--queue-length {queue:,} is {queue / facts.images:.1f} times the number of images: "
            "most entries are outdated features of images in the batch."
        )


def _rate(plan: Plan) -> Iterator[str]:
    s = plan.settings
    usual, why = usual_lr(s.optimizer or "larc", s.batch_size or 0)
    if s.base_lr and s.base_lr > FAR * usual:
        yield (
            f"--base-lr {s.base_lr:g} is {s.base_lr / usual:.0f} times the usual {usual:.3g} "
            f"for a batch of {s.batch_size:,} ({why})."
        )
