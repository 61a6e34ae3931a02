"""The weights that `evaluate` runs: those of the selected epoch, the last one, or both."""

from dataclasses import replace
from pathlib import Path

from unfreeze.checkpoints.model_file import ModelCard
from unfreeze.checkpoints.state import load_state
from unfreeze.errors import UsageError
from unfreeze.training.ema import weights_to_serve
from unfreeze.transfer.predictor import Classifier, load_classifier

LAST = "checkpoints/last.ckpt"


def classifiers_to_evaluate(
    run: str, folder: Path | None, which: str
) -> tuple[Classifier, Classifier | None]:
    """(the classifier to evaluate, that of the last epoch for comparison).

    `which`: best, last or both. The second is None unless `which` is both, a checkpoint exists,
    and the last epoch is not the selected one.
    """
    best = load_classifier(run)
    if which == "best":
        return best, None
    path = folder / LAST if folder is not None else None
    exists = path is not None and path.is_file()
    if which == "last":
        if path is None or not exists:
            raise UsageError(
                f"{run} has no {LAST} with the weights of the last epoch.",
                "Give the run folder, or omit --weights-of.",
            )
        return _last_epoch(best, path), None
    selected = best.card.provenance.get("best_epoch")
    if path is None or not exists or selected in (None, last_epoch(best.card)):
        return best, None
    last = _last_epoch(best, path)
    return best, None if last_epoch(last.card) == selected else last


def last_epoch(card: ModelCard) -> int | None:
    """The last epoch of a run, from 0; None if unknown or if no epoch was completed."""
    epochs = card.provenance.get("epochs")
    return epochs - 1 if isinstance(epochs, int) and epochs else None


def _last_epoch(best: Classifier, path: Path) -> Classifier:
    state = load_state(path)
    last = load_classifier(path.parent.parent)
    last.network.load_state_dict(weights_to_serve(state))
    about = {**best.card.provenance, "best_epoch": None, "epochs": int(state["epoch"])}
    last.card = replace(best.card, provenance=about)
    return last
