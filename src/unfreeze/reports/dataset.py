"""One self-contained HTML page about a dataset: samples, counts, sizes, crops, problems."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unfreeze.reports.examples import SMALL
from unfreeze.reports.page import format_number, image_data_uri, render_template

CLASSES = 200  # rows of the table
PROBLEMS = 200  # rows of the list
_BARS = 12  # of the histogram

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ImageRow:
    """A row of images (a class's samples, or crops of one image), each with its caption."""

    name: str
    images: Sequence[tuple[str, Pixels]]
    aside: str = ""


@dataclass(frozen=True)
class DatasetPage:
    """Contents of the page.

    `figures`: (name, value) pairs at the top. `counts`: images by class and split. `shorter`: the
    shorter side in pixels, of the images whose size is known. `sized`: which images these are.
    `problems`: rows with path, reason, detail and left_out.
    """

    name: str
    lead: str
    figures: Sequence[tuple[str, str]]
    notes: Sequence[str]
    splits: Sequence[str]
    counts: Mapping[str, Mapping[str, int]]
    samples: Sequence[ImageRow]
    shorter: npt.NDArray[np.int64]
    sized: str
    views: Sequence[ImageRow]
    views_note: str
    problems: Sequence[Mapping[str, Any]]
    problems_note: str


def dataset_page(content: DatasetPage) -> str:
    """The HTML of the page, without references to other files."""
    return render_template(
        "dataset.html",
        {
            "content": content,
            "rows": _rows(content),
            "hidden": max(0, len(content.counts) - CLASSES),
            "samples": [shown(strip) for strip in content.samples],
            "views": [shown(strip) for strip in content.views],
            "bars": histogram(content.shorter),
            "kinds": Counter(str(row["reason"]) for row in content.problems).most_common(),
            "listed": content.problems[:PROBLEMS],
        },
    )


def histogram(sides: npt.NDArray[np.int64]) -> list[tuple[str, int, float]]:
    """(range in pixels, images, height relative to the largest bar), in geometric bins."""
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
    return (
        format_number(first)
        if last <= first
        else f"{format_number(first)} to {format_number(last)}"
    )


def _rows(content: DatasetPage) -> list[dict[str, Any]]:
    """Table rows: class, counts per split, total, and total relative to the largest class."""
    totals = {name: sum(row.values()) for name, row in content.counts.items()}
    most = max(totals.values(), default=0) or 1
    return [
        {
            "name": name,
            "cells": [row.get(split, 0) for split in content.splits],
            "total": totals[name],
            "share": totals[name] / most,
        }
        for name, row in list(content.counts.items())[:CLASSES]
    ]


def shown(strip: ImageRow) -> dict[str, Any]:
    """Template data of a strip."""
    return {
        "name": strip.name,
        "aside": strip.aside,
        "images": [
            {
                "caption": caption,
                "uri": image_data_uri(pixels),
                "coarse": max(pixels.shape[:2]) <= SMALL,
            }
            for caption, pixels in strip.images
        ],
    }
