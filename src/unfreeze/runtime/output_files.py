"""Checks output paths: never overwrite an input or a file that unfreeze did not write.

Every command with `--out` calls these checks before any work.
"""

import json
import os
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from unfreeze.errors import UsageError

Ours = Callable[[Path], bool]
GENERATOR = "unfreeze"  # marks our pages and images: <meta name=generator>, PNG's Software
_START = 4096  # bytes at the start of a file that contain the mark
_NEW_FILE = "Name a new file, or move this one away."


def check_output_file(
    path: str | Path, *, ours: Ours, inputs: Iterable[str] = (), flag: str = "--out"
) -> Path:
    """The resolved output path `path`; UsageError if it may not be written.

    `ours`: whether an existing file was written by this command; other files are refused unless
    empty, and so are `inputs`, also through links. `flag`: the option for messages.
    """
    target = Path(path)
    check_writable(flag, target.absolute().parent, target)
    refuse_inputs(flag, target, inputs)
    try:
        target.lstat()
    except FileNotFoundError:
        return target
    except (OSError, ValueError) as error:  # an invalid file name
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"{flag} {str(target)[:80]} cannot be a file: {reason}.", _NEW_FILE
        ) from error
    if target.is_dir():
        raise UsageError(f"{flag} {target} is a folder.", "Name a file.")
    if not target.exists():
        raise UsageError(f"{flag} {target} is a broken link.", _NEW_FILE)
    if not target.is_file():
        raise UsageError(f"{flag} {target} is a device or a pipe, not a file.", "Name a file.")
    refuse_foreign(flag, target, ours)
    return Path(os.path.realpath(target))


def refuse_foreign(flag: str, path: Path, ours: Ours) -> None:
    """UsageError if `path` is a non-empty file that is not `ours`."""
    try:
        foreign = path.is_file() and path.stat().st_size > 0 and not ours(path)
    except OSError:
        foreign = True  # unreadable files are not known to be ours
    if foreign:
        raise UsageError(
            f"{flag} {path} exists and was not written by this command, so it was not overwritten.",
            _NEW_FILE,
        )


def refuse_inputs(flag: str, target: Path, inputs: Iterable[str]) -> None:
    """UsageError if `target` is one of the inputs, also through a link or another path.

    Also if no such path exists yet: a folder `digits` would hide the data set of that name.
    """
    for name in inputs:
        if same_file(target, name) or os.path.normpath(target) == os.path.normpath(name):
            raise UsageError(
                f"{flag} {target} is an input of this command ({name}).", "Name another path."
            )


def refuse_inside(flag: str, folder: Path, inputs: Iterable[str]) -> None:
    """UsageError if an input is `folder` or inside it, and would be deleted with it."""
    folder_path = os.path.realpath(folder)
    for name in inputs:
        input_path = os.path.realpath(name)
        inside = (
            os.path.lexists(input_path)
            and os.path.commonpath([folder_path, input_path]) == folder_path
        )
        if inside or same_file(folder, name):
            raise UsageError(
                f"{flag} would delete {name}, which this command reads.",
                "Name another --out, or move the input away.",
            )


def same_file(path: str | Path, other: str | Path) -> bool:
    """Whether both paths exist and refer to the same file or folder."""
    try:
        return Path(path).samefile(other)
    except (OSError, ValueError):
        return False  # one does not exist or is not a path (a dataset name, a URL)


def check_writable(flag: str, folder: Path, target: Path | None = None) -> None:
    """UsageError if `folder` cannot be created or written to.

    `target`: the path in messages, if it is a file in that folder.
    """
    shown, step = target or folder, f"Name a new {'file' if target else 'folder'}."
    try:
        existing = next(p for p in (folder, *folder.absolute().parents) if os.path.lexists(p))
        if not existing.is_dir():
            what = "a file" if existing.exists() else "a broken link"
            inside = "" if existing == shown else f": {existing}"
            raise UsageError(f"{flag} {shown} is {'in ' * bool(inside)}{what}{inside}.", step)
        folder.lstat()  # raises for invalid names
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{flag} {str(shown)[:80]} cannot be written: {reason}.", step) from error
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"{flag} {shown}: {existing} is not writable.", step)


def is_csv_with(columns: Sequence[str]) -> Ours:
    """A check for a CSV file with exactly these columns."""
    first = ",".join(columns).encode()
    return lambda path: _start(path).partition(b"\n")[0].rstrip(b"\r") == first


def is_our_page(path: Path) -> bool:
    """Whether an HTML page was written by unfreeze."""
    return f'<meta name="generator" content="{GENERATOR}'.encode() in _start(path)


def is_our_image(path: Path) -> bool:
    """Whether a PNG was written by unfreeze."""
    start = _start(path)
    return start.startswith(b"\x89PNG") and b"tEXtSoftware\0" + GENERATOR.encode() in start


def is_npz_with(*names: str) -> Ours:
    """A check for an .npz file with exactly these arrays."""

    def ours(path: Path) -> bool:
        try:
            with zipfile.ZipFile(path) as archive:
                return sorted(archive.namelist()) == sorted(f"{name}.npy" for name in names)
        except (zipfile.BadZipFile, ValueError, NotImplementedError):
            return False

    return ours


def is_json_with(*keys: str) -> Ours:
    """A check for a JSON object with these keys."""

    def ours(path: Path) -> bool:
        try:
            value = json.loads(path.read_bytes())
        except ValueError:
            return False
        return isinstance(value, dict) and set(keys) <= set(value)

    return ours


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_START)
