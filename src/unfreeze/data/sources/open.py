"""From what the user typed to a source."""

from collections.abc import Sequence
from pathlib import Path

from unfreeze.data.sources.builtin import cifar10, digits
from unfreeze.data.sources.csv import CsvSource
from unfreeze.data.sources.folder import FolderSource
from unfreeze.data.sources.several import SeveralSource, refuse_overlap
from unfreeze.data.sources.source import Source
from unfreeze.data.sources.tar import PackedTarSource, TarSource
from unfreeze.data.sources.zip import ZipSource
from unfreeze.errors import DataError

_KINDS: dict[str, type[ZipSource] | type[TarSource] | type[CsvSource]] = {
    ".zip": ZipSource,
    ".tar": TarSource,
    ".tar.gz": PackedTarSource,
    ".tgz": PackedTarSource,
    ".csv": CsvSource,
}


def open_source(
    data: str | Sequence[str], *, data_root: str | None = None, fetch: bool = True
) -> Source:
    """The source that `data` names, or several as one; DataError where one cannot be read.

    `digits` and `cifar10` are built in (`./digits` is a folder of that name); `data_root` is
    where built-in sets are kept, `data` if not given; without `fetch` nothing is downloaded.
    """
    if not isinstance(data, str):
        return _together([*data], data_root, fetch)
    if data == "digits":
        return digits()
    if data == "cifar10":
        return cifar10(data_root or "data", fetch=fetch)
    path = Path(data)
    try:
        source = _open_path(path)
    except OSError as error:
        raise DataError(
            f"{data} cannot be read: {error.strerror or error}.", "Check its permissions."
        ) from error
    if not source.names:
        raise DataError(f"{data} holds no files.", "Give a folder or an archive with pictures.")
    return source


def _together(places: list[str], data_root: str | None, fetch: bool) -> Source:
    refuse_overlap(places)
    parts = [open_source(place, data_root=data_root, fetch=fetch) for place in places]
    return parts[0] if len(parts) == 1 else SeveralSource(parts)


def _open_path(path: Path) -> Source:
    if not path.exists():
        raise DataError(
            f"There is no folder or file {str(path)!r}.",
            "Check the path; built-in names are digits and cifar10.",
        )
    if path.is_dir():
        return FolderSource(path)
    for suffix, kind in _KINDS.items():
        if path.name.lower().endswith(suffix):
            if not path.is_file():  # opening a pipe would wait for ever
                raise DataError(f"{path} is a pipe or a device.", "Save it as a file first.")
            return kind(path)
    raise DataError(
        f"{path} is neither a folder nor a {', '.join(_KINDS)} file.",
        "Give the folder that holds the pictures.",
    )
