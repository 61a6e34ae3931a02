"""The confusion matrix of the page: cell shades, and the most frequent confusions."""

from dataclasses import dataclass
from typing import Any

from unfreeze.reports.interval import wilson

LARGEST = 40  # classes of a readable matrix
WORST = 10
SHOWN = 15  # classes of lowest recall, listed instead of a larger matrix


@dataclass(frozen=True)
class Cell:
    """Number of images, and their share of the row."""

    count: int
    share: float
    right: bool


@dataclass(frozen=True)
class Row:
    """One true class."""

    name: str
    total: int
    recall: float | None
    precision: float | None
    low: float
    high: float
    cells: list[Cell]


@dataclass(frozen=True)
class Confusion:
    """Rows are labels, columns predictions."""

    classes: list[str]
    rows: list[Row]
    worst: list[tuple[str, str, int]]  # label, prediction, count; largest first
    readable: bool

    @property
    def lowest(self) -> list[Row]:
        """The classes with the lowest recall."""
        labelled = [row for row in self.rows if row.recall is not None]
        return sorted(labelled, key=lambda row: (row.recall or 0.0, -row.total))[:SHOWN]


def confusion(evaluation: dict[str, Any] | None) -> Confusion | None:
    """From the fields `classes` and `confusion` of an evaluation; None without them."""
    if not evaluation or not evaluation.get("classes") or not evaluation.get("confusion"):
        return None
    classes, counts = list(evaluation["classes"]), evaluation["confusion"]
    rows = [
        _row(index, name, counts[index], sum(row[index] for row in counts))
        for index, name in enumerate(classes)
    ]
    confused = sorted(
        (-counts[label][predicted], label, predicted)
        for label in range(len(classes))
        for predicted in range(len(classes))
        if label != predicted and counts[label][predicted]
    )
    worst = [(classes[label], classes[other], -n) for n, label, other in confused[:WORST]]
    return Confusion(classes, rows, worst, len(classes) <= LARGEST)


def _row(index: int, name: str, counts: list[int], predicted: int) -> Row:
    total = sum(counts)
    cells = [
        Cell(count, count / total if total else 0.0, other == index)
        for other, count in enumerate(counts)
    ]
    recall = counts[index] / total if total else None
    precision = counts[index] / predicted if predicted else None
    return Row(name, total, recall, precision, *wilson(counts[index], total), cells)
