"""Class names: Unicode normalisation, and names that differ only by case or spaces."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from unfreeze.errors import DataError
from unfreeze.runtime.console import pluralised


def normalize_labels(labels: Sequence[str | None]) -> list[str | None]:
    """Labels in Unicode form NFC (macOS stores accents as separate characters)."""
    table = {
        label: label if label is None else unicodedata.normalize("NFC", label)
        for label in set(labels)
    }
    return [table[label] for label in labels]


def similar_name(name: str, names: Iterable[str]) -> str | None:
    """The first of `names` that differs from `name` only by case, spaces or Unicode form."""
    return next(
        (other for other in names if other != name and _normalized(other) == _normalized(name)),
        None,
    )


def names_differing_by_case(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of names that differ only by case, spaces or Unicode form."""
    groups: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        groups.setdefault(_normalized(name), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _normalized(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


SEPARATORS = ";|"


def label_separator(labels: Sequence[str | None]) -> str | None:
    """The separator between the labels of one image; None if images have at most one label.

    A character only separates labels if a part also occurs elsewhere: `a;b` alone is one label,
    `a;b` together with `a` or `b;c` is two.
    """
    distinct = {label for label in labels if label}
    for character in SEPARATORS:
        if not any(character in label for label in distinct):
            continue
        parts = {
            label: {part.strip() for part in label.split(character)} - {""} for label in distinct
        }
        counts = Counter(part for label_parts in parts.values() for part in label_parts)
        if any(
            character in label and any(counts[part] > 1 for part in label_parts)
            for label, label_parts in parts.items()
        ):
            return character
    return None


def multilabel_note(labels: Sequence[str | None], sign: str) -> str:
    """The note for commands that ignore multi-label annotations."""
    count, label = _multi_labelled(labels, sign)
    subject = pluralised(count, "image has", "images have")
    return f"{subject} several labels ({label!r}): labels are ignored here."


def multilabel_error(names: Sequence[str], labels: Sequence[str | None], sign: str) -> DataError:
    """The error for commands that need one label per image."""
    count, label = _multi_labelled(labels, sign)
    first = names[list(labels).index(label)]
    return DataError(
        f"{count:,} of {len(names):,} images have several labels (first: {first}, "
        f"{label!r}); classification learns one label for an image.",
        "Use finetune --task multilabel, or keep one label per image; to use combinations as "
        f"classes, join them with another character than {sign!r}.",
    )


def _multi_labelled(labels: Sequence[str | None], sign: str) -> tuple[int, str]:
    """(number of images with several labels, the first such label)."""
    multi_labels = [label for label in labels if label and sign in label]
    return len(multi_labels), multi_labels[0]
