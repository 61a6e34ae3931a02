"""`evaluate`: how good a model is on labelled pictures, and whether it may be believed."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from unfreeze.api.embed import in_split
from unfreeze.api.serving import placed, reads_of, send
from unfreeze.checkpoints.modelfile import ModelCard, model_folder
from unfreeze.data.content import content_keys, load_keys
from unfreeze.data.index import TEST, VAL, Index, build_index
from unfreeze.data.sources.open import open_source
from unfreeze.errors import DataError
from unfreeze.reports.interval import wilson
from unfreeze.runtime.atomic import write_json
from unfreeze.runtime.console import Console, Quiet
from unfreeze.settings.build import build
from unfreeze.settings.use import EvaluateSettings
from unfreeze.transfer.evaluate import ClassScore, score
from unfreeze.transfer.predictor import load_classifier

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Evaluation:
    """Scores on `n` pictures of `split`; `confusion` has truth in rows, prediction in columns.

    `interval`: 95 % (Wilson) of `accuracy`. `seen_in_training`: how many of the pictures the run
    trained on. `used_for_choosing`: whether the run chose its weights by this split.
    """

    n: int
    split: str
    seen_in_training: int
    used_for_choosing: bool
    accuracy: float
    interval: tuple[float, float]
    top5: float
    loss: float
    classes: list[str]
    confusion: list[list[int]]
    per_class: list[ClassScore]


@dataclass(frozen=True)
class _Choice:
    """Which pictures, under which name."""

    positions: Positions
    split: str
    used_for_choosing: bool


def evaluate(run: str, data: str, **settings: Any) -> Evaluation:
    """Scores of a run's model on `data`: its test, else val, else the rows held out, else all.

    Keywords as in `EvaluateSettings`. DataError for a class the model does not know.
    """
    given = {"run": str(run), "data": str(data), **settings}
    return run_evaluate(build(EvaluateSettings, given), Quiet())


def run_evaluate(settings: EvaluateSettings, console: Console) -> Evaluation:
    """The same from a settings object; a run's folder also gets `evaluation.json`."""
    s = settings
    network = placed(load_classifier(s.run), s.device, s.precision)
    index = build_index(open_source(s.data, data_root=s.data_root))
    index = index.take(np.flatnonzero(index.labels >= 0))
    if not len(index):
        raise DataError(f"{s.data} has no labels to compare with.", "Use predict instead.")
    known = _known(s.run, index)
    chosen = _choose(index, s.split, known, network.card)
    index = index.take(chosen.positions)
    labels = _labels(index, network.classes)
    sent = send(network, index.paths, reads_of(index), batch_size=s.batch_size, console=console)
    scores = score(sent.values, torch.from_numpy(labels[sent.kept]), network.classes)
    found = Evaluation(
        n=scores.n,
        split=chosen.split,
        seen_in_training=int((known.parts[chosen.positions][sent.kept] == "train").sum()),
        used_for_choosing=chosen.used_for_choosing,
        accuracy=scores.accuracy,
        interval=wilson(scores.correct, scores.n),
        top5=scores.top5,
        loss=scores.loss,
        classes=list(network.classes),
        confusion=scores.confusion,
        per_class=scores.per_class,
    )
    if (Path(s.run) / "config.toml").is_file():
        try:
            write_json(Path(s.run) / "evaluation.json", asdict(found))
        except OSError as error:  # somebody else's run may be read-only; the answer stands
            console.say(f"evaluation.json could not be kept in {s.run}: {error.strerror}.")
    return found


@dataclass(frozen=True)
class _Known:
    """What the run did with each picture, told by content: `parts` [N] is train, val or empty.

    `whole`: every picture that the run used is here, so these are the files its split came from.
    """

    parts: npt.NDArray[np.str_]
    whole: bool


def _known(run: str, index: Index) -> _Known:
    folder = model_folder(run)
    used = load_keys(folder / "pictures.npz") if folder is not None else {}
    keys, parts = content_keys(index), np.full(len(index), "", "<U5")
    for name in ("val", "train"):  # a picture that stands in both was trained on
        parts[np.isin(keys, used.get(name, keys[:0]))] = name
    whole = bool(used) and all(bool(np.isin(part, keys).all()) for part in used.values())
    return _Known(parts, whole)


def _choose(index: Index, split: str | None, known: _Known, card: ModelCard) -> _Choice:
    own = known.parts if known.whole else np.full(len(index), "", "<U5")
    if split is None:
        if len(index.where(TEST)):
            split = "test"
        elif len(index.where(VAL)) or (own == "val").any():
            split = "val"
        else:
            split = "all"
    said = len(index.where(VAL)) > 0 if split == "val" else bool(index.splits.any())
    if split in ("train", "val") and known.whole and not said:
        # the data does not say it: the run's own cut does
        positions = np.flatnonzero(own == split)
        if not len(positions):
            raise DataError(f"The run held out no {split}.", "Use --split all.")
    else:
        positions = in_split(index, split)
    chose = card.provenance.get("best_epoch") is not None
    return _Choice(positions, split, chose and bool((known.parts[positions] == "val").any()))


def _labels(index: Index, classes: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """Labels as places in the model's classes: matched by name."""
    places = {name: place for place, name in enumerate(classes)}
    wanted = {index.classes[label] for label in np.unique(index.labels).tolist()}
    unknown = sorted(wanted - set(places))
    if unknown:
        raise DataError(
            f"The model does not know the class {unknown[0]!r}; it knows {', '.join(classes)}.",
            "Evaluate on data with the classes of the training.",
        )
    table = np.array([places.get(name, -1) for name in index.classes], np.int64)
    return table[index.labels]
