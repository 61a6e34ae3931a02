"""What follows from a verdict of the guard: the run saves and ends, or says so and goes on."""

from typing import TYPE_CHECKING

from unfreeze.errors import DivergedError
from unfreeze.swav.guard import Verdict
from unfreeze.swav.remedies import Remedy, remedies

if TYPE_CHECKING:
    from unfreeze.swav.trainer import Trainer


class Collapsed(DivergedError):
    """A run that collapsed: the guard's `verdict`, and the `remedies` there are, best first."""

    def __init__(self, verdict: Verdict, found: list[Remedy]) -> None:
        self.verdict, self.remedies = verdict, found
        super().__init__(
            f"Training collapsed by step {verdict.step}: {verdict.diagnosis}.", advice(found)
        )


def advice(found: list[Remedy]) -> str:
    """The next step in words: each remedy as a flag with its value."""
    if not found:
        return "The last checkpoint is whole. Look at the pictures with `unfreeze show`."
    tries = "; ".join(f"{remedy.flags} ({remedy.why})" for remedy in found)
    return (
        f"Start anew with the first of these that helps: {tries}. "
        "--on-collapse ignore goes on as it is."
    )


def heed(trainer: "Trainer") -> None:
    """Raise Collapsed, after a checkpoint, where the guard spoke and the run should end by it."""
    verdict = trainer.verdict
    if verdict is None:
        return
    plan = trainer.plan
    images = len(trainer.loader.positions)
    found = remedies(trainer.s, steps_per_epoch=plan.steps_per_epoch, images=images)
    collapsed = Collapsed(verdict, found)
    trainer.verdict = None
    if trainer.s.on_collapse == "ignore":
        if not trainer.guard.spoken:
            trainer.run.log(f"{collapsed.sentence} Ignored, as asked for.")
        trainer.guard.spoken = True
        return
    trainer.run.log(collapsed.sentence)
    if trainer.saved[0] != trainer.step:
        trainer.save()
    raise collapsed
