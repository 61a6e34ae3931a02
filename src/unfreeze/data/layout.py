"""What the folders mean: flat, classes, or splits and then classes."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from unfreeze.data.split_names import (
    NONE,
    SPLIT_NAMES,
    TEST,
    TRAIN,
    VAL,
    SplitName,
    is_generic,
    says_no_class,
    split_name,
    together,
)

__all__ = ["NONE", "SPLIT_NAMES", "TEST", "TRAIN", "VAL", "Doubt", "Layout", "Place", "read_layout"]

Kind = Literal["flat", "classes", "splits"]
_ALIKE = 0.8  # of the subfolders of all classes: shared by each of them
_NAMED = 4  # folders that a sentence names
# what numbered parts of a dataset are called; a class hardly is
_PART = re.compile(
    r"(?i)(batch|chunk|fold|part|partition|section|session|set|shard|site|split|subset|vol|volume)"
    r"[\W_]*(\d+|[a-z])"
)


class Place(NamedTuple):
    """What a folder says about the images in it; `label` is None where it names no class."""

    split: int
    label: str | None


class Doubt(NamedTuple):
    """Why the folders that were taken for classes may be none.

    `certain`: they cannot be, or nobody can tell, so that labels from them are refused.
    """

    sentence: str
    next_step: str
    certain: bool


class Layout(NamedTuple):
    """The kind, and for each folder that holds images its place (None: they lie outside).

    `notes`: sentences about names that needed reading.
    """

    kind: Kind
    places: dict[str, Place | None]
    doubt: Doubt | None = None
    notes: tuple[str, ...] = ()


@dataclass
class _Level:
    """A folder: images directly in it, images below it in all, and its folders by name."""

    direct: int = 0
    total: int = 0
    children: dict[str, "_Level"] = field(default_factory=dict)

    @property
    def flat(self) -> bool:
        """Whether at least half of the images lie directly in it."""
        return 2 * self.direct >= self.total


def read_layout(folders: Mapping[str, int]) -> Layout:
    """The layout of `folders`: how many images lie directly in each (the root is `""`).

    At each level: where at least half of all images below lie directly, this level is flat (the
    root) or one class (a folder that was looked through). Folders that are all named like splits,
    or of which two are with `train` among them, are splits; a name that is only built on such a
    word (`seg_train`) counts where the classes inside agree. A folder that is alone is looked
    through. Anything else are classes, at any depth below; where each of them holds nothing but
    `train`, `test` and the like, these are the splits. Images beside the folders that decide lie
    outside the layout.
    """
    root = level = _tree(folders)
    prefix = ""
    while True:
        if level.flat:
            if level is root:
                return Layout("flat", {folder: Place(NONE, None) for folder in folders})
            prefix = prefix[:-1].rpartition("/")[0]
            return _classes(folders, prefix + "/" if prefix else "")
        splits = _splits_at(level)
        if splits:
            return _with_splits(folders, prefix, level, splits)
        if len(level.children) > 1:
            return _with_classes(folders, prefix, level)
        name, level = next(iter(level.children.items()))
        prefix += name + "/"


def _tree(folders: Mapping[str, int]) -> _Level:
    root = _Level()
    for folder, count in folders.items():
        level = root
        level.total += count
        for name in folder.split("/") if folder else ():
            level = level.children.setdefault(name, _Level())
            level.total += count
        level.direct += count
    return root


def _splits_at(level: _Level) -> dict[str, SplitName]:
    """The folders of a level that are splits; none where the level is something else."""
    named = together(level.children)
    pure = {name: said for name, said in named.items() if said.pure}
    if len(pure) == len(level.children):
        return pure
    # `train` may be a class beside `plane` and `car`: then it has no classes inside
    train = any(
        said.split == TRAIN and level.children[name].children for name, said in pure.items()
    )
    if train and len(named) == 1 and all(map(says_no_class, level.children.keys() - named.keys())):
        return pure
    if len(pure) > 1 and train:
        if all(_agree(level, named, name) for name in named.keys() - pure.keys()):
            return named
        return pure
    return named if _built_on_words(level, named) else {}


def _built_on_words(level: _Level, named: Mapping[str, SplitName]) -> bool:
    """Whether names like `seg_train` and `seg_test` are splits: one rest, and classes that agree.

    Where all images lie directly in such folders, every folder must be named like that.
    """
    splits = {said.split for said in named.values()}
    if TRAIN not in splits or len(splits) < 2 or len({said.rest for said in named.values()}) > 1:
        return False
    train = [name for name, said in named.items() if said.split == TRAIN]
    inside = {name: _labels_of(level.children[name], named[name], name) for name in named}
    if not any(inside[name] for name in train):
        return len(named) == len(level.children) and not any(inside.values())
    return all(_agree(level, named, name) for name in named)


def _agree(level: _Level, named: Mapping[str, SplitName], name: str) -> bool:
    """Whether the classes of this split are those of train, or it has none."""
    inside = _labels_of(level.children[name], named[name], name)
    known = {
        label
        for other, said in named.items()
        if said.split == TRAIN
        for label in _labels_of(level.children[other], said, other)
    }
    return 2 * len(inside & known) >= len(inside)


def _labels_of(level: _Level, said: SplitName, name: str) -> set[str]:
    base = _classes_in(level, said, name)
    return set() if base is None else set(_at(level, base).children)


def _classes_in(level: _Level, said: SplitName, name: str) -> str | None:
    """The path inside a split to the level of its classes; None where it holds images alone.

    A folder that is alone and named like the split, like the folder around it, or `images`, is
    looked through: `seg_train/seg_train/a`.
    """
    path = ""
    while not level.flat:
        if len(level.children) > 1:
            return path
        inner, below = next(iter(level.children.items()))
        again = split_name(inner)
        same = again is not None and again.word == said.word
        if not (same or inner == name or is_generic(inner)):
            return path
        path, level, name = f"{path}{inner}/", below, inner
    return None


def _at(level: _Level, path: str) -> _Level:
    for name in path.split("/")[:-1]:
        level = level.children[name]
    return level


def _with_splits(
    folders: Mapping[str, int], prefix: str, level: _Level, splits: Mapping[str, SplitName]
) -> Layout:
    starts = {name: _classes_in(level.children[name], said, name) for name, said in splits.items()}
    starts = _through_wrappers(level, starts)
    places: dict[str, Place | None] = dict.fromkeys(folders)
    roots = {f"{prefix}{name}": (said.split, starts[name]) for name, said in splits.items()}
    depth = prefix.count("/") + 1
    for folder in folders:
        root = "/".join(folder.split("/", depth)[:depth])
        if root not in roots:
            continue
        split, inside = roots[root]
        start = f"{root}/{inside or ''}"
        if inside is None:
            places[folder] = Place(split, None)
        elif folder.startswith(start):
            places[folder] = Place(split, _first(folder, start))
    doubts = [
        _same_inside(_at(level.children[name], start), f"{prefix}{name}/{start}")
        for name, start in starts.items()
        if start is not None and splits[name].split == TRAIN
    ]
    doubt = next((one for one in doubts if one is not None), None)
    return Layout("splits", places, doubt, _unusual(level, splits))


def _through_wrappers(level: _Level, starts: dict[str, str | None]) -> dict[str, str | None]:
    """Where each split holds one folder of folders, that is a wrapper and no single class."""
    while True:
        alone = {
            name: next(iter(at.children.items()))
            for name, start in starts.items()
            if start is not None and len((at := _at(level.children[name], start)).children) == 1
        }
        inside = [name for name, start in starts.items() if start is not None]
        if not inside or len(alone) < len(inside) or any(below.flat for _, below in alone.values()):
            return starts
        starts = starts | {name: f"{starts[name]}{alone[name][0]}/" for name in inside}


def _unusual(level: _Level, splits: Mapping[str, SplitName]) -> tuple[str, ...]:
    """What was made of names that are not simply `train`, `val` or `test`."""
    if all(said.pure for said in splits.values()):
        return ()
    told = ", ".join(f"{name} is {SPLIT_NAMES[said.split]}" for name, said in splits.items())
    left = [name for name in level.children if name not in splits]
    return (f"Splits by folder name: {told}{f'; ignored: {_list(left)}' if left else ''}.",)


def _with_classes(folders: Mapping[str, int], prefix: str, level: _Level) -> Layout:
    inner = _splits_inside(level)
    if not inner:
        doubt = _named_like_splits(level, prefix) or _same_inside(level, prefix)
        return _classes(folders, prefix)._replace(doubt=doubt)
    if any(split.children for one in level.children.values() for split in one.children.values()):
        # each with splits and classes of its own: nobody can tell whether they belong together
        doubt = Doubt(
            f"The folders {_list(level.children)} each contain splits with class "
            "folders: these look like several datasets.",
            f"Give one of them as DATA (such as {prefix}{next(iter(level.children))}), or several.",
            True,
        )
        return _classes(folders, prefix)._replace(doubt=doubt)
    return _splits_in_classes(folders, prefix, inner)


def _classes(folders: Mapping[str, int], prefix: str) -> Layout:
    def place(folder: str) -> Place | None:
        inside = folder.startswith(prefix) and folder + "/" != prefix and folder
        return Place(NONE, _first(folder, prefix)) if inside else None

    return Layout("classes", {folder: place(folder) for folder in folders})


def _first(folder: str, prefix: str) -> str:
    return folder[len(prefix) :].partition("/")[0]


def _named_like_splits(level: _Level, prefix: str) -> Doubt | None:
    """What makes classes doubtful of which two or more are called like different splits."""
    named = together(level.children)
    train = [name for name, said in named.items() if said.split == TRAIN and said.pure]
    if any(len(level.children[name].children) > 1 for name in train) and len(named) == 1:
        return Doubt(
            f"The class {train[0]} is named like a split and contains folders.",
            f"If those folders are the classes, use {prefix}{train[0]} as DATA.",
            False,
        )
    if len({said.split for said in named.values()}) < 2:
        return None
    if len(named) == len(level.children):
        return Doubt(
            f"The folders {_list(named)} are named like splits, but their contents do not tell "
            "which is which.",
            "Rename them to train, val and test, each with one folder per class. If they are "
            f"classes: --labels '^{re.escape(prefix)}([^/]+)/'.",
            True,
        )
    if not any(said.split == TRAIN for said in named.values()):
        return None
    return Doubt(
        f"The classes {_list(named)} are named like splits.",
        "If they are splits, put one folder per class into each, and move the other folders away.",
        False,
    )


def _same_inside(level: _Level, prefix: str) -> Doubt | None:
    """What makes classes doubtful that all hold the same folders: these may be the classes.

    Parts that are numbered (`fold_1`) are no classes where the folders inside have names; folders
    inside that are such parts are none.
    """
    if len(level.children) < 2 or any(one.flat for one in level.children.values()):
        return None
    inside = [set(one.children) for one in level.children.values()]
    every, some = set.intersection(*inside), set.union(*inside)
    if len(every) < max(2, _ALIKE * len(some)) or all(map(_is_part, every)):
        return None
    at = re.escape(prefix)
    return Doubt(
        f"The folders {_list(level.children)} all contain the same folders "
        f"({_list(sorted(every))}): the outer or the inner ones may be the classes.",
        f"Choose with --labels: '^{at}([^/]+)/' selects the outer folders, "
        f"'^{at}[^/]+/([^/]+)/' the inner ones.",
        all(map(_is_part, level.children)),
    )


def _is_part(name: str) -> bool:
    return _PART.fullmatch(name) is not None


def _list(names: Iterable[str]) -> str:
    listed = [*names]
    more = f" and {len(listed) - _NAMED:,} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + more


def _splits_inside(level: _Level) -> dict[str, SplitName]:
    """The splits that lie inside the classes: `cat/train`, `cat/test`, `dog/train`, `dog/test`."""
    names = {name for one in level.children.values() for name in one.children}
    found = together(names)
    if len(found) < len(names) or any(one.direct for one in level.children.values()):
        return {}
    everywhere = all(
        any(found[name].split == TRAIN for name in one.children) for one in level.children.values()
    )
    return found if everywhere and len({said.split for said in found.values()}) > 1 else {}


def _splits_in_classes(
    folders: Mapping[str, int], prefix: str, inner: Mapping[str, SplitName]
) -> Layout:
    places: dict[str, Place | None] = dict.fromkeys(folders)
    for folder in folders:
        if folder.startswith(prefix):
            label, _, rest = folder[len(prefix) :].partition("/")
            said = inner.get(rest.partition("/")[0])
            places[folder] = None if said is None else Place(said.split, label)
    names = _list(sorted(inner))
    return Layout("splits", places, None, (f"Splits are inside the class folders: {names}.",))
