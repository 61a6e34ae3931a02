"""What speaks against a plan: values that were given and that fail at this number of images.

The auto recipe never has a doubt of its own; a published recipe on small data has several, which
are the known ways in which the reference's command line fails there.
"""

from collections.abc import Iterator

from unfreeze.swav.counts import fillable
from unfreeze.swav.facts import Facts
from unfreeze.swav.recipe import Plan, usual_lr

FAR = 3.0  # times the usual learning rate


def doubts(plan: Plan, facts: Facts) -> tuple[str, ...]:
    """One sentence for each value that does not suit the images; empty where all do."""
    found = (*_standing(plan), *_prototypes(plan, facts), *_queue(plan, facts), *_rate(plan))
    return tuple(found)


def _standing(plan: Plan) -> Iterator[str]:
    steps = plan.settings.freeze_prototypes_niters or 0
    if plan.settings.method != "swav":
        return  # they always stand still between two clusterings
    if plan.steps and steps > max(plan.steps_per_epoch, 0.1 * plan.steps):
        epochs = steps / plan.steps_per_epoch
        yield (
            f"--freeze-prototypes-niters {steps:,} is {epochs:,.0f} epochs of "
            f"{plan.settings.epochs} here; one is meant."
        )


def _prototypes(plan: Plan, facts: Facts) -> Iterator[str]:
    s = plan.settings
    K, batch, queue = s.nmb_prototypes or 0, s.batch_size or 0, s.queue_length or 0
    if facts.images < K:
        yield f"--nmb-prototypes {K:,} are more than the {facts.images:,} images."
    elif s.method == "swav" and fillable(batch, queue) < K:
        behind = f" and {queue:,} queued features" if queue else ""
        yield (
            f"A batch of {batch:,}{behind} cannot fill --nmb-prototypes {K:,}: codes are shared "
            "out among all of them, so many stay empty."
        )


def _queue(plan: Plan, facts: Facts) -> Iterator[str]:
    queue = plan.settings.queue_length or 0
    if queue > facts.images / 2:
        yield (
            f"--queue-length {queue:,} is {queue / facts.images:.1f} times the images: most of "
            "it are old features of images in the batch."
        )


def _rate(plan: Plan) -> Iterator[str]:
    s = plan.settings
    usual, why = usual_lr(s.optimizer or "larc", s.batch_size or 0)
    if s.base_lr and s.base_lr > FAR * usual:
        yield (
            f"--base-lr {s.base_lr:g} is {s.base_lr / usual:.0f} times {usual:.3g}, which "
            f"a batch of {s.batch_size:,} usually gets ({why})."
        )
