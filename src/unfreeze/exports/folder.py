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
    strange = _strange(folder)
    if strange:
        raise UsageError(
            f"--overwrite: {folder} holds {strange}, which was not written by an export, so "
            "nothing was deleted.",
            "Name another folder, or empty this one yourself.",
        )
    refuse_inside("--overwrite", folder, inputs)
    return folder


def _strange(folder: Path) -> str:
    """The first entry of the folder that was not written by an export; "" if there is none."""
    there = sorted(entry.name for entry in folder.iterdir())
    about = folder / ABOUT
    if not about.is_file() or not object_of("to", "unfreeze", "files")(about):
        return there[0]
    written = {ABOUT, README, *json.loads(about.read_bytes())["files"]}
    return next((name for name in there if name not in written), "")


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A temporary folder that replaces `folder` when the block succeeds.

    If the block fails it is removed and `folder` is unchanged.
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
