"""What a model said of each picture: as CSV, and the worst mistakes with their pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from unfreeze.data.preprocess import Pixels, Preprocess
from unfreeze.runtime.atomic import replacing
from unfreeze.runtime.console import told
from unfreeze.runtime.tables import write_csv
from unfreeze.transfer.reading import Read

ARRAYS = ("paths", "pictures")  # of mistakes.npz
THUMBNAIL = 96  # pixels
WORST = 20  # mistakes that are told and shown; mistakes.csv has them all
COLUMNS = ("path", "label", "predicted", "probability", "probability_of_label")


@dataclass(frozen=True)
class Answer:
    """One picture: its class, the predicted one, and the probabilities of both."""

    path: str
    label: str
    predicted: str
    probability: float
    probability_of_label: float

    @property
    def right(self) -> bool:
        """Whether the prediction is the label."""
        return self.label == self.predicted


@dataclass(frozen=True)
class Answers:
    """Answers in the order of the pictures, and how to read each picture again."""

    each: list[Answer]
    reads: Sequence[Read]

    def mistakes(self) -> list[int]:
        """Places of what is wrong, the most certain mistake first."""
        wrong = [place for place, one in enumerate(self.each) if not one.right]
        return sorted(wrong, key=lambda place: (-self.each[place].probability, place))

    def worst(self) -> list[Answer]:
        """The first of the mistakes."""
        return [self.each[place] for place in self.mistakes()[:WORST]]

    def write(self, folder: Path) -> None:
        """predictions.csv, mistakes.csv, and mistakes.npz: pictures of the first mistakes."""
        wrong = self.mistakes()
        write_csv(folder / "predictions.csv", COLUMNS, map(_row, self.each))
        write_csv(folder / "mistakes.csv", COLUMNS, (_row(self.each[p]) for p in wrong))
        small = Preprocess(THUMBNAIL, THUMBNAIL)
        shown = {told(self.each[p].path): small.pixels(self.reads[p]()) for p in wrong[:WORST]}
        with replacing(folder / "mistakes.npz") as path, path.open("wb") as stream:
            names = np.array(list(shown), np.str_)
            np.savez_compressed(stream, paths=names, pictures=_stacked(list(shown.values())))


def answered(
    paths: Sequence[str],
    reads: Sequence[Read],
    classes: Sequence[str],
    labels: npt.NDArray[np.int64],
    logits: Tensor,
) -> Answers:
    """Answers from logits [N, C] and labels [N], places in `classes`."""
    chances = logits.double().softmax(dim=1).numpy()
    best = chances.argmax(axis=1)
    each = [
        Answer(
            path,
            classes[label],
            classes[place],
            float(chances[row, place]),
            float(chances[row, label]),
        )
        for row, (path, label, place) in enumerate(
            zip(paths, labels.tolist(), best.tolist(), strict=True)
        )
    ]
    return Answers(each, reads)


def _row(a: Answer) -> tuple[str, ...]:
    return a.path, a.label, a.predicted, f"{a.probability:.6f}", f"{a.probability_of_label:.6f}"


def _stacked(pictures: list[Pixels]) -> Pixels:
    if not pictures:
        return np.zeros((0, THUMBNAIL, THUMBNAIL, 3), np.uint8)
    return np.stack(pictures)
