"""Checks before the first step that all names of classes and files survive writing and reading.

Otherwise a name that a format cannot store would fail only when results are written.
"""

import json
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from unfreeze.checkpoints.model_file import ModelCard, read_card, write_card
from unfreeze.data.index.index import Index
from unfreeze.data.index.splits import read_split_csv
from unfreeze.data.sources.source import hash_names
from unfreeze.data.validate.precheck import ImageProblem
from unfreeze.errors import DataError
from unfreeze.runtime.atomic import write_json
from unfreeze.runtime.distributed import Distributed
from unfreeze.runtime.run_folder import RESULT, RunFolder
from unfreeze.runtime.text_layout import read_csv
from unfreeze.text import as_text, clean_all, has_surrogates


def check_names_read_back(
    run: RunFolder,
    settings: dict[str, Any],
    rows: Iterable[tuple[str, str, str]],
    problems: Sequence[ImageProblem],
    card: ModelCard | None = None,
) -> None:
    """DataError if a name does not read back as written; leaves no file behind.

    `settings`, `rows`: the content of config.toml and split.csv. The files written after training
    (model.json of `card`, result.json) are tested in a temporary folder.
    """
    config = tomllib.loads(run.file("config.toml").read_text(encoding="utf-8"))
    for key, value in settings.items():
        for text in _as_list(value):
            if isinstance(text, str) and as_text(text) not in _as_list(config.get(key)):
                _refuse("config.toml", text, config.get(key))
    _compare("split.csv", rows, read_split_csv(run.file("split.csv")))
    paths = [problem.path for problem in problems]
    _compare("problems.csv", paths, [row[0] for row in read_csv(run.file("problems.csv"))[1:]])
    classes = [] if card is None else list(card.classes)
    result = {"run": str(run.path), "classes": classes}
    with tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=run.path) as folder:
        write_json(Path(folder, RESULT), result)
        loaded = json.loads(Path(folder, RESULT).read_text(encoding="utf-8"))
        _compare(RESULT, [clean_all(result)], [loaded])
        if card is not None:
            write_card(folder, card)
            _compare("model.json", clean_all(classes), read_card(folder).classes)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _compare(file: str, written: Iterable[Any], loaded: Iterable[Any]) -> None:
    for expected, actual in zip_longest(written, loaded):
        if expected != actual and _plain(expected) != actual:
            _refuse(file, expected, actual)


def _refuse(file: str, written: Any, loaded: Any) -> NoReturn:
    raise DataError(
        f"{file} cannot store {_plain(written)!r}: it reads back as {loaded!r}.",
        "Rename that file, folder or class.",
    )


def _plain(value: Any) -> Any:
    """Names as they are written in files."""
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return as_text(value) if isinstance(value, str) and has_surrogates(value) else value


class ImageSetDigest(NamedTuple):
    """Images of a process: their number, and a digest of names and labels in order."""

    images: int
    names: str


def check_same_images(processes: Distributed, *indexes: Index) -> None:
    """DataError if a process has other images than rank 0, which would end in a deadlock.

    Happens with local disks, and with a folder that is still being copied. Collective.
    """
    if processes.world == 1:
        return
    count = sum(map(len, indexes))
    names = "".join(hash_names(index.paths, index.labels) for index in indexes)
    everyone = processes.gather_objects(ImageSetDigest(count, names))
    processes.on_rank_zero(lambda: _compare_digests(everyone))


def _compare_digests(everyone: list[ImageSetDigest]) -> None:
    first = everyone[0]
    for rank, images in enumerate(everyone):
        if images != first:
            how = (
                f"{images.images:,}"
                if images.images != first.images
                else f"other {images.images:,}"
            )
            raise DataError(
                f"Rank {rank} has {how} usable images, rank 0 has {first.images:,}.",
                "All processes need the same files: copy them completely to every machine.",
            )
