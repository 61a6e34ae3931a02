"""What about a dataset is likely to be a mistake: a sentence each, or None. Decodes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unfreeze.data.index import Index
from unfreeze.data.label_names import same_but_for_case
from unfreeze.runtime.console import worded

LONG = 2.0  # longer side by shorter side, from which half of the image is outside of a square
_NAMED = 5  # groups of classes that a sentence names


def dataset_warnings(index: Index) -> list[tuple[str, str]]:
    """(code, message) of everything that the folders or the list of `index` make doubtful."""
    found = {
        "splits_look_like_classes": splits_look_like_classes(index),
        "labels_differ_by_case": labels_differ_by_case(index.classes),
    }
    return [(code, message) for code, message in found.items() if message is not None]


def splits_look_like_classes(index: Index) -> str | None:
    """Whether the folders that were taken for classes may be splits or parts of the dataset."""
    doubt = index.doubt
    return None if doubt is None else f"{doubt.sentence} {doubt.next_step}"


def labels_differ_by_case(classes: Sequence[str]) -> str | None:
    """Whether classes differ by case, spaces or the Unicode form of their characters alone."""
    groups = same_but_for_case(classes)
    if not groups:
        return None
    named = "; ".join(", ".join(map(repr, group)) for group in groups[:_NAMED])
    more = f" and {len(groups) - _NAMED:,} more" if len(groups) > _NAMED else ""
    return (
        f"Class names differ only by case or spaces: {named}{more}. They are separate classes: "
        "rename them if they are the same."
    )


@dataclass(frozen=True)
class Cropped:
    """How many of `images` are so long that a square in the middle shows less than half of them."""

    count: int
    images: int
    sentence: str

    @property
    def warning(self) -> str | None:
        """The sentence where it is worth a warning: from one image in a hundred on."""
        return self.sentence if self.count * 100 >= self.images else None


def cropped_away(
    heights: npt.ArrayLike, widths: npt.ArrayLike, *, of: int | None = None
) -> Cropped | None:
    """Images much wider or taller than a square, by their sizes in pixels; None without one.

    Sizes of 0 are unknown. `of`: how many images there are, where the sizes are of a sample.
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
    said = f"{count:,} of {worded(images, 'image', 'images')}"
    said += f" sampled (of {of:,})" if of is not None and of > images else ""
    said += " is" if count == 1 else " are"
    most = float((longer / shorter).max())
    return Cropped(
        count,
        images,
        f"{said} much {shapes} than a square (up to {most:.1f} to 1): the network sees only the "
        "centre crop, less than half of such an image. If the borders matter, split or pad these "
        "images.",
    )
