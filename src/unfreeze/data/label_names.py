"""Class names: Unicode normalisation, and names that differ only by case or spaces."""

import unicodedata
from collections.abc import Iterable, Sequence


def composed(labels: Sequence[str | None]) -> list[str | None]:
    """Labels in Unicode form NFC (macOS stores accents as separate characters)."""
    table = {
        label: label if label is None else unicodedata.normalize("NFC", label)
        for label in set(labels)
    }
    return [table[label] for label in labels]


def alike(name: str, names: Iterable[str]) -> str | None:
    """The first of `names` that differs from `name` only by case, spaces or Unicode form."""
    return next(
        (other for other in names if other != name and _normalized(other) == _normalized(name)),
        None,
    )


def same_but_for_case(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of names that differ only by case, spaces or Unicode form."""
    groups: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        groups.setdefault(_normalized(name), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _normalized(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())
