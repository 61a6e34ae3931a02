"""Lists in which an image has several labels: known when they are met, and said."""

from collections import Counter
from collections.abc import Sequence

from unfreeze.errors import DataError
from unfreeze.runtime.console import worded

SEPARATORS = ";|"


def separator(labels: Sequence[str | None]) -> str | None:
    """The sign between the labels of one image; None where each has one at most.

    A sign in a name is no separator as long as what it separates occurs nowhere else: `a;b` alone
    is a name, `a;b` beside `a` or `b;c` is two labels.
    """
    distinct = {label for label in labels if label}
    for sign in SEPARATORS:
        if not any(sign in label for label in distinct):
            continue
        parts = {label: {part.strip() for part in label.split(sign)} - {""} for label in distinct}
        counts = Counter(part for some in parts.values() for part in some)
        if any(
            sign in label and any(counts[part] > 1 for part in some)
            for label, some in parts.items()
        ):
            return sign
    return None


def unlabelled_note(labels: Sequence[str | None], sign: str) -> str:
    """What to say where labels are only looked at."""
    count, label = _several(labels, sign)
    said = worded(count, "image has", "images have")
    return f"{said} several labels ({label!r}): labels are ignored here."


def refusal(names: Sequence[str], labels: Sequence[str | None], sign: str) -> DataError:
    """What to say where each image needs one label."""
    count, label = _several(labels, sign)
    first = names[list(labels).index(label)]
    return DataError(
        f"{count:,} of {len(names):,} images have several labels (first: {first}, "
        f"{label!r}); only single-label classification is supported.",
        "Keep one label per image, or train one model per label (yes, no); to use combinations "
        f"as classes, join them with another character than {sign!r}.",
    )


def _several(labels: Sequence[str | None], sign: str) -> tuple[int, str]:
    """(how many images have several, the first such label)."""
    found = [label for label in labels if label and sign in label]
    return len(found), found[0]
