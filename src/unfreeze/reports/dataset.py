"""One self-contained HTML page about a data set: samples, counts, sizes, views, problems."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unfreeze.reports.examples import SMALL
from unfreeze.reports.page import number, rendered, uri

CLASSES = 200  # rows of the table
PROBLEMS = 200  # rows of the list
_BARS = 12  # of the histogram

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Strip:
    """Images of one class, or of one image's views, each with a word below it."""

    name: str
    images: Sequence[tuple[str, Pixels]]
    aside: str = ""


@dataclass(frozen=True)
class Seen:
    """Everything that the page shows.

    `figures`: (name, value) of what stands at the top. `counts`: images by class and split.
    `shorter`: of the images whose size is known, pixels. `sized`: how they became known.
    `problems`: rows with path, reason, detail and left_out.
    """

    name: str
    lead: str
    figures: Sequence[tuple[str, str]]
    notes: Sequence[str]
    splits: Sequence[str]
    counts: Mapping[str, Mapping[str, int]]
    samples: Sequence[Strip]
    shorter: npt.NDArray[np.int64]
    sized: str
    views: Sequence[Strip]
    views_note: str
    problems: Sequence[Mapping[str, Any]]
    problems_note: str


def dataset(seen: Seen) -> str:
    """The page's text; nothing in it refers to anything outside it."""
    return rendered(
        "dataset.html",
        {
            "seen": seen,
            "rows": _rows(seen),
            "hidden": max(0, len(seen.counts) - CLASSES),
            "samples": [shown(strip) for strip in seen.samples],
            "views": [shown(strip) for strip in seen.views],
            "bars": histogram(seen.shorter),
            "kinds": Counter(str(row["reason"]) for row in seen.problems).most_common(),
            "listed": seen.problems[:PROBLEMS],
        },
    )


def histogram(sides: npt.NDArray[np.int64]) -> list[tuple[str, int, float]]:
    """(range of pixels, images, share of the fullest bar), ranges growing by a factor."""
    if not len(sides):
        return []
    low, high = int(sides.min()), int(sides.max())
    edges = np.unique(np.rint(np.geomspace(low, high + 1, _BARS + 1)).astype(np.int64))
    edges[-1] = high + 1
    counts, _ = np.histogram(sides, edges)
    most = int(counts.max())
    return [
        (_range(int(first), int(last) - 1), int(count), count / most)
        for first, last, count in zip(edges, edges[1:], counts, strict=False)
    ]


def _range(first: int, last: int) -> str:
    return number(first) if last <= first else f"{number(first)} to {number(last)}"


def _rows(seen: Seen) -> list[dict[str, Any]]:
    """Classes with their counts; the share of the largest class draws a bar."""
    totals = {name: sum(row.values()) for name, row in seen.counts.items()}
    most = max(totals.values(), default=0) or 1
    return [
        {
            "name": name,
            "cells": [row.get(split, 0) for split in seen.splits],
            "total": totals[name],
            "share": totals[name] / most,
        }
        for name, row in list(seen.counts.items())[:CLASSES]
    ]


def shown(strip: Strip) -> dict[str, Any]:
    """What a template needs of a strip."""
    return {
        "name": strip.name,
        "aside": strip.aside,
        "images": [
            {"word": word, "uri": uri(pixels), "coarse": max(pixels.shape[:2]) <= SMALL}
            for word, pixels in strip.images
        ],
    }
