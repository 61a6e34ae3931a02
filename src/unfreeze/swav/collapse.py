"""Handling of a collapse: save a checkpoint and stop, or log it and continue."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfreeze.checkpoints.state import BEST, LAST, second_name
from unfreeze.errors import DivergedError
from unfreeze.swav.guard import Verdict
from unfreeze.swav.remedies import Remedy, remedies

if TYPE_CHECKING:
    from unfreeze.swav.trainer import Trainer


# in checkpoints/ with --on-collapse recover: the untrained start, and the last healthy state
START, GOOD = "start.ckpt", "good.ckpt"
GOOD_BEST = "good-best.ckpt"  # best.ckpt as of that state


class Collapsed(DivergedError):
    """Training collapsed: the detector's `verdict`, and the `remedies`, best first."""

    def __init__(self, verdict: Verdict, options: list[Remedy]) -> None:
        self.verdict, self.remedies = verdict, options
        super().__init__(
            f"Training collapsed by step {verdict.step}: {verdict.diagnosis}.", advice(options)
        )


def advice(options: list[Remedy]) -> str:
    """The next step of the error: each remedy as a flag with its value."""
    if not options:
        return "The last checkpoint is intact. Check the images with `unfreeze show`."
    flags = "; ".join(f"{remedy.flags} ({remedy.why})" for remedy in options)
    return (
        f"Start a new run with the first of these that helps: {flags}. "
        "--on-collapse ignore continues unchanged."
    )


def recovery(back: int, remedy: Remedy, verdict: Verdict) -> dict[str, Any]:
    """A recovery as checkpoints and results record it; `worked` is filled in later."""
    return {
        "collapsed_at": verdict.step,
        "back_to": back,
        "remedy": remedy.flags,
        "values": {k: list(v) if isinstance(v, tuple) else v for k, v in remedy.values.items()},
        "diagnosis": verdict.diagnosis,
        "worked": None,
    }


def keep_good(trainer: "Trainer") -> None:
    """Link the checkpoint just written under a second name, if the run may recover from it."""
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
    """Restore best.ckpt of the last healthy state, dropping what came after it."""
    if (folder / GOOD_BEST).exists():
        second_name(folder / GOOD_BEST, folder / BEST)


def heed(trainer: "Trainer") -> None:
    """Save a checkpoint and raise Collapsed if a collapse was detected and is not ignored."""
    verdict = trainer.verdict
    if verdict is None:
        return
    plan = trainer.plan
    images = len(trainer.loader.positions)
    options = remedies(trainer.s, steps_per_epoch=plan.steps_per_epoch, images=images)
    collapsed = Collapsed(verdict, options)
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
