"""Moves unusable files to a quarantine folder, and restores them byte for byte.

Nothing is deleted or overwritten. The manifest is written before the first file moves, and each
move is atomic, so that after a crash every file is at one of its two paths; running the command
again, or `--undo`, continues from there.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from unfreeze.data.sources.source import Source
from unfreeze.data.validate.verdicts import (
    ENDING,
    ignore_list_path,
    read_ignore_list,
    write_ignore_list,
)
from unfreeze.errors import DataError, UsageError
from unfreeze.runtime import atomic
from unfreeze.runtime.output_files import check_writable, is_csv_with, refuse_foreign
from unfreeze.runtime.text_layout import read_records, write_csv
from unfreeze.text import as_name, as_text

MANIFEST = "manifest.csv"
_FIELDS = ("path", "reason", "detail", "bytes", "sha256", "from")
_BLOCK = 2**20


class QuarantinedFile(NamedTuple):
    """A line of the manifest: the path of a file in the quarantine, and its original path."""

    path: str
    reason: str
    detail: str
    bytes: int
    sha256: str
    origin: str

    @property
    def place(self) -> Path:
        """The original path of the file."""
        return Path(self.origin)

    def within(self, folder: Path) -> Path:
        """Path of the file in a quarantine folder."""
        return folder / as_name(self.path)


def refuse_inside_dataset(root: Path, folder: Path) -> None:
    """UsageError if the folder is inside the dataset, where later runs would read it."""
    root, folder = root.resolve(), folder.resolve()
    if folder == root or root in folder.parents:
        raise UsageError(
            f"The quarantine folder {folder} is inside the dataset.",
            "Choose a folder outside of it.",
        )


def require_quarantine_folder(folder: Path) -> None:
    """UsageError if the folder cannot be used for a quarantine, because it has other content."""
    check_writable("--quarantine", folder)
    manifest = folder / MANIFEST
    refuse_foreign("--quarantine:", manifest, is_csv_with(_FIELDS))
    if folder.is_dir() and any(folder.iterdir()) and not manifest.is_file():
        raise UsageError(
            f"--quarantine {folder} is neither empty nor a quarantine folder.",
            "Choose a new folder, or an existing quarantine folder.",
        )


def quarantine(
    root: Path, folder: Path, broken: Iterable[tuple[str, str, str]]
) -> list[QuarantinedFile]:
    """Move files of `root`, given as `(path, reason, detail)`, to `folder`.

    Returns all lines of its manifest. Symbolic links are not moved.
    """
    refuse_inside_dataset(root, folder)
    lines = {line.path: line for line in read_manifest(folder)} if _has_manifest(folder) else {}
    for path, reason, detail in broken:
        origin = root.resolve() / as_name(path)
        if origin.is_file() and not origin.is_symlink():
            size, sha = _identity(origin)
            _refuse_conflict(folder, lines.get(path), str(origin))
            lines[path] = QuarantinedFile(path, reason, detail, size, sha, str(origin))
    if not lines:
        return []
    _write_manifest(folder, lines.values())
    for line in lines.values():
        _move(line.place, line.within(folder), line)
    return list(lines.values())


def require_ignore_list(source: Source) -> Path:
    """Path of the ignore list of a source; UsageError if it cannot have one."""
    path = ignore_list_path(source)
    if path is None:
        raise UsageError(f"{source.where} has no files to move.", "Use a local folder or archive.")
    return path


def add_to_ignore_list(
    source: Source, folder: Path, broken: Iterable[tuple[str, str, str]]
) -> list[QuarantinedFile]:
    """`quarantine` for archives and tables: adds the images to the ignore list of the source."""
    path = require_ignore_list(source)
    sizes = dict(zip(source.names, source.sizes.tolist(), strict=True))
    lines = {line.path: line for line in read_manifest(folder)} if _has_manifest(folder) else {}
    ignored = read_ignore_list(path)
    for name, reason, detail in broken:
        _refuse_conflict(folder, lines.get(name), str(path.resolve()))
        lines[name] = QuarantinedFile(name, reason, detail, sizes[name], "", str(path.resolve()))
        ignored[name] = (reason, detail)
    if not lines:
        return []
    _write_manifest(folder, lines.values())
    write_ignore_list(path, ignored)
    return list(lines.values())


def undo(folder: Path) -> tuple[list[QuarantinedFile], list[str]]:
    """Restore a quarantine: (restored files, messages about files that could not be restored).

    Files that could not be restored stay in the manifest; it is removed, with empty folders, when
    everything is restored. DataError if the folder is not a quarantine folder.
    """
    if not _has_manifest(folder):
        raise DataError(
            f"{folder} is not a quarantine folder: it has no {MANIFEST}.",
            "Give the folder that was used with --quarantine.",
        )
    restored: list[QuarantinedFile] = []
    remaining: list[QuarantinedFile] = []
    messages = []
    lines = read_manifest(folder)
    restored += _remove_from_lists([line for line in lines if line.origin.endswith(ENDING)])
    for line in [line for line in lines if not line.origin.endswith(ENDING)]:
        try:
            _move(line.within(folder), line.place, line)
            restored.append(line)
        except _Occupied as error:
            remaining.append(line)
            messages.append(str(error))
    if remaining:
        _write_manifest(folder, remaining)
        return restored, messages
    (folder / MANIFEST).unlink()
    _remove_empty_folders(folder)
    return restored, messages


def read_manifest(folder: Path) -> list[QuarantinedFile]:
    """The lines of the manifest of a quarantine folder; DataError if it is invalid."""
    try:
        return [
            QuarantinedFile(
                row["path"],
                row["reason"],
                row["detail"],
                int(row["bytes"]),
                row["sha256"],
                as_name(row["from"]),
            )
            for row in read_records(folder / MANIFEST)
        ]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder / MANIFEST} is not a valid manifest: {error}.",
            "Restore the manifest that --quarantine wrote.",
        ) from None


def _remove_from_lists(lines: list[QuarantinedFile]) -> list[QuarantinedFile]:
    """Removes these files from their ignore lists; lines that users added stay."""
    for list_path in {line.place for line in lines}:
        names = {line.path for line in lines if line.place == list_path}
        write_ignore_list(
            list_path,
            {
                name: reason
                for name, reason in read_ignore_list(list_path).items()
                if name not in names
            },
        )
    return lines


class _Occupied(Exception):
    """Another file exists at the target path."""


def _refuse_conflict(folder: Path, before: QuarantinedFile | None, origin: str) -> None:
    """UsageError if the quarantine has a file of that name from another origin."""
    if before is not None and before.origin != origin:
        raise UsageError(
            f"The quarantine folder {folder} already contains {before.path} from {before.origin}.",
            "Use another quarantine folder for this dataset.",
        )


def _has_manifest(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def _write_manifest(folder: Path, lines: Iterable[QuarantinedFile]) -> None:
    rows = (line._replace(origin=as_text(line.origin)) for line in lines)
    write_csv(folder / MANIFEST, _FIELDS, rows)


def _move(source: Path, target: Path, line: QuarantinedFile) -> None:
    """Moves a file, or finishes an interrupted move; no-op if it was moved already."""
    source_exists, target_exists = source.exists(), target.exists()
    if target_exists and _identity(target) != (line.bytes, line.sha256):
        raise _Occupied(
            f"{target} already exists with other content; {line.path} stays in the quarantine."
        )
    if not source_exists:
        if not target_exists:
            raise _Occupied(f"{line.path} is missing: it is neither {source} nor {target}.")
        return
    if target_exists:
        # a crash after the copy, before the original was removed
        if _identity(source) == (line.bytes, line.sha256):
            source.unlink()
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)  # unlike rename it never replaces an existing file
    except OSError:
        _copy(source, target, line)
    source.unlink()


def _copy(source: Path, target: Path, line: QuarantinedFile) -> None:
    """Copies a file to another disk; it is verified before it gets its name."""
    with atomic.replacing(target) as temporary:
        shutil.copy2(source, temporary)
        if _identity(temporary) != (line.bytes, line.sha256):
            raise DataError(
                f"Copying {source} to {target.parent} changed its content.",
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


def _remove_empty_folders(folder: Path) -> None:
    """Removes empty folders, the deepest first."""
    for subfolder in sorted(folder.rglob("*"), key=lambda path: -len(path.parts)):
        if subfolder.is_dir() and not any(subfolder.iterdir()):
            subfolder.rmdir()
    if not any(folder.iterdir()):
        folder.rmdir()
