"""The output folder of an export, written atomically."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from unfreeze.errors import UsageError
from unfreeze.runtime.outputs import object_of, refuse_inputs, refuse_inside, writable

ABOUT, README = "export.json", "README.md"


def allowed(path: str | None, *, overwrite: bool, inputs: Sequence[str] = ()) -> Path:
    """The output folder `path`; UsageError if an export may not be written there.

    `overwrite` requires a folder that contains only an earlier export, and none of `inputs`.
    Nothing is changed.
    """
    if not path:
        raise UsageError("export needs an output folder.", "Add --out DIR.")
    folder = Path(path)
    writable("--out", folder)
    refuse_inputs("--out", folder, inputs)
    if not folder.is_dir() or not any(folder.iterdir()):
        return folder
    if not overwrite:
        raise UsageError(f"--out {folder} is not empty.", "Name a new folder, or add --overwrite.")
    foreign = _foreign_entry(folder)
    if foreign:
        raise UsageError(
            f"--overwrite: {folder} holds {foreign}, which was not written by an export, so "
            "nothing was deleted.",
            "Name another folder, or empty this one yourself.",
        )
    refuse_inside("--overwrite", folder, inputs)
    return folder


def _foreign_entry(folder: Path) -> str:
    """The first entry of the folder that was not written by an export; "" if there is none."""
    names = sorted(entry.name for entry in folder.iterdir())
    about = folder / ABOUT
    if not about.is_file() or not object_of("to", "unfreeze", "files")(about):
        return names[0]
    written = {ABOUT, README, *json.loads(about.read_bytes())["files"]}
    return next((name for name in names if name not in written), "")


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A temporary folder that replaces `folder` when the block succeeds.

    If the block fails it is removed and `folder` is unchanged.
    """
    target = folder.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name[:40]}."
    temporary = Path(tempfile.mkdtemp(prefix=prefix, suffix=".tmp", dir=target.parent))
    try:
        new_folder = temporary / "new"
        new_folder.mkdir()
        yield new_folder
        if target.exists():
            target.rename(temporary / "old")
        new_folder.replace(target)
    finally:
        if (temporary / "old").exists() and not target.exists():
            (temporary / "old").rename(target)
        shutil.rmtree(temporary, ignore_errors=True)
