"""WebDataset: tar shards in which `key.jpg` stands beside `key.cls`, `key.json` or `key.txt`."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from unfreeze.data.signatures import is_junk, named_as_image
from unfreeze.data.sources.slices import SliceSource, splits_of
from unfreeze.data.sources.tables import SEVERAL
from unfreeze.data.sources.tar import TarSource
from unfreeze.errors import DataError
from unfreeze.text import clean

CLASS = ".cls"
_SAID = (CLASS, ".json", ".txt")
_KEYS = ("label", "cls", "class", "category", "target")  # of a .json
_SHARD_LIMIT = 1_000_000
_TEXT_LIMIT = 2**20  # bytes of what stands beside a image


class ShardsSource(SliceSource):
    """The images of tar shards by offset, in the order of the shards and their members.

    Labels are read from `.cls`, else from `label`, `cls`, `class`, `category` or `target` of
    `.json`, else from `.txt` where its texts are fewer than half as many as the images (others
    are captions). The name of a shard may say its split (`train-000.tar`, `val/000.tar`).
    """

    kind = "shards"

    def __init__(self, where: str, shards: Sequence[tuple[str, Path]]) -> None:
        self.where = where
        names, slices, said = list[str](), list[tuple[int, int, int]](), list[_Said]()
        splits = splits_of([name for name, _ in shards], where) if len(shards) > 1 else [""]
        counts, notes = list[int](), list[str]()
        for number, (name, path) in enumerate(shards):
            tar = TarSource(path)
            before = f"{name.removesuffix('.tar')}/" if len(shards) > 1 else ""
            found = list(_images(tar))
            names += [before + tar.names[row] for row, _ in found]
            slices += [(number, *tar.stretch(row)) for row, _ in found]
            said += [one for _, one in found]
            counts.append(len(found))
            self.skipped += len(tar) - len(found) + tar.skipped
            notes += [f"{name}: {note}" for note in tar.notes]
        labels, told = _labels(said)
        self.labels = labels
        if any(splits):
            self.splits = [s for s, count in zip(splits, counts, strict=True) for _ in range(count)]
        self.notes = (*notes, *told)
        self._hold([path for _, path in shards], names, slices)


class _Said(NamedTuple):
    """What stands beside a image: the text of each of _SAID, None where it is not there."""

    cls: str | None
    json: str | None
    txt: str | None


def _images(tar: TarSource) -> Iterator[tuple[int, _Said]]:
    """Rows that are images, with what stands beside them."""
    beside: dict[str, dict[str, int]] = {}
    for row, name in enumerate(tar.names):
        key, ending = _key(name)
        if ending.lower() in _SAID:
            beside.setdefault(key, {})[ending.lower()] = row
    for row, name in enumerate(tar.names):
        if named_as_image(name) and not is_junk(name):
            there = beside.get(_key(name)[0], {})
            yield row, _Said(*(_text(tar, there.get(ending)) for ending in _SAID))


def _key(name: str) -> tuple[str, str]:
    """(the sample's key, the rest): up to the first dot after the folders, as WebDataset does."""
    folder, slash, last = name.rpartition("/")
    stem, dot, rest = last.partition(".")
    return folder + slash + stem, dot + rest


def _text(tar: TarSource, row: int | None) -> str | None:
    if row is None:
        return None
    return tar.head(row, _TEXT_LIMIT).decode("utf-8", "replace").strip()


def _labels(said: Sequence[_Said]) -> tuple[list[str] | None, list[str]]:
    """(a label for each, None where there are none; sentences for people)."""
    notes = list[str]()
    texts = [one.txt for one in said if one.txt]
    captions = len({*texts}) * 2 > len(texts)
    if texts and captions and not any(one.cls or one.json for one in said):
        notes.append(
            f"The .txt of {len(texts):,} images say {len({*texts}):,} different things: "
            "captions, not classes; they are not used."
        )
    labels = [_label(one, captions) for one in said]
    return (labels if any(labels) else None), notes


def _label(one: _Said, captions: bool) -> str:
    if one.cls is not None:
        return one.cls
    if one.json is not None and (label := _of_json(one.json)):
        return label
    return "" if captions else one.txt or ""


def _of_json(text: str) -> str:
    try:
        found = json.loads(text)
    except ValueError:
        return ""  # what is no JSON says nothing; the image stays
    value = found
    if isinstance(found, dict):
        value = next((found[key] for key in _KEYS if found.get(key) is not None), None)
    return clean(_plain(value))


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return SEVERAL.join(map(_plain, value))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() if isinstance(value, str | int | float) else ""


def labelled_shard(tar: TarSource) -> bool:
    """Whether a tar by itself is a shard: a class stands beside a image."""
    keys = {_key(name)[0] for name in tar.names if name.lower().endswith(CLASS)}
    return any(named_as_image(name) and _key(name)[0] in keys for name in tar.names)


def expanded(pattern: str) -> list[str]:
    """`x-{00..11}.tar` and `{a,b}.tar` written out; the pattern itself where it has no braces."""
    start, brace, rest = pattern.partition("{")
    inside, end, after = rest.partition("}")
    if not brace or not end:
        return [pattern]
    return [start + one + tail for one in _choices(inside) for tail in expanded(after)]


def _choices(inside: str) -> list[str]:
    first, dots, last = inside.partition("..")
    if not dots:
        return inside.split(",")
    if not (first.isdigit() and last.isdigit()):
        raise DataError(f"{{{inside}}} is no range of numbers.", "Write it as in {000..127}.")
    if int(last) - int(first) > _SHARD_LIMIT:
        raise DataError(f"{{{inside}}} are more than {_SHARD_LIMIT:,} shards.", "Name fewer.")
    return [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
