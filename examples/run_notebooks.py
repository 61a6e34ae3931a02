"""Execute the notebooks beside this file and store their outputs.

    python examples/run_notebooks.py [NAME.ipynb ...] [--data DIR]

Each runs in an empty folder with links to the files of DIR (photographs, texts, weights), so that
outputs name files without their folders. What differs from run to run without meaning is removed:
progress bars that have ended, times of execution, warnings of the kernel.
"""

import argparse
import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import nbclient
import nbformat

HERE = Path(__file__).parent
DATA = ("cifar10.zip", "trashnet-subset.zip", "camvid-subset.zip", "sst2.csv")
WEIGHTS = {  # used where they are there; else notebooks download those of the same name
    "UNFREEZE_WEIGHTS": "squeezenet1_1-imagenet.pth",
    "UNFREEZE_ENCODER": "efficientnet-lite0-imagenet.pth",
    "UNFREEZE_MINILM": "minilm-l6",
}
SECONDS = 1800  # for a cell, also on a busy machine
_CONTROL = re.compile(r"\x1b\[[0-9;]*m")


def execute(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """The notebook, executed in `folder` and tidied; CellExecutionError names a failing cell."""
    with environment(folder):
        nbclient.NotebookClient(
            notebook,
            timeout=SECONDS,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": str(folder)}},
        ).execute()
    return tidy(notebook, str(folder))


@contextlib.contextmanager
def environment(folder: Path) -> Iterator[None]:
    """Within the block the kernel's environment: one thread, a cache, weights."""
    before = dict(os.environ)
    os.environ.update(OMP_NUM_THREADS="1", UNFREEZE_CACHE=str(folder / ".cache"))
    os.environ.update({key: name for key, name in WEIGHTS.items() if (folder / name).exists()})
    os.environ.pop("MPLBACKEND", None)  # the kernel draws inline
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def link_data(source: Path, folder: Path) -> list[str]:
    """Link data and weights below `source` into `folder`; the names that are missing."""
    missing = []
    for name in (*DATA, *WEIGHTS.values()):
        found = next((p for p in (source / name, *source.glob(f"*/{name}")) if p.exists()), None)
        if found is None:
            missing.append(name)
        else:
            (folder / name).symlink_to(found.resolve())
    return missing


def tidy(notebook: nbformat.NotebookNode, folder: str) -> nbformat.NotebookNode:
    """The notebook without what differs from run to run or belongs to this machine."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number:02}", {}
        if cell.cell_type == "code":
            cell.outputs = [out for out in map(_tidy_output, cell.outputs) if out is not None]
            _join_streams(cell)
            for out in cell.outputs:
                _without_folder(out, folder)
    return notebook


def _tidy_output(out: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    """The output; None for a bar that has ended, and for warnings that are no result."""
    if out.output_type == "stream":
        out.text = _CONTROL.sub("", out.text)
        return out if out.name == "stdout" and out.text.strip() else None
    if "data" in out and not any(out.data.values()):
        return None
    if "metadata" in out:
        out.metadata = {}
    return out


def _join_streams(cell: nbformat.NotebookNode) -> None:
    joined: list[nbformat.NotebookNode] = []
    for out in cell.outputs:
        if joined and out.output_type == joined[-1].output_type == "stream":
            joined[-1].text += out.text
        else:
            joined.append(out)
    cell.outputs = joined


def _without_folder(out: nbformat.NotebookNode, folder: str) -> None:
    if "text" in out:
        out.text = out.text.replace(f"{folder}/", "").replace(folder, ".")
    for kind, value in out.get("data", {}).items():
        if kind.startswith("text/"):
            out.data[kind] = value.replace(f"{folder}/", "").replace(folder, ".")


def main(words: Sequence[str] | None = None) -> int:
    """Execute the named notebooks, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="NAME.ipynb, all if none is named")
    parser.add_argument("--data", default=".", help="folder of the data sets and weights")
    given = parser.parse_args(words)
    for path in [HERE / name for name in given.names] or sorted(HERE.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            if missing := link_data(Path(given.data), Path(folder)):
                sys.stderr.write(f"not in {given.data}: {', '.join(missing)}\n")
            notebook = execute(nbformat.read(path, as_version=4), Path(folder))
        nbformat.write(notebook, path)
        sys.stderr.write(f"{path.name}: {path.stat().st_size / 1000:.0f} kB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
