"""Folder layout of a dataset: flat, class folders, or splits with class folders."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from unfreeze.data.index.split_names import (
    NONE,
    SPLIT_NAMES,
    TEST,
    TRAIN,
    VAL,
    SplitName,
    is_generic,
    is_unlabelled_name,
    split_name,
    splits_of_names,
)

__all__ = [
    "NONE",
    "SPLIT_NAMES",
    "TEST",
    "TRAIN",
    "VAL",
    "FolderLayout",
    "FolderRole",
    "LayoutDoubt",
    "read_layout",
]

LayoutKind = Literal["flat", "classes", "splits"]
_SHARED = 0.8  # least share of subfolder names that all classes have in common
_NAMED = 4  # most folders named in one sentence
# names of numbered parts of a dataset, unlikely for classes
_PART = re.compile(
    r"(?i)(batch|chunk|fold|part|partition|section|session|set|shard|site|split|subset|vol|volume)"
    r"[\W_]*(\d+|[a-z])"
)


class FolderRole(NamedTuple):
    """Split and label of the images in a folder; `label` is None without a class folder."""

    split: int
    label: str | None


class LayoutDoubt(NamedTuple):
    """Why class folders may not be classes.

    `certain`: they cannot be used as labels, because they are not classes or it is ambiguous.
    """

    sentence: str
    next_step: str
    certain: bool


class FolderLayout(NamedTuple):
    """The kind, and split and label of each folder with images (None: outside the layout).

    `notes`: messages about split names that were interpreted.
    """

    kind: LayoutKind
    places: dict[str, FolderRole | None]
    doubt: LayoutDoubt | None = None
    notes: tuple[str, ...] = ()


@dataclass
class _Level:
    """A folder: its images directly and in total, and its subfolders by name."""

    direct: int = 0
    total: int = 0
    children: dict[str, "_Level"] = field(default_factory=dict)

    @property
    def flat(self) -> bool:
        """Whether at least half of the images are directly in it."""
        return 2 * self.direct >= self.total


def read_layout(folders: Mapping[str, int]) -> FolderLayout:
    """The layout of `folders`: number of images directly in each folder (the root is `""`).

    Descends from the root through single subfolders. A level with at least half of its images
    directly in it is flat (the root) or one class. Subfolders are splits if all are named like
    splits, or two are, `train` among them; a name that only contains such a word (`seg_train`)
    counts if the classes inside agree. Other subfolders are classes, at any depth; if each contains
    only folders like `train` and `test`, those are the splits. Images outside of these folders are
    outside the layout.
    """
    root = level = _tree(folders)
    prefix = ""
    while True:
        if level.flat:
            if level is root:
                return FolderLayout("flat", {folder: FolderRole(NONE, None) for folder in folders})
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
    """The subfolders that are splits; empty if they are not."""
    splits = splits_of_names(level.children)
    pure = {name: split for name, split in splits.items() if split.pure}
    if len(pure) == len(level.children):
        return pure
    # next to `plane` and `car`, `train` is a class: it contains no class folders
    train = any(
        split.split == TRAIN and level.children[name].children for name, split in pure.items()
    )
    if (
        train
        and len(splits) == 1
        and all(map(is_unlabelled_name, level.children.keys() - splits.keys()))
    ):
        return pure
    if len(pure) > 1 and train:
        if all(_shares_classes(level, splits, name) for name in splits.keys() - pure.keys()):
            return splits
        return pure
    return splits if _are_compound_splits(level, splits) else {}


def _are_compound_splits(level: _Level, named: Mapping[str, SplitName]) -> bool:
    """Whether names like `seg_train` and `seg_test` are splits: same remainder, same classes.

    If all images are directly in such folders, every subfolder must have such a name.
    """
    splits = {entry.split for entry in named.values()}
    if TRAIN not in splits or len(splits) < 2 or len({entry.rest for entry in named.values()}) > 1:
        return False
    train = [name for name, entry in named.items() if entry.split == TRAIN]
    inside = {name: _labels_of(level.children[name], named[name], name) for name in named}
    if not any(inside[name] for name in train):
        return len(named) == len(level.children) and not any(inside.values())
    return all(_shares_classes(level, named, name) for name in named)


def _shares_classes(level: _Level, named: Mapping[str, SplitName], name: str) -> bool:
    """Whether at least half of the classes of this split are classes of train."""
    labels = _labels_of(level.children[name], named[name], name)
    train_labels = {
        label
        for other, split in named.items()
        if split.split == TRAIN
        for label in _labels_of(level.children[other], split, other)
    }
    return 2 * len(labels & train_labels) >= len(labels)


def _labels_of(level: _Level, split: SplitName, name: str) -> set[str]:
    base = _classes_in(level, split, name)
    return set() if base is None else set(_descend(level, base).children)


def _classes_in(level: _Level, split: SplitName, name: str) -> str | None:
    """The path inside a split to its class folders; None if it has only images.

    Skips a single subfolder with the name of the split, of its parent, or a generic name:
    `seg_train/seg_train/a`.
    """
    path = ""
    while not level.flat:
        if len(level.children) > 1:
            return path
        child, child_level = next(iter(level.children.items()))
        child_split = split_name(child)
        same = child_split is not None and child_split.word == split.word
        if not (same or child == name or is_generic(child)):
            return path
        path, level, name = f"{path}{child}/", child_level, child
    return None


def _descend(level: _Level, path: str) -> _Level:
    for name in path.split("/")[:-1]:
        level = level.children[name]
    return level


def _with_splits(
    folders: Mapping[str, int], prefix: str, level: _Level, splits: Mapping[str, SplitName]
) -> FolderLayout:
    class_paths = {
        name: _classes_in(level.children[name], entry, name) for name, entry in splits.items()
    }
    class_paths = _skip_wrappers(level, class_paths)
    places: dict[str, FolderRole | None] = dict.fromkeys(folders)
    roots = {f"{prefix}{name}": (entry.split, class_paths[name]) for name, entry in splits.items()}
    depth = prefix.count("/") + 1
    for folder in folders:
        root = "/".join(folder.split("/", depth)[:depth])
        if root not in roots:
            continue
        split, inside = roots[root]
        start = f"{root}/{inside or ''}"
        if inside is None:
            places[folder] = FolderRole(split, None)
        elif folder.startswith(start):
            places[folder] = FolderRole(split, _first(folder, start))
    doubts = [
        _doubt_same_subfolders(_descend(level.children[name], start), f"{prefix}{name}/{start}")
        for name, start in class_paths.items()
        if start is not None and splits[name].split == TRAIN
    ]
    doubt = next((item for item in doubts if item is not None), None)
    return FolderLayout("splits", places, doubt, _split_notes(level, splits))


def _skip_wrappers(level: _Level, class_paths: dict[str, str | None]) -> dict[str, str | None]:
    """Skips the single subfolder of each split if it contains folders: a wrapper, not a class."""
    while True:
        single = {
            name: next(iter(class_level.children.items()))
            for name, class_path in class_paths.items()
            if class_path is not None
            and len((class_level := _descend(level.children[name], class_path)).children) == 1
        }
        names = [name for name, class_path in class_paths.items() if class_path is not None]
        if (
            not names
            or len(single) < len(names)
            or any(child_level.flat for _, child_level in single.values())
        ):
            return class_paths
        class_paths = class_paths | {
            name: f"{class_paths[name]}{single[name][0]}/" for name in names
        }


def _split_notes(level: _Level, splits: Mapping[str, SplitName]) -> tuple[str, ...]:
    """The note on how split names other than `train`, `val` and `test` were interpreted."""
    if all(split.pure for split in splits.values()):
        return ()
    described = ", ".join(f"{name} is {SPLIT_NAMES[split.split]}" for name, split in splits.items())
    ignored = [name for name in level.children if name not in splits]
    suffix = f"; ignored: {_enumerate(ignored)}" if ignored else ""
    return (f"Splits by folder name: {described}{suffix}.",)


def _with_classes(folders: Mapping[str, int], prefix: str, level: _Level) -> FolderLayout:
    splits = _splits_inside(level)
    if not splits:
        doubt = _doubt_named_like_splits(level, prefix) or _doubt_same_subfolders(level, prefix)
        return _classes(folders, prefix)._replace(doubt=doubt)
    if any(
        child.children
        for label_level in level.children.values()
        for child in label_level.children.values()
    ):
        # several datasets, or several parts of one: ambiguous
        doubt = LayoutDoubt(
            f"The folders {_enumerate(level.children)} each contain splits with class "
            "folders: these look like several datasets.",
            f"Give one of them as DATA (such as {prefix}{next(iter(level.children))}), or several.",
            True,
        )
        return _classes(folders, prefix)._replace(doubt=doubt)
    return _splits_in_classes(folders, prefix, splits)


def _classes(folders: Mapping[str, int], prefix: str) -> FolderLayout:
    def folder_place(folder: str) -> FolderRole | None:
        inside = folder.startswith(prefix) and folder + "/" != prefix and folder
        return FolderRole(NONE, _first(folder, prefix)) if inside else None

    return FolderLayout("classes", {folder: folder_place(folder) for folder in folders})


def _first(folder: str, prefix: str) -> str:
    return folder[len(prefix) :].partition("/")[0]


def _doubt_named_like_splits(level: _Level, prefix: str) -> LayoutDoubt | None:
    """The doubt if classes are named like splits."""
    named = splits_of_names(level.children)
    train = [name for name, split in named.items() if split.split == TRAIN and split.pure]
    if any(len(level.children[name].children) > 1 for name in train) and len(named) == 1:
        return LayoutDoubt(
            f"The class {train[0]} is named like a split and contains folders.",
            f"If those folders are the classes, use {prefix}{train[0]} as DATA.",
            False,
        )
    if len({split.split for split in named.values()}) < 2:
        return None
    if len(named) == len(level.children):
        return LayoutDoubt(
            f"The folders {_enumerate(named)} are named like splits, but their contents do not "
            "tell which is which.",
            "Rename them to train, val and test, each with one folder per class. If they are "
            f"classes: --labels '^{re.escape(prefix)}([^/]+)/'.",
            True,
        )
    if not any(split.split == TRAIN for split in named.values()):
        return None
    return LayoutDoubt(
        f"The classes {_enumerate(named)} are named like splits.",
        "If they are splits, put one folder per class into each, and move the other folders away.",
        False,
    )


def _doubt_same_subfolders(level: _Level, prefix: str) -> LayoutDoubt | None:
    """The doubt if all classes contain the same folders, which may be the classes instead.

    Numbered outer folders (`fold_1`) cannot be classes then; numbered inner folders are ignored.
    """
    if len(level.children) < 2 or any(child.flat for child in level.children.values()):
        return None
    names = [set(child.children) for child in level.children.values()]
    shared, all_names = set.intersection(*names), set.union(*names)
    if len(shared) < max(2, _SHARED * len(all_names)) or all(map(_is_part, shared)):
        return None
    pattern = re.escape(prefix)
    return LayoutDoubt(
        f"The folders {_enumerate(level.children)} all contain the same folders "
        f"({_enumerate(sorted(shared))}): the outer or the inner ones may be the classes.",
        f"Choose with --labels: '^{pattern}([^/]+)/' selects the outer folders, "
        f"'^{pattern}[^/]+/([^/]+)/' the inner ones.",
        all(map(_is_part, level.children)),
    )


def _is_part(name: str) -> bool:
    return _PART.fullmatch(name) is not None


def _enumerate(names: Iterable[str]) -> str:
    listed = [*names]
    more = f" and {len(listed) - _NAMED:,} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + more


def _splits_inside(level: _Level) -> dict[str, SplitName]:
    """Splits inside the class folders: `cat/train`, `cat/test`, `dog/train`, `dog/test`."""
    names = {name for child in level.children.values() for name in child.children}
    splits = splits_of_names(names)
    if len(splits) < len(names) or any(child.direct for child in level.children.values()):
        return {}
    all_have_train = all(
        any(splits[name].split == TRAIN for name in child.children)
        for child in level.children.values()
    )
    return splits if all_have_train and len({split.split for split in splits.values()}) > 1 else {}


def _splits_in_classes(
    folders: Mapping[str, int], prefix: str, splits: Mapping[str, SplitName]
) -> FolderLayout:
    places: dict[str, FolderRole | None] = dict.fromkeys(folders)
    for folder in folders:
        if folder.startswith(prefix):
            label, _, rest = folder[len(prefix) :].partition("/")
            split = splits.get(rest.partition("/")[0])
            places[folder] = None if split is None else FolderRole(split.split, label)
    names = _enumerate(sorted(splits))
    return FolderLayout("splits", places, None, (f"Splits are inside the class folders: {names}.",))
