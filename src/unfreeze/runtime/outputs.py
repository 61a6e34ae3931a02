"""Where results may be written: never over an input, nor over a file that we did not make.

Every command that takes `--out` asks here before it does any work.
"""

import json
import os
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from unfreeze.errors import UsageError

Ours = Callable[[Path], bool]
GENERATOR = "unfreeze"  # who wrote a page or a image: <meta name=generator>, PNG's Software
_START = 4096  # bytes in which a file shows who made it
_NEW = "Name a new file, or move this one away."


def output_file(
    path: str | Path, *, ours: Ours, inputs: Iterable[str] = (), flag: str = "--out"
) -> Path:
    """The file to write at `path`, links followed; UsageError where it may not be written.

    `ours` says whether an existing file is one that this command wrote before; any other is
    refused, as is one of the `inputs` by whatever name. An empty file has nothing to lose.
    """
    target = Path(path)
    writable(flag, target.absolute().parent, target)
    refuse_inputs(flag, target, inputs)
    try:
        target.lstat()
    except FileNotFoundError:
        return target
    except (OSError, ValueError) as error:  # a name that no system takes
        said = getattr(error, "strerror", None) or error
        raise UsageError(f"{flag} {str(target)[:80]} cannot be a file: {said}.", _NEW) from error
    if target.is_dir():
        raise UsageError(f"{flag} {target} is a folder.", "Name a file.")
    if not target.exists():
        raise UsageError(f"{flag} {target} is a broken link.", _NEW)
    if not target.is_file():
        raise UsageError(f"{flag} {target} is a device or a pipe, not a file.", "Name a file.")
    refuse_foreign(flag, target, ours)
    return Path(os.path.realpath(target))


def refuse_foreign(flag: str, path: Path, ours: Ours) -> None:
    """UsageError where there is a file at `path` that is not `ours`."""
    try:
        kept = path.is_file() and path.stat().st_size > 0 and not ours(path)
    except OSError:
        kept = True  # what cannot be read is not known to be ours
    if kept:
        raise UsageError(
            f"{flag} {path} exists and was not written by this command, so it was not overwritten.",
            _NEW,
        )


def refuse_inputs(flag: str, target: Path, inputs: Iterable[str]) -> None:
    """UsageError where `target` is one of the inputs, also by a link or another spelling."""
    for name in inputs:
        if same_file(target, name):
            raise UsageError(
                f"{flag} {target} is an input of this command ({name}).", "Name another place."
            )


def refuse_inside(flag: str, folder: Path, inputs: Iterable[str]) -> None:
    """UsageError where one of the inputs is `folder` or lies in it, and would go with it."""
    around = os.path.realpath(folder)
    for name in inputs:
        place = os.path.realpath(name)
        inside = os.path.lexists(place) and os.path.commonpath([around, place]) == around
        if inside or same_file(folder, name):
            raise UsageError(
                f"{flag} would delete {name}, which this command reads.",
                "Name another --out, or move the input away.",
            )


def same_file(one: str | Path, other: str | Path) -> bool:
    """Whether both paths exist and mean the same file or folder."""
    try:
        return Path(one).samefile(other)
    except (OSError, ValueError):
        return False  # one of them does not exist, or is no path at all: a name, an address


def writable(flag: str, folder: Path, target: Path | None = None) -> None:
    """UsageError where `folder` is not, or cannot become, a folder to write into.

    `target` is what is spoken of, where it is a file in that folder.
    """
    spoken, step = target or folder, f"Name a new {'file' if target else 'folder'}."
    try:
        place = next(p for p in (folder, *folder.absolute().parents) if os.path.lexists(p))
        if not place.is_dir():
            what = "a file" if place.exists() else "a broken link"
            inside = "" if place == spoken else f": {place}"
            raise UsageError(f"{flag} {spoken} is {'in ' * bool(inside)}{what}{inside}.", step)
        folder.lstat()  # a name that no system takes shows here
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise UsageError(f"{flag} {str(spoken)[:80]} cannot be written: {said}.", step) from error
    if not os.access(place, os.W_OK | os.X_OK):
        raise UsageError(f"{flag} {spoken}: {place} is not writable.", step)


def table_of(columns: Sequence[str]) -> Ours:
    """A CSV that begins with exactly these columns."""
    first = ",".join(columns).encode()
    return lambda path: _start(path).partition(b"\n")[0].rstrip(b"\r") == first


def is_our_page(path: Path) -> bool:
    """An HTML page that says that we wrote it."""
    return f'<meta name="generator" content="{GENERATOR}'.encode() in _start(path)


def is_our_image(path: Path) -> bool:
    """A PNG that says that we drew it."""
    start = _start(path)
    return start.startswith(b"\x89PNG") and b"tEXtSoftware\0" + GENERATOR.encode() in start


def arrays_of(*names: str) -> Ours:
    """An .npz with exactly these arrays."""

    def ours(path: Path) -> bool:
        try:
            with zipfile.ZipFile(path) as held:
                return sorted(held.namelist()) == sorted(f"{name}.npy" for name in names)
        except (zipfile.BadZipFile, ValueError, NotImplementedError):
            return False

    return ours


def object_of(*keys: str) -> Ours:
    """A JSON object that has these keys."""

    def ours(path: Path) -> bool:
        try:
            held = json.loads(path.read_bytes())
        except ValueError:
            return False
        return isinstance(held, dict) and set(keys) <= set(held)

    return ours


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_START)
