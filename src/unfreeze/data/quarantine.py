"""Moving what cannot be used out of a folder, and bringing it back byte for byte.

Nothing is ever deleted or written over. The manifest stands before the first file moves, and each
move is whole or not at all, so that a crash at any moment leaves every file at one of its two
places; the same command, or `--undo`, goes on from there.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from unfreeze.data.leftout import ENDING, list_of, read_list, write_list
from unfreeze.data.sources import Source
from unfreeze.errors import DataError, UsageError
from unfreeze.runtime import atomic
from unfreeze.runtime.outputs import refuse_foreign, table_of, writable
from unfreeze.runtime.tables import records, write_csv
from unfreeze.text import as_name, as_text

MANIFEST = "manifest.csv"
_FIELDS = ("path", "reason", "detail", "bytes", "sha256", "from")
_BLOCK = 2**20


class Moved(NamedTuple):
    """A line of the manifest: a file by its name inside the quarantine, and where it was."""

    path: str
    reason: str
    detail: str
    bytes: int
    sha256: str
    origin: str

    @property
    def place(self) -> Path:
        """Where it was."""
        return Path(self.origin)

    def within(self, folder: Path) -> Path:
        """Where it is in a quarantine."""
        return folder / as_name(self.path)


def refuse_inside(root: Path, folder: Path) -> None:
    """UsageError where the folder lies inside the data: a later run would read it."""
    root, folder = root.resolve(), folder.resolve()
    if folder == root or root in folder.parents:
        raise UsageError(
            f"The quarantine folder {folder} is inside the dataset.",
            "Choose a folder outside of it.",
        )


def refuse_others(folder: Path) -> None:
    """UsageError where the folder cannot be a quarantine: something else is, or lies, there."""
    writable("--quarantine", folder)
    manifest = folder / MANIFEST
    refuse_foreign("--quarantine:", manifest, table_of(_FIELDS))
    if folder.is_dir() and any(folder.iterdir()) and not manifest.is_file():
        raise UsageError(
            f"--quarantine {folder} is neither empty nor a quarantine folder.",
            "Choose a new folder, or an existing quarantine folder.",
        )


def quarantine(root: Path, folder: Path, broken: Iterable[tuple[str, str, str]]) -> list[Moved]:
    """Move files of `root`, by `(path, reason, detail)`, into `folder`; what stands there by now.

    Links stay where they are: there is nothing in them to keep.
    """
    refuse_inside(root, folder)
    lines = {line.path: line for line in read_manifest(folder)} if _is_one(folder) else {}
    for path, reason, detail in broken:
        origin = root.resolve() / as_name(path)
        if origin.is_file() and not origin.is_symlink():
            size, sha = _identity(origin)
            _refuse_two(folder, lines.get(path), str(origin))
            lines[path] = Moved(path, reason, detail, size, sha, str(origin))
    if not lines:
        return []
    _write_manifest(folder, lines.values())
    for line in lines.values():
        _move(line.place, line.within(folder), line)
    return list(lines.values())


def list_beside(source: Source) -> Path:
    """Where the list of what is left out stands; UsageError where there can be none."""
    path = list_of(source)
    if path is None:
        raise UsageError(f"{source.where} has no files to move.", "Use a local folder or archive.")
    return path


def set_aside(source: Source, folder: Path, broken: Iterable[tuple[str, str, str]]) -> list[Moved]:
    """The same for what lies in an archive or on a list: named in a list that runs go by."""
    path = list_beside(source)
    sizes = dict(zip(source.names, source.sizes.tolist(), strict=True))
    lines = {line.path: line for line in read_manifest(folder)} if _is_one(folder) else {}
    listed = read_list(path)
    for name, reason, detail in broken:
        _refuse_two(folder, lines.get(name), str(path.resolve()))
        lines[name] = Moved(name, reason, detail, sizes[name], "", str(path.resolve()))
        listed[name] = (reason, detail)
    if not lines:
        return []
    _write_manifest(folder, lines.values())
    write_list(path, listed)
    return list(lines.values())


def undo(folder: Path) -> tuple[list[Moved], list[str]]:
    """Everything as it was: (what is back, sentences about what could not be).

    The manifest keeps what could not; it goes, and its empty folders, when all is back. DataError
    where the folder is no quarantine.
    """
    if not _is_one(folder):
        raise DataError(
            f"{folder} is not a quarantine folder: it has no {MANIFEST}.",
            "Give the folder that was used with --quarantine.",
        )
    back: list[Moved] = []
    kept: list[Moved] = []
    said = []
    lines = read_manifest(folder)
    back += _unlisted([line for line in lines if line.origin.endswith(ENDING)])
    for line in [line for line in lines if not line.origin.endswith(ENDING)]:
        try:
            _move(line.within(folder), line.place, line)
            back.append(line)
        except _Occupied as error:
            kept.append(line)
            said.append(str(error))
    if kept:
        _write_manifest(folder, kept)
        return back, said
    (folder / MANIFEST).unlink()
    _tidy(folder)
    return back, said


def read_manifest(folder: Path) -> list[Moved]:
    """The lines of a quarantine's manifest. DataError where it is not one."""
    try:
        return [
            Moved(
                row["path"],
                row["reason"],
                row["detail"],
                int(row["bytes"]),
                row["sha256"],
                as_name(row["from"]),
            )
            for row in records(folder / MANIFEST)
        ]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder / MANIFEST} is not a valid manifest: {error}.",
            "Restore the manifest that --quarantine wrote.",
        ) from None


def _unlisted(lines: list[Moved]) -> list[Moved]:
    """Take lines out of the lists that they are on; people's own lines stay."""
    for place in {line.place for line in lines}:
        ours = {line.path for line in lines if line.place == place}
        write_list(place, {n: why for n, why in read_list(place).items() if n not in ours})
    return lines


class _Occupied(Exception):
    """Another file stands where one should go."""


def _refuse_two(folder: Path, before: Moved | None, origin: str) -> None:
    """UsageError where the quarantine holds another file of that name, from somewhere else."""
    if before is not None and before.origin != origin:
        raise UsageError(
            f"The quarantine folder {folder} already contains {before.path} from {before.origin}.",
            "Use another quarantine folder for this dataset.",
        )


def _is_one(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def _write_manifest(folder: Path, lines: Iterable[Moved]) -> None:
    rows = (line._replace(origin=as_text(line.origin)) for line in lines)
    write_csv(folder / MANIFEST, _FIELDS, rows)


def _move(here: Path, there: Path, line: Moved) -> None:
    """Move a file, or finish moving it; nothing is done where it is there already."""
    present, arrived = here.exists(), there.exists()
    if arrived and _identity(there) != (line.bytes, line.sha256):
        raise _Occupied(
            f"{there} already exists with other content; {line.path} stays in the quarantine."
        )
    if not present:
        if not arrived:
            raise _Occupied(f"{line.path} is missing: it is neither {here} nor {there}.")
        return
    if arrived:
        # copied in full before a crash, and not yet taken away where it came from
        if _identity(here) == (line.bytes, line.sha256):
            here.unlink()
        return
    there.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(here, there)  # unlike a renaming it never replaces a file that just appeared
    except OSError:
        _copy(here, there, line)
    here.unlink()


def _copy(here: Path, there: Path, line: Moved) -> None:
    """To another disk: whole and compared before it gets its name."""
    with atomic.replacing(there) as place:
        shutil.copy2(here, place)
        if _identity(place) != (line.bytes, line.sha256):
            raise DataError(
                f"Copying {here} to {there.parent} changed its content.",
                "Check the disk and retry.",
            )


def _identity(path: Path) -> tuple[int, str]:
    """(bytes, SHA-256) of a file."""
    hasher, size = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            hasher.update(block)
            size += len(block)
    return size, hasher.hexdigest()


def _tidy(folder: Path) -> None:
    """Remove the folders that are empty now, the deepest first."""
    for inside in sorted(folder.rglob("*"), key=lambda path: -len(path.parts)):
        if inside.is_dir() and not any(inside.iterdir()):
            inside.rmdir()
    if not any(folder.iterdir()):
        folder.rmdir()
