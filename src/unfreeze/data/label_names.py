"""Names of classes: one Unicode form for all, and which of them a person would take for one."""

import unicodedata
from collections.abc import Iterable, Sequence


def composed(labels: Sequence[str | None]) -> list[str | None]:
    """Labels in one Unicode form (NFC): macOS writes an accent as a character of its own."""
    table = {
        label: label if label is None else unicodedata.normalize("NFC", label)
        for label in set(labels)
    }
    return [table[label] for label in labels]


def alike(name: str, names: Iterable[str]) -> str | None:
    """The first of `names` that differs from `name` by case, spaces or Unicode form alone."""
    return next((one for one in names if one != name and _key(one) == _key(name)), None)


def same_but_for_case(names: Iterable[str]) -> list[tuple[str, ...]]:
    """The groups among these names that a person would take for one name."""
    groups: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        groups.setdefault(_key(name), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _key(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())
