"""The ignore list of an archive or table, whose files cannot be moved to a quarantine folder.

`photos.zip` has `photos.zip.left-out.csv` with the columns `path,reason,detail`. `--quarantine`
adds lines and `--undo` removes them; users may add their own lines.
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
# kinds of sources that can have an ignore list
LISTED = ("zip", "tar", "tar.gz", "csv", "parquet", "saved", "shards")
Lines = dict[str, tuple[str, str]]  # path -> (reason, detail)
_FIELDS = ("path", "reason", "detail")


def list_of(source: Source) -> Path | None:
    """Path of the ignore list of a source; None for folders, URLs and arrays."""
    if is_address(source.where):
        return None
    return Path(str(Path(source.where)) + ENDING) if source.kind in LISTED else None


def read_list(path: Path) -> Lines:
    """The entries of an ignore list, {} if it does not exist; DataError if it is invalid."""
    if not os.path.isfile(path):  # noqa: PTH113 - False also if the name is too long
        return {}
    # names are written as they are on disk, whatever their bytes
    columns = read_delimited(path, exists=lambda name: True, strip=False).columns
    if "path" not in columns:
        raise DataError(
            f"{path} lists excluded files, but has no column `path`.",
            "Name the columns path,reason,detail, or remove the file.",
        )
    empty = [""] * len(columns["path"])
    rows = zip(
        columns["path"], columns.get("reason", empty), columns.get("detail", empty), strict=True
    )
    return {name: (reason or "left out", detail) for name, reason, detail in rows}


def write_list(path: Path, lines: Mapping[str, tuple[str, str]]) -> None:
    """Writes the ignore list; without entries the file is deleted."""
    if not lines:
        path.unlink(missing_ok=True)
        return
    write_csv(path, _FIELDS, ((name, *reason) for name, reason in lines.items()))
