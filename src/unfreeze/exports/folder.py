"""The folder of an export: complete and proved, or not there."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unfreeze.errors import UsageError
from unfreeze.runtime.runfolder import writable

ABOUT = "export.json"


def allowed(path: str | None, *, overwrite: bool) -> Path:
    """The folder, if an export may go there; UsageError otherwise. Nothing is touched."""
    if not path:
        raise UsageError("export needs a folder to write.", "Add --out DIR.")
    folder = Path(path)
    writable("--out", folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        return folder
    if not overwrite:
        raise UsageError(f"--out {folder} is not empty.", "Name a new folder, or add --overwrite.")
    if not (folder / ABOUT).is_file():
        raise UsageError(
            f"--overwrite: {folder} was not written by export, so nothing was deleted.",
            "Name another folder, or empty this one yourself.",
        )
    return folder


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` that takes its place when the block ends well.

    Where the block fails nothing is left, and what was there before still is.
    """
    target = folder.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    start = f".{target.name[:40]}."
    made = Path(tempfile.mkdtemp(prefix=start, suffix=".tmp", dir=target.parent))
    try:
        inner = made / "new"
        inner.mkdir()
        yield inner
        if target.exists():
            target.rename(made / "old")
        inner.replace(target)
    finally:
        if (made / "old").exists() and not target.exists():
            (made / "old").rename(target)
        shutil.rmtree(made, ignore_errors=True)
