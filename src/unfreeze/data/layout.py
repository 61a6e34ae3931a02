"""What the folders mean: flat, classes, or splits and then classes."""

from collections import Counter
from collections.abc import Mapping
from typing import Literal, NamedTuple

NONE, TRAIN, VAL, TEST = range(4)
SPLIT_OF = {"train": TRAIN, "val": VAL, "valid": VAL, "validation": VAL, "test": TEST}
SPLIT_NAMES = ("", "train", "val", "test")

Kind = Literal["flat", "classes", "splits"]


class Place(NamedTuple):
    """What a folder says about the pictures in it; `label` is None where it names no class."""

    split: int
    label: str | None


class Layout(NamedTuple):
    """The kind, and for each folder that holds pictures its place (None: they lie outside)."""

    kind: Kind
    places: dict[str, Place | None]


def read_layout(folders: Mapping[str, int]) -> Layout:
    """The layout of `folders`: how many pictures lie directly in each (the root is `""`).

    At each level: where at least half of all pictures below lie directly, this level is flat (the
    root) or one class (a folder that was looked through). Folders that are all named like splits,
    or of which two are with `train` among them, are splits. A folder that is alone is looked
    through. Anything else are classes, at any depth below. Pictures beside the folders that
    decide lie outside the layout.
    """
    prefix = ""
    while True:
        direct, children = _level(folders, prefix)
        if 2 * direct >= direct + sum(children.values()):
            if not prefix:
                return Layout("flat", {folder: Place(NONE, None) for folder in folders})
            prefix = prefix[:-1].rpartition("/")[0]
            return _classes(folders, prefix + "/" if prefix else "")
        if _are_splits(folders, prefix, children):
            return _splits(folders, prefix)
        if len(children) > 1:
            return _classes(folders, prefix)
        prefix += next(iter(children)) + "/"


def _level(folders: Mapping[str, int], prefix: str) -> tuple[int, Counter[str]]:
    """Pictures directly at `prefix`, and below each of its folders."""
    direct, children = 0, Counter[str]()
    for folder, count in folders.items():
        if folder + "/" == prefix or (not prefix and not folder):
            direct += count
        elif folder.startswith(prefix):
            children[_first(folder, prefix)] += count
    return direct, children


def _first(folder: str, prefix: str) -> str:
    return folder[len(prefix) :].partition("/")[0]


def _are_splits(folders: Mapping[str, int], prefix: str, children: Counter[str]) -> bool:
    named = [name for name in children if name.lower() in SPLIT_OF]
    if len(named) == len(children):
        return True
    train = next((name for name in named if SPLIT_OF[name.lower()] == TRAIN), None)
    # `train` may be a class beside `plane` and `car`: then it has no classes inside
    return train is not None and len(named) > 1 and bool(_level(folders, f"{prefix}{train}/")[1])


def _classes(folders: Mapping[str, int], prefix: str) -> Layout:
    def place(folder: str) -> Place | None:
        inside = folder.startswith(prefix) and folder + "/" != prefix and folder
        return Place(NONE, _first(folder, prefix)) if inside else None

    return Layout("classes", {folder: place(folder) for folder in folders})


def _splits(folders: Mapping[str, int], prefix: str) -> Layout:
    places: dict[str, Place | None] = dict.fromkeys(folders)
    for name in _level(folders, prefix)[1]:
        split = SPLIT_OF.get(name.lower())
        if split is None:
            continue
        start = f"{prefix}{name}/"
        direct, children = _level(folders, start)
        unlabelled = 2 * direct >= direct + sum(children.values())
        for folder in folders:
            if unlabelled and (folder + "/").startswith(start):
                places[folder] = Place(split, None)
            elif folder.startswith(start):
                places[folder] = Place(split, _first(folder, start))
    return Layout("splits", places)
