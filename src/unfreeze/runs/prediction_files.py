"""Predictions for each image: predictions.csv, mistakes.csv, and example images of the report."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from unfreeze.reports.examples import FILE as EXAMPLES
from unfreeze.reports.examples import (
    LIMITS,
    WRONG,
    Example,
    encode_image,
    save_examples,
    select_examples,
)
from unfreeze.runs.explanations import Explanation
from unfreeze.runtime.console import printable
from unfreeze.runtime.text_layout import write_csv
from unfreeze.transfer.predictor import Read

WORST = 20  # mistakes in evaluation.json; mistakes.csv has all
COLUMNS: tuple[str, ...] = ("path", "label", "predicted", "probability", "probability_of_label")


@dataclass(frozen=True)
class PredictedImage:
    """One image: label, predicted class, and the probabilities of both."""

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
class EvaluatedPredictions:
    """Predictions in the order of the images, and functions that read each image again.

    `reads` is empty for samples that cannot be shown as images.
    """

    each: list[PredictedImage]
    reads: Sequence[Read]

    def mistakes(self) -> list[int]:
        """Positions of the mistakes, highest confidence first."""
        wrong = [position for position, answer in enumerate(self.each) if not answer.right]
        return sorted(wrong, key=lambda position: (-self.each[position].probability, position))

    def worst(self) -> list[PredictedImage]:
        """The WORST mistakes with the highest confidence."""
        return [self.each[position] for position in self.mistakes()[:WORST]]

    def shown_mistakes(self) -> list[int]:
        """Positions of the mistakes that the report shows as images."""
        return self.mistakes()[: LIMITS[WRONG]] if self.reads else []

    def write(
        self, folder: Path, explained: Mapping[int, Explanation] = MappingProxyType({})
    ) -> None:
        """Write predictions.csv, mistakes.csv, and the example images of the report.

        `explained`: explanations by position.
        """
        wrong = self.mistakes()
        write_csv(folder / "predictions.csv", COLUMNS, map(_row, self.each))
        write_csv(folder / "mistakes.csv", COLUMNS, (_row(self.each[p]) for p in wrong))
        if self.reads:
            save_examples(folder / EXAMPLES, list(self._examples(explained)))

    def _examples(self, explained: Mapping[int, Explanation]) -> Iterator[Example]:
        columns = zip(*((a.predicted, a.label, a.probability) for a in self.each), strict=True)
        predicted, labels, probabilities = columns
        for kind, position in select_examples(predicted, labels, probabilities):
            answer = self.each[position]
            why = explained.get(position, Explanation())
            yield Example(
                kind=kind,
                path=printable(answer.path),
                label=printable(answer.label),
                predicted=printable(answer.predicted),
                probability=answer.probability,
                image=encode_image(self.reads[position]()),
                map=why.map,
                nearest=why.nearest,
            )


def predictions_of(
    paths: Sequence[str],
    reads: Sequence[Read],
    classes: Sequence[str],
    labels: npt.NDArray[np.int64],
    logits: Tensor,
) -> EvaluatedPredictions:
    """Predictions from logits [N, C] and labels [N] (indices of `classes`)."""
    probabilities = logits.double().softmax(dim=1).numpy()
    best = probabilities.argmax(axis=1)
    each = [
        PredictedImage(
            path,
            classes[label],
            classes[prediction],
            float(probabilities[row, prediction]),
            float(probabilities[row, label]),
        )
        for row, (path, label, prediction) in enumerate(
            zip(paths, labels.tolist(), best.tolist(), strict=True)
        )
    ]
    return EvaluatedPredictions(each, reads)


def write_predictions(
    path: Path,
    paths: Sequence[str],
    labels: Sequence[str],
    predicted: Sequence[Mapping[str, Any]],
) -> None:
    """Write a CSV with the path, the label and the prediction of each image."""
    rows = (
        (name, label, *map(str, values.values()))
        for name, label, values in zip(paths, labels, predicted, strict=True)
    )
    write_csv(path, ("path", "label", *predicted[0]), rows)


def _row(a: PredictedImage) -> tuple[str, ...]:
    return a.path, a.label, a.predicted, f"{a.probability:.6f}", f"{a.probability_of_label:.6f}"
