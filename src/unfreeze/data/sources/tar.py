"""Tar files and WebDataset shards (`key.jpg` with `key.cls`, `key.json` or `key.txt`).

Tar files are read in place; `.tar.gz` is decompressed once into an unnamed temporary file.
"""

import gzip
import json
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from unfreeze.data.images.errors import Undecodable
from unfreeze.data.images.signatures import has_image_suffix, is_junk
from unfreeze.data.index.labels import SEPARATORS
from unfreeze.data.index.split_names import splits_of_file_names
from unfreeze.data.sources.own_folders import output_folders, outputs_note
from unfreeze.data.sources.paths import (
    BACKSLASH_NOTE,
    normalize_name,
    refuse_path_traversal,
    skipped_note,
    with_slashes,
    without_duplicates,
)
from unfreeze.data.sources.source import (
    ByteRangeSource,
    PositionalFile,
    Source,
    check_member_size,
    hash_names,
)
from unfreeze.errors import DataError, ResourceError
from unfreeze.text import without_surrogates

_BLOCK = 512
_RATIO_LIMIT = 30  # images hardly compress; tars of many tiny files do, up to sixfold
_RATIO_FREE = 256 * 2**20
_CLASS = ".cls"
_SUFFIXES = (_CLASS, ".json", ".txt")
_LABEL_KEYS = ("label", "cls", "class", "category", "target")  # in a .json
_SHARD_LIMIT = 1_000_000
_TEXT_LIMIT = 2**20  # bytes of an annotation


class TarSource(Source):
    """Regular members of a tar by offset; links and devices are skipped and counted.

    DataError for names that point outside the archive, truncated archives and corrupt headers. Of
    members with the same name the last is used, as after `tar --append`.
    """

    kind = "tar"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._load(PositionalFile(path), path)

    def _load(self, file: PositionalFile, path: Path) -> None:
        self.where, self._file = str(path), file
        names: list[str] = []
        columns: list[tuple[int, int, int]] = []
        special: list[str] = []
        windows = False
        with open(os.dup(file.descriptor), "rb") as stream:  # noqa: PTH123
            for member in _headers(stream, self.where):
                if not member.isreg() or member.issparse():
                    special += [] if member.isdir() else [member.name]
                    continue
                windows = windows or "\\" in member.name
                names.append(without_surrogates(normalize_name(with_slashes(member.name))))
                columns.append((member.size, member.offset_data, int(member.mtime)))
        positions, replaced_note = without_duplicates(names)
        self.notes = (
            *skipped_note(special),
            *replaced_note,
            *([BACKSLASH_NOTE] if windows else ()),
        )
        self.skipped = len(special) + len(names) - len(positions)
        table = np.array([columns[position] for position in positions], np.int64).reshape(-1, 3)
        self.names = [names[position] for position in positions]
        self.sizes: npt.NDArray[np.int64] = np.ascontiguousarray(table[:, 0])
        self._offsets = np.ascontiguousarray(table[:, 1])
        self._times = np.ascontiguousarray(table[:, 2])
        self.outputs = output_folders(self)
        self.notes += outputs_note(self.outputs)

    def read(self, row: int) -> bytes:
        """The bytes of the member; Undecodable if the archive is truncated."""
        size = int(self.sizes[row])
        check_member_size(size, size)
        data = self._file.read(int(self._offsets[row]), size)
        if len(data) < size:
            raise Undecodable("truncated", "the archive is truncated inside this member")
        return data

    def head(self, row: int, count: int) -> bytes:
        """The first bytes."""
        return self._file.read(int(self._offsets[row]), min(count, int(self.sizes[row])))

    def stretches(self, rows: list[int]) -> npt.NDArray[np.int64]:
        """(offset, size) of members in the uncompressed tar, [rows, 2]."""
        return np.stack([self._offsets[rows], self.sizes[rows]], axis=1)

    def fingerprint(self) -> str:
        """Names, sizes, offsets and modification times (a tar has no checksums of content)."""
        modified = np.array([self._path.stat().st_mtime_ns], np.int64)
        return hash_names(self.names, self.sizes, self._offsets, self._times, modified)


class TarGzSource(TarSource):
    """A `.tar.gz`, decompressed into an unnamed tar in the temporary folder.

    The decompressed size is limited. Other processes use the same file on Linux; elsewhere they
    decompress again.
    """

    kind = "tar.gz"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._load(_decompress(path), path)

    def __reduce__(self) -> Any:
        if self._file.alias is None:
            return TarGzSource, (self._path,), {"intensity": self.intensity}
        return _from_state, (self.__dict__,)


class WebDatasetSource(ByteRangeSource):
    """The images of tar shards by offset, in the order of the shards and their members.

    Labels are read from `.cls`, else from `label`, `cls`, `class`, `category` or `target` in
    `.json`, else from `.txt` if at most half of the texts are distinct (otherwise these are
    captions). The name of a shard can contain its split (`train-000.tar`, `val/000.tar`).
    """

    kind = "shards"

    def __init__(self, where: str, shards: Sequence[tuple[str, Path]]) -> None:
        self.where, several = where, len(shards) > 1
        splits = splits_of_file_names([name for name, _ in shards], where) if several else [""]
        names, annotations = list[str](), list[_Annotation]()
        ranges, notes = list[npt.NDArray[np.int64]](), list[str]()
        for name, path in shards:
            tar = TarSource(path)
            prefix = f"{name.removesuffix('.tar')}/" if several else ""
            images = list(_images(tar))
            names += [prefix + tar.names[row] for row, _ in images]
            ranges.append(tar.stretches([row for row, _ in images]))
            annotations += [annotation for _, annotation in images]
            self.skipped += len(tar) - len(images) + tar.skipped
            notes += [f"{name}: {note}" for note in tar.notes]
        self._hold(names, [path for _, path in shards], ranges)
        self.labels, label_notes = _labels(annotations)
        if any(splits):
            self.splits = [splits[number] for number in self._file_numbers.tolist()]
        self.notes = (*notes, *label_notes)


def is_webdataset_shard(tar: TarSource) -> bool:
    """Whether a single tar is a WebDataset shard: it has a `.cls` for an image."""
    keys = {_key(name)[0] for name in tar.names if name.lower().endswith(_CLASS)}
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


def _headers(stream: IO[bytes], where: str) -> Iterator[tarfile.TarInfo]:
    """Yields the headers of all members, checked; clears TarFile's list to save memory.

    The end-of-archive marker can be missing, as other tools omit it.
    """
    size = stream.seek(0, os.SEEK_END)
    try:
        stream.seek(0)
        with tarfile.open(fileobj=stream, mode="r:", encoding="utf-8") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]
                refuse_path_traversal(member.name, where)
                if member.isreg() and member.offset_data + member.size > size:
                    raise _corrupt(where, f"it ends inside the member {member.name!r}")
                yield member
            end = archive.offset
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise _corrupt(where, str(error)) from error
    # TarFile stops without an error at a header that it cannot read
    stream.seek(end)
    if stream.read(_BLOCK).strip(b"\x00"):
        raise _corrupt(where, f"no valid header at byte {end:,}")


def _from_state(state: dict[str, Any]) -> TarGzSource:
    """The source in another process, which uses the file decompressed by the first one."""
    source = TarGzSource.__new__(TarGzSource)
    source.__dict__.update(state)
    return source


def _decompress(path: Path) -> PositionalFile:
    """The decompressed tar, in an unnamed file that is deleted when it is closed."""
    limit = max(_RATIO_FREE, _RATIO_LIMIT * path.stat().st_size)
    try:
        with tempfile.TemporaryFile() as temporary, gzip.open(path) as compressed:
            while block := compressed.read(2**20):
                temporary.write(block)
                if temporary.tell() > limit:
                    raise _bomb(path, limit)
            temporary.flush()
            return PositionalFile.of_descriptor(os.dup(temporary.fileno()))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _corrupt(str(path), str(error)) from error
    except OSError as error:  # also when the file is closed
        raise ResourceError(
            f"{path} cannot be decompressed to {tempfile.gettempdir()}: {error}.",
            "Free disk space there, or set TMPDIR to a folder on a larger disk.",
        ) from error


def _bomb(path: Path, limit: int) -> DataError:
    return DataError(
        f"{path} decompresses to more than {limit:,} bytes, too much for an archive of images.",
        "If you trust it, extract it and give the folder.",
    )


def _corrupt(where: str, detail: str) -> DataError:
    return DataError(
        f"{where} is not a tar file, or is truncated or corrupt: {detail}.",
        "Download the archive again.",
    )


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
        return SEPARATORS[0].join(map(_plain, value))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() if isinstance(value, str | int | float) else ""
