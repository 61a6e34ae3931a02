"""Warnings about likely mistakes in a dataset, from names and sizes alone (no decoding)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unfreeze.data.index.index import Index
from unfreeze.data.index.labels import names_differing_by_case
from unfreeze.runtime.console import pluralised

LONG = 2.0  # aspect ratio at which half of the image is outside of the centre crop
_NAMED = 5  # most groups of classes named in one sentence


def dataset_warnings(index: Index) -> list[tuple[str, str]]:
    """(code, message) of each warning about the folders or label file of `index`."""
    warnings = {
        "splits_look_like_classes": splits_look_like_classes(index),
        "labels_differ_by_case": labels_differ_by_case(index.classes),
    }
    return [(code, message) for code, message in warnings.items() if message is not None]


def splits_look_like_classes(index: Index) -> str | None:
    """The warning if class folders may be splits or parts of the dataset, else None."""
    doubt = index.doubt
    return None if doubt is None else f"{doubt.sentence} {doubt.next_step}"


def labels_differ_by_case(classes: Sequence[str]) -> str | None:
    """The warning if class names differ only by case, spaces or Unicode form, else None."""
    groups = names_differing_by_case(classes)
    if not groups:
        return None
    named = "; ".join(", ".join(map(repr, group)) for group in groups[:_NAMED])
    more = f" and {len(groups) - _NAMED:,} more" if len(groups) > _NAMED else ""
    return (
        f"Class names differ only by case or spaces: {named}{more}. They are separate classes: "
        "rename them if they are the same."
    )


@dataclass(frozen=True)
class CroppedImages:
    """How many of `images` lose more than half of their area in a centre crop."""

    count: int
    images: int
    sentence: str

    @property
    def warning(self) -> str | None:
        """The sentence if at least 1% of the images are affected, else None."""
        return self.sentence if self.count * 100 >= self.images else None


def cropped_away(
    heights: npt.ArrayLike, widths: npt.ArrayLike, *, of: int | None = None
) -> CroppedImages | None:
    """Counts images much wider or taller than a square, by size in pixels; None if there are none.

    Sizes of 0 are unknown. `of`: number of images in the dataset if the sizes are of a sample.
    """
    sides = np.stack([np.asarray(heights, np.int64), np.asarray(widths, np.int64)])
    sides = sides[:, (sides > 0).all(axis=0)]
    shorter, longer = sides.min(axis=0), sides.max(axis=0)
    long = longer >= LONG * shorter
    count, images = int(long.sum()), sides.shape[1]
    if not count:
        return None
    wide = int((sides[1] >= LONG * sides[0]).sum())
    shapes = "wider" if wide == count else "taller" if not wide else "wider or taller"
    subject = f"{count:,} of {pluralised(images, 'image', 'images')}"
    subject += f" sampled (of {of:,})" if of is not None and of > images else ""
    subject += " is" if count == 1 else " are"
    ratio = float((longer / shorter).max())
    return CroppedImages(
        count,
        images,
        f"{subject} much {shapes} than a square (up to {ratio:.1f} to 1): the network sees "
        "only the centre crop, less than half of such an image. If the borders matter, train with "
        "finetune --fit squash or pad.",
    )
