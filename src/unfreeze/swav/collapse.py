"""What follows from a verdict of the guard: the run saves and ends, or says so and goes on."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfreeze.checkpoints.state import BEST, LAST, second_name
from unfreeze.errors import DivergedError
from unfreeze.swav.guard import Verdict
from unfreeze.swav.remedies import Remedy, remedies

if TYPE_CHECKING:
    from unfreeze.swav.trainer import Trainer


# in checkpoints/, where a run may recover: its untrained start, and the last state that was good
START, GOOD = "start.ckpt", "good.ckpt"
GOOD_BEST = "good-best.ckpt"  # what best.ckpt was at the good state


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
        return "The last checkpoint is whole. Look at the images with `unfreeze show`."
    tries = "; ".join(f"{remedy.flags} ({remedy.why})" for remedy in found)
    return (
        f"Start anew with the first of these that helps: {tries}. "
        "--on-collapse ignore goes on as it is."
    )


def recovery(back: int, remedy: Remedy, verdict: Verdict) -> dict[str, Any]:
    """What checkpoints, records and results say of one; `worked` is known later."""
    return {
        "collapsed_at": verdict.step,
        "back_to": back,
        "remedy": remedy.flags,
        "values": {k: list(v) if isinstance(v, tuple) else v for k, v in remedy.values.items()},
        "diagnosis": verdict.diagnosis,
        "worked": None,
    }


def keep_good(trainer: "Trainer") -> None:
    """Give the checkpoint that was just written a second name, if one may go back to it."""
    folder = trainer.run.file("checkpoints")
    if trainer.s.on_collapse != "recover" or trainer.verdict is not None:
        return
    if not trainer.step:
        second_name(folder / LAST, folder / START)
    if not trainer.step or trainer.guard.good:
        second_name(folder / LAST, folder / GOOD)
        if trainer.watch.best is not None:
            second_name(folder / BEST, folder / GOOD_BEST)


def best_again(folder: Path) -> None:
    """Take the good state's best look for the run's: what came after it is given up."""
    if (folder / GOOD_BEST).exists():
        second_name(folder / GOOD_BEST, folder / BEST)


def heed(trainer: "Trainer") -> None:
    """Raise Collapsed, after a checkpoint, where the guard spoke and the run should end by it."""
    verdict = trainer.verdict
    if verdict is None:
        return
    plan = trainer.plan
    images = len(trainer.loader.positions)
    found = remedies(trainer.s, steps_per_epoch=plan.steps_per_epoch, images=images)
    collapsed = Collapsed(verdict, found)
    if trainer.s.on_collapse == "ignore":
        trainer.verdict = None
        if not trainer.guard.spoken:
            trainer.run.log(f"{collapsed.sentence} Ignored by --on-collapse ignore.")
        trainer.guard.spoken = True
        return
    trainer.run.log(collapsed.sentence)
    if trainer.saved[0] != trainer.step:
        trainer.save()
    raise collapsed
