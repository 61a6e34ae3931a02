"""One self-contained HTML page with the results of `audit`: labels that look wrong, as images."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unfreeze.reports.examples import SMALL
from unfreeze.reports.page import image_data_uri, render_template

PAIRS = 12  # rows of the table of labels and suggested classes


@dataclass(frozen=True)
class AuditedImage:
    """An image of the page; `suggested`: "" if its label is not suspect; `pixels`: thumbnail."""

    path: str
    label: str
    suggested: str
    probability: float
    pixels: npt.NDArray[np.uint8] | None


@dataclass(frozen=True)
class AuditPage:
    """Contents of the page; `labels`: name of the file in which labels are corrected.

    `conflicts`: groups of copies with different labels; `suspects`: the others, in order. `pairs`:
    (label, suggested) of all of these. `more_conflicts`, `more_suspects`: how many are not shown.
    """

    name: str
    lead: str
    figures: Sequence[tuple[str, str]]
    warnings: Sequence[str]
    method: str
    labels: str
    conflicts: Sequence[Sequence[AuditedImage]]
    suspects: Sequence[AuditedImage]
    pairs: Sequence[tuple[str, str]]
    more_conflicts: int
    more_suspects: int


def audit_page(content: AuditPage) -> str:
    """The HTML of the page, without references to other files."""
    counts = Counter(content.pairs)
    return render_template(
        "audit.html",
        {
            "content": content,
            "conflicts": [[_shown(one) for one in group] for group in content.conflicts],
            "suspects": [_shown(one) for one in content.suspects],
            "pairs": [(*pair, count) for pair, count in counts.most_common(PAIRS) if count > 1],
        },
    )


def _shown(image: AuditedImage) -> dict[str, Any]:
    """Template data of an image."""
    pixels = image.pixels
    return {
        "path": image.path,
        "file": image.path.rpartition("/")[2],
        "label": image.label,
        "suggested": image.suggested,
        "probability": image.probability,
        "uri": None if pixels is None else image_data_uri(pixels),
        "coarse": pixels is not None and max(pixels.shape[:2]) <= SMALL,
    }
