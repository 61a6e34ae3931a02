"""Which weights of a run are judged: those of the selected epoch, of the last, or both."""

from dataclasses import replace
from pathlib import Path

from unfreeze.checkpoints.modelfile import ModelCard
from unfreeze.checkpoints.state import load_state
from unfreeze.errors import UsageError
from unfreeze.transfer.average import served
from unfreeze.transfer.predictor import Classifier, load_classifier

LAST = "checkpoints/last.ckpt"


def networks(run: str, folder: Path | None, which: str) -> tuple[Classifier, Classifier | None]:
    """(the one that is judged, the last epoch's beside it).

    `which` is best, last or both; the second is None where it was not asked for, where there is no
    checkpoint, and where the last epoch is the selected one.
    """
    best = load_classifier(run)
    if which == "best":
        return best, None
    path = folder / LAST if folder is not None else None
    there = path is not None and path.is_file()
    if which == "last":
        if path is None or not there:
            raise UsageError(
                f"{run} has no {LAST} with the weights of the last epoch.",
                "Give the run folder, or omit --weights-of.",
            )
        return _of_last(best, path), None
    selected = best.card.provenance.get("best_epoch")
    if path is None or not there or selected in (None, epoch_of(best.card)):
        return best, None
    last = _of_last(best, path)
    return best, None if epoch_of(last.card) == selected else last


def epoch_of(card: ModelCard) -> int | None:
    """The last epoch of a run, from 0; None where the card does not say it or none ended."""
    epochs = card.provenance.get("epochs")
    return epochs - 1 if isinstance(epochs, int) and epochs else None


def _of_last(best: Classifier, path: Path) -> Classifier:
    state = load_state(path)
    other = load_classifier(path.parent.parent)
    other.network.load_state_dict(served(state))
    about = {**best.card.provenance, "best_epoch": None, "epochs": int(state["epoch"])}
    other.card = replace(best.card, provenance=about)
    return other
