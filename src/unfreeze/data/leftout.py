"""A list beside an archive or a table of what runs leave out: its files cannot be moved away.

`photos.zip` has `photos.zip.left-out.csv`, with the columns `path,reason,detail`. `scan
--quarantine` writes it and `--undo` takes its lines away again; people may add lines of their own.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from unfreeze.data.sources import Source
from unfreeze.data.sources.delimited import read_delimited
from unfreeze.data.sources.remote import is_address
from unfreeze.errors import DataError
from unfreeze.runtime.tables import write_csv

ENDING = ".left-out.csv"
# kinds of sources that may have one
LISTED = ("zip", "tar", "tar.gz", "csv", "parquet", "saved", "shards")
Lines = dict[str, tuple[str, str]]  # path -> (reason, detail)
_FIELDS = ("path", "reason", "detail")


def list_of(source: Source) -> Path | None:
    """Where a source's list would be; None for a folder, an address or pixels in memory."""
    if is_address(source.where):
        return None
    return Path(str(Path(source.where)) + ENDING) if source.kind in LISTED else None


def read_list(path: Path) -> Lines:
    """Its lines; none where there is no such file. DataError where it is no such list."""
    if not os.path.isfile(path):  # noqa: PTH113 - nor is one whose name would be too long
        return {}
    # our own lists hold names as they are on the disk, whatever bytes these are
    columns = read_delimited(path, exists=lambda name: True, strip=False).columns
    if "path" not in columns:
        raise DataError(
            f"{path} lists excluded files, but has no column `path`.",
            "Name the columns path,reason,detail, or remove the file.",
        )
    nothing = [""] * len(columns["path"])
    rows = zip(
        columns["path"], columns.get("reason", nothing), columns.get("detail", nothing), strict=True
    )
    return {name: (reason or "left out", detail) for name, reason, detail in rows}


def write_list(path: Path, lines: Mapping[str, tuple[str, str]]) -> None:
    """The whole list; without lines the file goes."""
    if not lines:
        path.unlink(missing_ok=True)
        return
    write_csv(path, _FIELDS, ((name, *why) for name, why in lines.items()))
