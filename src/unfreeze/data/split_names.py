"""Words for splits: `train`, `Validation`, `hold-out`, and names built on them: `seg_test`."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

NONE, TRAIN, VAL, TEST = range(4)
SPLIT_NAMES = ("", "train", "val", "test")
EVAL = frozenset(("eval", "evaluation"))  # test where something else is val, as speech sets mean it
_WORDS = {
    TRAIN: "train training trainset trainval",
    VAL: "val valid validation valset dev devset development eval evaluation",
    TEST: "test testing testset holdout",
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words.split()}
# say nothing about what is inside
_GENERIC = {
    *("data", "dataset", "file", "files", "folder", "image", "images", "img", "imgs", "jpg"),
    *("jpeg", "photo", "photos", "pic", "pics", "picture", "pictures", "png", "sample"),
    *("samples", "set", "sets", "split"),
}
# what datasets call images that have no label
_UNLABELLED = {
    *("extra", "pred", "predict", "prediction", "sample", "samples", "submission", "unlabeled"),
    *("unlabelled", "unsup", "unsupervised"),
}
_PARTS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_]+")


class SplitName(NamedTuple):
    """A name with a word for a split in it.

    `pure`: the word is all there is, but for case, `-` and `_`. `rest`: the other words, without
    those that say nothing (`seg` of `seg_train_images`).
    """

    split: int
    word: str
    pure: bool
    rest: tuple[str, ...]


def split_name(name: str) -> SplitName | None:
    """What `name` says about a split; None without a word for one, or with two different ones."""
    whole = re.sub(r"[\s_.-]", "", name).lower()
    if whole in _SPLIT_OF:
        return SplitName(_SPLIT_OF[whole], whole, True, ())
    parts = [part.lower() for part in _PARTS.findall(name)]
    words = [part for part in parts if part in _SPLIT_OF]
    if len({_SPLIT_OF[word] for word in words}) != 1:
        return None
    rest = tuple(part for part in parts if part not in _SPLIT_OF and part not in _GENERIC)
    return SplitName(_SPLIT_OF[words[0]], words[0], False, rest)


def is_generic(name: str) -> bool:
    """Whether a folder's name says nothing about what is inside: `images`, `data_set`."""
    parts = [part.lower() for part in _PARTS.findall(name)]
    return bool(parts) and all(part in _GENERIC for part in parts)


def says_no_class(name: str) -> bool:
    """Whether a folder beside `train` is named like images without labels: `unlabeled`."""
    return any(part.lower() in _UNLABELLED for part in _PARTS.findall(name))


def together(names: Iterable[str]) -> dict[str, SplitName]:
    """The names that say a split, with what they say in each other's company.

    `eval` is val, but test where another name is val: train, dev and eval are three splits.
    """
    found = {name: said for name in names if (said := split_name(name)) is not None}
    if any(said.split == VAL and said.word not in EVAL for said in found.values()):
        for name, said in found.items():
            if said.word in EVAL:
                found[name] = said._replace(split=TEST)
    return found


def splits_of_words(words: Iterable[str]) -> Mapping[str, int]:
    """The number of the split that each word of a list's column says; "" is NONE.

    Words that say none are not in it.
    """
    distinct = {*words}
    found = {name: said.split for name, said in together(distinct).items()}
    return found | ({"": NONE} if "" in distinct else {})
