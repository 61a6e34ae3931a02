"""What `evaluate` runs: the weights, the split, and how the run used each of its images."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unfreeze.checkpoints.model_file import TRAINED_IMAGES, ModelCard, model_folder
from unfreeze.checkpoints.state import load_state
from unfreeze.config.commands import EvaluateSettings
from unfreeze.config.shared import label_arguments
from unfreeze.data.index.folder_layout import SPLIT_NAMES
from unfreeze.data.index.index import TEST, VAL, Index, build_index
from unfreeze.data.validate.duplicates import (
    Keys,
    Signatures,
    TrainedImages,
    content_keys,
    load_trained_images,
)
from unfreeze.errors import DataError, UsageError
from unfreeze.runs.finetuning.task_settings import open_samples
from unfreeze.tasks.supervised import SupervisedTask
from unfreeze.training.ema import weights_to_serve
from unfreeze.transfer.predictor import Classifier, load_classifier

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class EvaluationSet:
    """The labelled images of `index`, and the `positions` of those to evaluate, named `split`.

    `labels`: index in the model's classes. `parts`: "train", "val" or "": how the run used each
    image, by content. `held_out`: positions for fitting a temperature. `keys`: content keys of all
    images; `known`: record of the run's images in the model folder, if any.
    """

    index: Index
    labels: npt.NDArray[np.int64]
    parts: npt.NDArray[np.str_]
    positions: Positions
    split: str
    used_for_choosing: bool
    held_out: Positions
    keys: Keys
    known: TrainedImages | None

    @property
    def is_test(self) -> bool:
        """Whether this is a test set: images used neither for training nor for selection."""
        splits = self.index.splits[self.positions]
        unknown = (splits == 0) & (self.parts[self.positions] == "")
        return bool((splits == TEST).any() or (unknown.any() and self.split == "all"))

    def seen(self, kept: Positions) -> int:
        """Number of training images among `kept`, positions in the evaluated images."""
        return int((self.parts[self.positions][kept] == "train").sum())

    def leaked(self, kept: Positions, signatures: Signatures) -> npt.NDArray[np.bool_] | None:
        """Mask of `kept`, with these signatures: has a duplicate or near-duplicate in train.

        None if the model folder has no record of the training images.
        """
        if self.known is None:
            return None
        return self.known.leaked(self.keys[self.positions][kept], signatures)


def choose_evaluation_set(
    s: EvaluateSettings, card: ModelCard, task: SupervisedTask | None = None
) -> EvaluationSet:
    """The images to evaluate on: test, else val, else those the run held out, else all.

    DataError without labels, or for a class that the model does not know.
    """
    source = open_samples(s.data, card, data_root=s.data_root)
    index = (
        build_index(source, **label_arguments(s))
        if task is None
        else task.index(source, **label_arguments(s))
    )
    index = index.take(np.flatnonzero(index.labels >= 0))
    if not len(index):
        raise DataError(
            f"{source.where} has no labels.",
            "Add --labels, or use `unfreeze predict`.",
        )
    usage = _usage(s.run, index)
    positions, name = _choose(index, s.split, usage)
    held_out = _held_out(index, usage)
    labels = (
        index.labels.astype(np.int64)
        if task is not None
        else _labels(index, positions, card.classes)
    )
    chose = card.provenance.get("best_epoch") is not None
    chose = chose or (task is not None and task.calibrated)
    return EvaluationSet(
        index=index,
        labels=labels,
        parts=usage.parts,
        positions=positions,
        split=name,
        used_for_choosing=chose and bool((usage.parts[positions] == "val").any()),
        held_out=held_out[labels[held_out] >= 0],
        keys=usage.keys,
        known=usage.seen,
    )


@dataclass(frozen=True)
class _ImageUsage:
    """How the run used each image, by content: `parts` [N] is "train", "val" or "".

    `whole`: all images of the run are here, so its own split applies. `keys`: content keys of all
    images; `seen`: record of the run's images, if any.
    """

    parts: npt.NDArray[np.str_]
    whole: bool
    keys: Keys
    seen: TrainedImages | None


def _usage(run: str, index: Index) -> _ImageUsage:
    folder = model_folder(run)
    record = load_trained_images(folder / TRAINED_IMAGES) if folder is not None else None
    keys, parts = content_keys(index), np.full(len(index), "", "<U5")
    if record is None:
        return _ImageUsage(parts, False, keys, None)
    parts[np.isin(keys, record.val)] = "val"
    parts[np.isin(keys, record.train)] = "train"  # an image in both was trained on
    complete = bool(np.isin(np.concatenate([record.train, record.val]), keys).all())
    return _ImageUsage(parts, complete, keys, record)


def _choose(index: Index, split: str | None, usage: _ImageUsage) -> tuple[Positions, str]:
    own_split = usage.parts if usage.whole else np.full(len(index), "", "<U5")
    if split is None:
        if len(index.where(TEST)):
            split = "test"
        elif len(index.where(VAL)) or (own_split == "val").any():
            split = "val"
        else:
            split = "all"
    in_data = len(index.where(VAL)) > 0 if split == "val" else bool(index.splits.any())
    if split in ("train", "val") and usage.whole and not in_data:
        # the data has no such split: use the run's own
        positions = np.flatnonzero(own_split == split)
        if not len(positions):
            raise DataError(f"The run has no {split} split.", "Use --split all.")
        return positions, split
    return positions_of_split(index, split), split


def _held_out(index: Index, usage: _ImageUsage) -> Positions:
    """Validation images by the data's split, else by the run's; never of train or test."""
    in_data = index.splits == VAL
    chosen = in_data if in_data.any() else (usage.parts == "val") & (index.splits != TEST)
    return np.flatnonzero(chosen & (usage.parts != "train"))


def _labels(index: Index, positions: Positions, classes: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """Labels as indices of the model's classes, matched by name; -1 for unknown classes.

    DataError if one of `positions` has an unknown class.
    """
    class_index = {name: number for number, name in enumerate(classes)}
    names = {index.classes[label] for label in np.unique(index.labels[positions]).tolist()}
    unknown = sorted(names - set(class_index))
    if unknown:
        raise DataError(
            f"The model does not know the class {unknown[0]!r}; its classes: {', '.join(classes)}.",
            "Evaluate on data with the classes of the training set.",
        )
    table = np.array([class_index.get(name, -1) for name in index.classes], np.int64)
    return table[index.labels]


def positions_of_split(index: Index, split: str | None) -> npt.NDArray[np.int64]:
    """Positions of the images of a split; all for None and "all"; DataError if it is empty."""
    if split in (None, "all"):
        return np.arange(len(index))
    positions = index.where(SPLIT_NAMES.index(str(split)))
    if not len(positions):
        names = [name for number, name in enumerate(SPLIT_NAMES) if len(index.where(number))]
        raise DataError(
            f"{index.source.where} has no split {split!r}.",
            f"Splits: {', '.join(filter(None, names)) or 'none'}; --split all uses all images.",
        )
    return positions


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
