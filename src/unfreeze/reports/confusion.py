"""A confusion matrix for people: shares to shade by, and the worst mix-ups in words."""

from dataclasses import dataclass
from typing import Any

from unfreeze.reports.interval import wilson

LARGEST = 40  # classes; beyond that a table is no longer read
WORST = 10
SHOWN = 15  # classes of the lowest recall, where there are too many


@dataclass(frozen=True)
class Cell:
    """How many images, and which share of their row."""

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
    """Rows are the truth, columns the prediction."""

    classes: list[str]
    rows: list[Row]
    worst: list[tuple[str, str, int]]  # truth, prediction, how many; most first
    readable: bool

    @property
    def lowest(self) -> list[Row]:
        """The classes with the lowest recall."""
        there = [row for row in self.rows if row.recall is not None]
        return sorted(there, key=lambda row: (row.recall or 0.0, -row.total))[:SHOWN]


def confusion(evaluation: dict[str, Any] | None) -> Confusion | None:
    """From the fields `classes` and `confusion`; None where they are not there."""
    if not evaluation or not evaluation.get("classes") or not evaluation.get("confusion"):
        return None
    classes, counts = list(evaluation["classes"]), evaluation["confusion"]
    rows = [
        _row(place, name, counts[place], sum(row[place] for row in counts))
        for place, name in enumerate(classes)
    ]
    mixed = sorted(
        (-counts[truth][taken], truth, taken)
        for truth in range(len(classes))
        for taken in range(len(classes))
        if truth != taken and counts[truth][taken]
    )
    worst = [(classes[truth], classes[taken], -count) for count, truth, taken in mixed[:WORST]]
    return Confusion(classes, rows, worst, len(classes) <= LARGEST)


def _row(place: int, name: str, counts: list[int], said: int) -> Row:
    total = sum(counts)
    cells = [
        Cell(count, count / total if total else 0.0, other == place)
        for other, count in enumerate(counts)
    ]
    recall = counts[place] / total if total else None
    precision = counts[place] / said if said else None
    return Row(name, total, recall, precision, *wilson(counts[place], total), cells)
