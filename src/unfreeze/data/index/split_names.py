"""Split names: `train`, `Validation`, `hold-out`, and names that contain them: `seg_test`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from unfreeze.errors import DataError

NONE, TRAIN, VAL, TEST = range(4)
SPLIT_NAMES = ("", "train", "val", "test")
EVAL = frozenset(("eval", "evaluation"))  # test if another split is val, as in speech datasets
_WORDS = {
    TRAIN: "train training trainset trainval",
    VAL: "val valid validation valset dev devset development eval evaluation",
    TEST: "test testing testset holdout",
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words.split()}
# words without a meaning for the content
_GENERIC = {
    *("data", "dataset", "file", "files", "folder", "image", "images", "img", "imgs", "jpg"),
    *("jpeg", "photo", "photos", "pic", "pics", "picture", "pictures", "png", "sample"),
    *("samples", "set", "sets", "split"),
}
# names of unlabelled parts of datasets
_UNLABELLED = {
    *("extra", "pred", "predict", "prediction", "sample", "samples", "submission", "unlabeled"),
    *("unlabelled", "unsup", "unsupervised"),
}
_PARTS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_]+")


class SplitName(NamedTuple):
    """A name that contains a word for a split.

    `pure`: it consists of that word, apart from case, `-` and `_`. `rest`: the other words, without
    generic ones (`seg` of `seg_train_images`).
    """

    split: int
    word: str
    pure: bool
    rest: tuple[str, ...]


def split_name(name: str) -> SplitName | None:
    """The split in `name`; None if it contains no split, or several different ones."""
    compact = re.sub(r"[\s_.-]", "", name).lower()
    if compact in _SPLIT_OF:
        return SplitName(_SPLIT_OF[compact], compact, True, ())
    parts = [part.lower() for part in _PARTS.findall(name)]
    words = [part for part in parts if part in _SPLIT_OF]
    if len({_SPLIT_OF[word] for word in words}) != 1:
        return None
    rest = tuple(part for part in parts if part not in _SPLIT_OF and part not in _GENERIC)
    return SplitName(_SPLIT_OF[words[0]], words[0], False, rest)


def is_generic(name: str) -> bool:
    """Whether a folder name is generic, such as `images` or `data_set`."""
    parts = [part.lower() for part in _PARTS.findall(name)]
    return bool(parts) and all(part in _GENERIC for part in parts)


def is_unlabelled_name(name: str) -> bool:
    """Whether a folder next to `train` is named like unlabelled images: `unlabeled`."""
    return any(part.lower() in _UNLABELLED for part in _PARTS.findall(name))


def splits_of_names(names: Iterable[str]) -> dict[str, SplitName]:
    """The split of each name that has one, interpreted together.

    `eval` is val, or test if another name is val: train, dev and eval are three splits.
    """
    splits = {name: split for name in names if (split := split_name(name)) is not None}
    if any(split.split == VAL and split.word not in EVAL for split in splits.values()):
        for name, split in splits.items():
            if split.word in EVAL:
                splits[name] = split._replace(split=TEST)
    return splits


def splits_of_words(words: Iterable[str]) -> Mapping[str, int]:
    """The split number of each distinct value of a split column; "" is NONE.

    Unknown values are left out.
    """
    distinct = {*words}
    numbers = {name: split.split for name, split in splits_of_names(distinct).items()}
    return numbers | ({"": NONE} if "" in distinct else {})


def splits_of_file_names(names: Sequence[str], where: str) -> list[str]:
    """The split in the name of each file (`train-00000.tar`, `val/0.tar`); "" if there is none.

    It is the first word of the file name, else a folder. DataError if only some names have one.
    """
    splits = [_split_of_file(name) for name in names]
    if any(splits) and not all(splits):
        missing = names[splits.index("")]
        raise DataError(
            f"{where}: some file names contain a split, but {missing} does not.",
            "Start the name of every file, or of its folder, with train, val or test, or of none.",
        )
    return splits


def _split_of_file(name: str) -> str:
    *folders, last = name.split("/")
    words = [re.split(r"[^A-Za-z]", last)[0], *reversed(folders)]
    splits = [split_name(word) for word in words]
    return next((split.word for split in splits if split is not None and split.pure), "")
