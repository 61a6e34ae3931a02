"""WebDataset: tar shards with `key.jpg` and `key.cls`, `key.json` or `key.txt`."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from unfreeze.data.images.signatures import has_image_suffix, is_junk
from unfreeze.data.sources.byte_ranges import ByteRangeSource, splits_of_file_names
from unfreeze.data.sources.tables import LABEL_SEPARATOR
from unfreeze.data.sources.tar import TarSource
from unfreeze.errors import DataError
from unfreeze.text import without_surrogates

CLASS = ".cls"
_SUFFIXES = (CLASS, ".json", ".txt")
_LABEL_KEYS = ("label", "cls", "class", "category", "target")  # in a .json
_SHARD_LIMIT = 1_000_000
_TEXT_LIMIT = 2**20  # bytes of an annotation


class WebDatasetSource(ByteRangeSource):
    """The images of tar shards by offset, in the order of the shards and their members.

    Labels are read from `.cls`, else from `label`, `cls`, `class`, `category` or `target` in
    `.json`, else from `.txt` if at most half of the texts are distinct (otherwise these are
    captions). The name of a shard can contain its split (`train-000.tar`, `val/000.tar`).
    """

    kind = "shards"

    def __init__(self, where: str, shards: Sequence[tuple[str, Path]]) -> None:
        self.where = where
        names, slices, annotations = list[str](), list[tuple[int, int, int]](), list[_Annotation]()
        splits = (
            splits_of_file_names([name for name, _ in shards], where) if len(shards) > 1 else [""]
        )
        counts, notes = list[int](), list[str]()
        for number, (name, path) in enumerate(shards):
            tar = TarSource(path)
            prefix = f"{name.removesuffix('.tar')}/" if len(shards) > 1 else ""
            images = list(_images(tar))
            names += [prefix + tar.names[row] for row, _ in images]
            slices += [(number, *tar.stretch(row)) for row, _ in images]
            annotations += [annotation for _, annotation in images]
            counts.append(len(images))
            self.skipped += len(tar) - len(images) + tar.skipped
            notes += [f"{name}: {note}" for note in tar.notes]
        labels, label_notes = _labels(annotations)
        self.labels = labels
        if any(splits):
            self.splits = [s for s, count in zip(splits, counts, strict=True) for _ in range(count)]
        self.notes = (*notes, *label_notes)
        self._hold([path for _, path in shards], names, slices)


class _Annotation(NamedTuple):
    """The texts of the annotation files of an image; None if missing."""

    cls: str | None
    json: str | None
    txt: str | None


def _images(tar: TarSource) -> Iterator[tuple[int, _Annotation]]:
    """Yields (row, annotation) of each image."""
    by_key: dict[str, dict[str, int]] = {}
    for row, name in enumerate(tar.names):
        key, suffix = _key(name)
        if suffix.lower() in _SUFFIXES:
            by_key.setdefault(key, {})[suffix.lower()] = row
    for row, name in enumerate(tar.names):
        if has_image_suffix(name) and not is_junk(name):
            rows = by_key.get(_key(name)[0], {})
            yield row, _Annotation(*(_text(tar, rows.get(suffix)) for suffix in _SUFFIXES))


def _key(name: str) -> tuple[str, str]:
    """(sample key, suffix): split at the first dot of the file name, as in WebDataset."""
    folder, slash, last = name.rpartition("/")
    stem, dot, rest = last.partition(".")
    return folder + slash + stem, dot + rest


def _text(tar: TarSource, row: int | None) -> str | None:
    if row is None:
        return None
    return tar.head(row, _TEXT_LIMIT).decode("utf-8", "replace").strip()


def _labels(annotations: Sequence[_Annotation]) -> tuple[list[str] | None, list[str]]:
    """(labels of all images or None, notes)."""
    notes = list[str]()
    texts = [annotation.txt for annotation in annotations if annotation.txt]
    captions = len({*texts}) * 2 > len(texts)
    if (
        texts
        and captions
        and not any(annotation.cls or annotation.json for annotation in annotations)
    ):
        notes.append(
            f"The .txt files of {len(texts):,} images contain {len({*texts}):,} different texts: "
            "they are captions, not classes, and are ignored."
        )
    labels = [_label(annotation, captions) for annotation in annotations]
    return (labels if any(labels) else None), notes


def _label(annotation: _Annotation, captions: bool) -> str:
    if annotation.cls is not None:
        return annotation.cls
    if annotation.json is not None and (label := _json_label(annotation.json)):
        return label
    return "" if captions else annotation.txt or ""


def _json_label(text: str) -> str:
    try:
        data = json.loads(text)
    except ValueError:
        return ""  # invalid JSON: the image is unlabelled
    value = data
    if isinstance(data, dict):
        value = next((data[key] for key in _LABEL_KEYS if data.get(key) is not None), None)
    return without_surrogates(_plain(value))


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return LABEL_SEPARATOR.join(map(_plain, value))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() if isinstance(value, str | int | float) else ""


def is_webdataset_shard(tar: TarSource) -> bool:
    """Whether a single tar is a WebDataset shard: it has a `.cls` for an image."""
    keys = {_key(name)[0] for name in tar.names if name.lower().endswith(CLASS)}
    return any(has_image_suffix(name) and _key(name)[0] in keys for name in tar.names)


def expand_braces(pattern: str) -> list[str]:
    """Brace expansion of `x-{00..11}.tar` and `{a,b}.tar`; [pattern] without braces."""
    prefix, opening, rest = pattern.partition("{")
    inside, closing, suffix = rest.partition("}")
    if not opening or not closing:
        return [pattern]
    return [prefix + choice + tail for choice in _choices(inside) for tail in expand_braces(suffix)]


def _choices(inside: str) -> list[str]:
    first, dots, last = inside.partition("..")
    if not dots:
        return inside.split(",")
    if not (first.isdigit() and last.isdigit()):
        raise DataError(f"{{{inside}}} is not a range of numbers.", "Write it as in {000..127}.")
    if int(last) - int(first) > _SHARD_LIMIT:
        raise DataError(
            f"{{{inside}}} has more than {_SHARD_LIMIT:,} shards.", "Give fewer shards."
        )
    return [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
