"""Opens the source that a DATA argument names."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from unfreeze.data.images.signatures import HEAD, format_of_signature, has_image_suffix
from unfreeze.data.sources.arrow import ArrowDatasetSource, is_arrow_dataset
from unfreeze.data.sources.builtin import load_cifar10, load_digits_dataset
from unfreeze.data.sources.concat import ConcatSource, refuse_overlap
from unfreeze.data.sources.csv import CsvSource, FileTableSource
from unfreeze.data.sources.delimited import SUFFIXES
from unfreeze.data.sources.folder import FolderSource
from unfreeze.data.sources.parquet import ParquetSource, open_parquet
from unfreeze.data.sources.remote import (
    download,
    file_url_to_path,
    is_url,
    url_file_name,
    without_query,
)
from unfreeze.data.sources.source import Source
from unfreeze.data.sources.tar import (
    TarGzSource,
    TarSource,
    WebDatasetSource,
    expand_braces,
    is_webdataset_shard,
)
from unfreeze.data.sources.zip import ZipSource
from unfreeze.errors import DataError
from unfreeze.runtime.console import Console, QuietConsole

_REMOTE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".parquet")
BUILT_IN = ("digits", "cifar10")
BUILTIN_PREFIX = "builtin:"  # distinguishes a built-in dataset from a file of that name


def _open_tar(path: Path) -> Source:
    tar = TarSource(path)
    return WebDatasetSource(str(path), [(path.name, path)]) if is_webdataset_shard(tar) else tar


_FORMATS: dict[str, Callable[[Path], Source]] = {
    ".zip": ZipSource,
    ".tar": _open_tar,
    ".tar.gz": TarGzSource,
    ".tgz": TarGzSource,
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
    """The source named by `data`; several names give one source. DataError if it cannot be read.

    `digits` and `cifar10` are built in. A file or folder of that name takes precedence, with a
    note; `builtin:digits` always means the built-in dataset. `data_root`: folder of built-in
    datasets, `data` by default. `fetch=False` downloads nothing. `console` shows downloads.
    """
    if not isinstance(data, str):
        refuse_overlap(data)
        parts = [
            open_source(name, data_root=data_root, fetch=fetch, console=console) for name in data
        ]
        return parts[0] if len(parts) == 1 else ConcatSource(parts)
    name = builtin_name(data)
    if name is not None:
        return (
            load_digits_dataset()
            if name == "digits"
            else load_cifar10(data_root or "data", fetch=fetch)
        )
    data = file_url_to_path(data)
    try:
        if is_url(data):
            source = _open_address(data, fetch, console or QuietConsole())
        else:
            source = _open_path(Path(data))
    except OSError as error:
        raise DataError(
            f"{data} cannot be read: {error.strerror or error}.", "Check its permissions."
        ) from error
    if not source.names:
        raise DataError(f"{data} contains no files.", _suggestion(data))
    if data in BUILT_IN:
        source.notes += (
            f"{data} is a file or folder in the current directory. {_suggestion(data)}",
        )
    return source


def builtin_name(data: str) -> str | None:
    """The built-in dataset that `data` names, or None: `builtin:digits`, `digits`."""
    name = data.removeprefix(BUILTIN_PREFIX)
    if data.startswith(BUILTIN_PREFIX) and name not in BUILT_IN:
        raise DataError(
            f"There is no built-in dataset {name!r}.",
            f"The built-in datasets are {' and '.join(BUILT_IN)}.",
        )
    shadowed = name == data and os.path.lexists(data)
    return name if name in BUILT_IN and not shadowed else None


def _suggestion(data: str) -> str:
    """The next step: the built-in dataset of that name, or a folder or archive."""
    if data in BUILT_IN:
        return f"The built-in dataset is {BUILTIN_PREFIX}{data}."
    return "Give a folder or an archive with images."


def is_archive_or_table(name: str) -> bool:
    """Whether a file of this name is an archive or table of images."""
    return name.lower().endswith(tuple(_FORMATS))


def _open_path(path: Path) -> Source:
    if not path.exists():
        return _open_pattern(str(path))
    if path.is_dir():
        return ArrowDatasetSource(path) if is_arrow_dataset(path) else _open_folder(path)
    for suffix, opener in _FORMATS.items():
        if path.name.lower().endswith(suffix):
            if not path.is_file():  # opening a pipe would block
                raise DataError(f"{path} is a pipe or device.", "Save it as a file first.")
            return opener(path)
    raise DataError(
        f"{path} is neither a folder nor a {', '.join(_FORMATS)} file.",
        _suggestion(str(path)),
    )


def _open_folder(path: Path) -> Source:
    """A folder of images, or of shards or Parquet files if it contains these and no images."""
    source, suffixes = FolderSource(path), (".tar", ".parquet")
    joined = "\n".join((*source.names, "")).lower()  # faster than one test per name
    if not any(f"{suffix}\n" in joined for suffix in suffixes):
        return source
    files = {
        suffix: [name for name in source.names if _has_suffix(name, suffix)] for suffix in suffixes
    }
    if not any(files.values()) or any(_is_image(source, row) for row in range(len(source))):
        return source
    if files[".tar"]:
        return WebDatasetSource(str(path), [(name, path / name) for name in files[".tar"]])
    return ParquetSource(str(path), path, [path / name for name in files[".parquet"]])


def _has_suffix(name: str, suffix: str) -> bool:
    return name.lower().endswith(suffix) and not name.rpartition("/")[2].startswith(".")


def _is_image(source: Source, row: int) -> bool:
    return (
        has_image_suffix(source.names[row])
        or format_of_signature(source.head(row, HEAD)) is not None
    )


def _open_pattern(pattern: str) -> Source:
    """The shards named by a brace pattern such as `train-{000..127}.tar`."""
    names = expand_braces(pattern)
    missing = next((name for name in names if not Path(name).is_file()), None)
    if missing is not None:
        named_by = "" if missing == pattern else f" (from {pattern})"
        raise DataError(
            f"There is no folder or file {missing!r}{named_by}.",
            f"Check the path; the built-in datasets are {' and '.join(BUILT_IN)}.",
        )
    return _shards(pattern, {name: Path(name) for name in names})


def _shards(pattern: str, paths: dict[str, Path]) -> Source:
    if not all(_has_suffix(path.name, ".tar") for path in paths.values()):
        raise DataError(
            f"{pattern} matches files other than .tar shards.", "Give the other files one by one."
        )
    return WebDatasetSource(pattern, [*paths.items()])


def _open_address(address: str, fetch: bool, console: Console) -> Source:
    """A remote archive, Parquet file or set of shards, read from its local copy."""
    names = expand_braces(address)
    if not all(map(_is_supported, names)):
        raise DataError(
            f"{without_query(address)} is not an archive; only {', '.join(_REMOTE_SUFFIXES)} "
            "can be "
            "downloaded.",
            "Pack the images into an archive, or download them and give the local copy.",
        )
    paths = {name: download(name, fetch=fetch, console=console) for name in names}
    if len(paths) > 1:
        source = _shards(address, paths)
    else:
        source = _open_path(paths[address])
        if isinstance(source, FileTableSource):
            raise DataError(
                f"{without_query(address)} lists files next to it, which are not downloaded.",
                "Pack the images into an archive, or store them in the Parquet file.",
            )
    source.where = without_query(address)
    return source


def _is_supported(address: str) -> bool:
    return url_file_name(address).lower().endswith(_REMOTE_SUFFIXES)
