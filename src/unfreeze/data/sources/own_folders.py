"""Detects folders written by unfreeze (runs, quarantine), so that they are not read as data."""

import re
from collections.abc import Callable, Collection, Iterable, Sequence

from unfreeze.data.sources.source import Source
from unfreeze.errors import DataError

HEAD = 2**16  # bytes read to recognise a file
_SETTINGS = re.compile(rb"^store_budget *=", re.MULTILINE)
# a run folder contains one of these next to config.toml
_RUN_FILES = ("metrics.jsonl", "log.txt", "checkpoints", "compare.json")
_QUARANTINE = b"path,reason,detail,bytes,sha256,from"
_DEMO = (b'"results"', b'"scores"')
MARKER_FILES = frozenset(
    ("config.toml", "demo.json", "manifest.csv")
)  # only folders with one of these are checked

Head = Callable[[str], bytes]


def is_run(entries: Collection[str], head: Head) -> bool:
    """Whether a folder with these entries is a run; `head(name)` reads the start of a file."""
    if "config.toml" in entries and any(name in entries for name in _RUN_FILES):
        return _SETTINGS.search(head("config.toml")) is not None
    return "demo.json" in entries and all(key in head("demo.json") for key in _DEMO)


def is_output(entries: Collection[str], head: Head) -> bool:
    """Whether a folder is a run, or a quarantine folder of `scan --quarantine`."""
    if MARKER_FILES.isdisjoint(entries):
        return False
    quarantine = "manifest.csv" in entries and head("manifest.csv").startswith(_QUARANTINE)
    return quarantine or is_run(entries, head)


def output_folders(source: Source) -> tuple[str, ...]:
    """The folders of an archive that unfreeze wrote; DataError if its root is one."""
    outputs = _outputs(source.names, lambda row: source.head(row, HEAD))
    if "" in outputs:
        raise run_folder_error(source.where)
    return tuple(outputs)


def _outputs(names: Sequence[str], head: Callable[[int], bytes]) -> list[str]:
    joined = "\n".join(names)  # one search is faster than one per name
    if not any(mark in joined for mark in MARKER_FILES):
        return []
    rows = {name: row for row, name in enumerate(names)}
    outputs = []
    for folder in {
        name.rpartition("/")[0] for name in names if name.rpartition("/")[2] in MARKER_FILES
    }:
        prefix = f"{folder}/" if folder else ""
        entries = {n[len(prefix) :].partition("/")[0] for n in names if n.startswith(prefix)}

        def start(name: str, prefix: str = prefix) -> bytes:
            return head(rows[prefix + name]) if prefix + name in rows else b""

        if is_output(entries, start) if folder else is_run(entries, start):
            outputs.append(folder)
    return sorted(folder for folder in outputs if not _is_nested(folder, outputs))


def _is_nested(folder: str, others: Iterable[str]) -> bool:
    return any(other != folder and is_inside(f"{folder}/", [other]) for other in others)


def is_inside(name: str, folders: Sequence[str]) -> bool:
    """Whether a path is inside one of these folders."""
    return any(not folder or name.startswith(f"{folder}/") for folder in folders)


def outputs_note(folders: Sequence[str]) -> tuple[str, ...]:
    """The note about folders that are not read."""
    if not folders:
        return ()
    subject = (
        "A folder written by unfreeze is"
        if len(folders) == 1
        else f"{len(folders):,} folders written by unfreeze are"
    )
    listed = f"{', '.join(folders[:3])}{', ...' * (len(folders) > 3)}"
    return (f"{subject} ignored: {listed}.",)


def run_folder_error(where: str) -> DataError:
    """The error for data that is a run folder."""
    return DataError(
        f"{where} is a run folder, not a dataset.", "Give the folder or archive of the images."
    )
