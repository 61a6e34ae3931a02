"""From what the user typed to a source."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from unfreeze.data.signatures import HEAD, known, named_as_image
from unfreeze.data.sources.builtin import cifar10, digits
from unfreeze.data.sources.csv import CsvSource
from unfreeze.data.sources.delimited import SUFFIXES
from unfreeze.data.sources.filelist import FileListSource
from unfreeze.data.sources.folder import FolderSource
from unfreeze.data.sources.parquet import ParquetSource, open_parquet
from unfreeze.data.sources.remote import fetched, is_address, local, name_of, spoken
from unfreeze.data.sources.saved import SavedSource, is_saved
from unfreeze.data.sources.several import SeveralSource, refuse_overlap
from unfreeze.data.sources.shards import ShardsSource, expanded, labelled_shard
from unfreeze.data.sources.source import Source
from unfreeze.data.sources.tar import PackedTarSource, TarSource
from unfreeze.data.sources.zip import ZipSource
from unfreeze.errors import DataError
from unfreeze.runtime.console import Console, Quiet

_FETCHED = (".zip", ".tar", ".tar.gz", ".tgz", ".parquet")
BUILT_IN = ("digits", "cifar10")
PREFIX = "builtin:"  # before the name of a built-in dataset, where a file or folder has it, too


def _open_tar(path: Path) -> Source:
    tar = TarSource(path)
    return ShardsSource(str(path), [(path.name, path)]) if labelled_shard(tar) else tar


_KINDS: dict[str, Callable[[Path], Source]] = {
    ".zip": ZipSource,
    ".tar": _open_tar,
    ".tar.gz": PackedTarSource,
    ".tgz": PackedTarSource,
    **dict.fromkeys(SUFFIXES, CsvSource),
    ".parquet": open_parquet,
}


def open_source(
    data: str | Sequence[str],
    *,
    data_root: str | None = None,
    fetch: bool = True,
    console: Console | None = None,
) -> Source:
    """The source that `data` names, or several as one; DataError where one cannot be read.

    `digits` and `cifar10` are built in; where a file or folder here has that name it is taken, and
    said, and `builtin:digits` is the built-in one. `data_root` is where built-in sets are kept,
    `data` if not given; without `fetch` nothing is downloaded, and `console` is told what is.
    """
    if not isinstance(data, str):
        refuse_overlap(data)
        parts = [
            open_source(place, data_root=data_root, fetch=fetch, console=console) for place in data
        ]
        return parts[0] if len(parts) == 1 else SeveralSource(parts)
    name = built_in(data)
    if name is not None:
        return digits() if name == "digits" else cifar10(data_root or "data", fetch=fetch)
    data = local(data)
    try:
        if is_address(data):
            source = _open_address(data, fetch, console or Quiet())
        else:
            source = _open_path(Path(data))
    except OSError as error:
        raise DataError(
            f"{data} cannot be read: {error.strerror or error}.", "Check its permissions."
        ) from error
    if not source.names:
        raise DataError(f"{data} holds no files.", _instead(data))
    if data in BUILT_IN:
        source.notes += (f"{data} is the folder or file of that name here. {_instead(data)}",)
    return source


def built_in(data: str) -> str | None:
    """The built-in dataset that `data` names: `builtin:digits`, or `digits` where no file is so."""
    name = data.removeprefix(PREFIX)
    if data.startswith(PREFIX) and name not in BUILT_IN:
        raise DataError(
            f"There is no built-in dataset {name!r}.", f"Built in are {' and '.join(BUILT_IN)}."
        )
    taken = name == data and os.path.lexists(data)
    return name if name in BUILT_IN and not taken else None


def _instead(data: str) -> str:
    """How to get the built-in dataset of the same name."""
    if data in BUILT_IN:
        return f"The built-in dataset is {PREFIX}{data}."
    return "Give a folder or an archive with images."


def is_collection(name: str) -> bool:
    """Whether a file of this name holds or lists images, and is none itself."""
    return name.lower().endswith(tuple(_KINDS))


def _open_path(path: Path) -> Source:
    if not path.exists():
        return _open_pattern(str(path))
    if path.is_dir():
        return SavedSource(path) if is_saved(path) else _open_folder(path)
    for suffix, kind in _KINDS.items():
        if path.name.lower().endswith(suffix):
            if not path.is_file():  # opening a pipe would wait for ever
                raise DataError(f"{path} is a pipe or a device.", "Save it as a file first.")
            return kind(path)
    raise DataError(
        f"{path} is neither a folder nor a {', '.join(_KINDS)} file.",
        _instead(str(path)),
    )


def _open_folder(path: Path) -> Source:
    """A folder of files; of shards or Parquet files, where it holds these and no images."""
    source, ends = FolderSource(path), (".tar", ".parquet")
    together = "\n".join((*source.names, "")).lower()  # all at once: there may be a million
    if not any(f"{end}\n" in together for end in ends):
        return source
    large = {end: [name for name in source.names if _ends(name, end)] for end in ends}
    if not any(large.values()) or any(_is_image(source, row) for row in range(len(source))):
        return source
    if large[".tar"]:
        return ShardsSource(str(path), [(name, path / name) for name in large[".tar"]])
    return ParquetSource(str(path), path, [path / name for name in large[".parquet"]])


def _ends(name: str, ending: str) -> bool:
    return name.lower().endswith(ending) and not name.rpartition("/")[2].startswith(".")


def _is_image(source: Source, row: int) -> bool:
    return named_as_image(source.names[row]) or known(source.head(row, HEAD)) is not None


def _open_pattern(pattern: str) -> Source:
    """Shards that a pattern with braces names."""
    names = expanded(pattern)
    missing = next((name for name in names if not Path(name).is_file()), None)
    if missing is not None:
        of = "" if missing == pattern else f", which {pattern} names"
        raise DataError(
            f"There is no folder or file {missing!r}{of}.",
            f"Check the path; built-in names are {' and '.join(BUILT_IN)}.",
        )
    return _shards(pattern, {name: Path(name) for name in names})


def _shards(pattern: str, places: dict[str, Path]) -> Source:
    if not all(_ends(path.name, ".tar") for path in places.values()):
        raise DataError(f"{pattern} names more than .tar shards.", "Give them one by one.")
    return ShardsSource(pattern, [*places.items()])


def _open_address(address: str, fetch: bool, console: Console) -> Source:
    """An archive, a Parquet file or shards that lie elsewhere, from the copy on this disk."""
    names = expanded(address)
    if not all(map(_holds_images, names)):
        raise DataError(
            f"{spoken(address)} is no archive; from addresses {', '.join(_FETCHED)} are fetched.",
            "Pack the images, or copy them here and name the copy.",
        )
    places = {name: fetched(name, fetch=fetch, console=console) for name in names}
    if len(places) > 1:
        source = _shards(address, places)
    else:
        source = _open_path(places[address])
        if isinstance(source, FileListSource):
            raise DataError(
                f"{spoken(address)} lists files that lie beside it, which are not fetched.",
                "Pack the images, or write them into the Parquet file.",
            )
    source.where = spoken(address)
    return source


def _holds_images(address: str) -> bool:
    return name_of(address).lower().endswith(_FETCHED)
