"""Folders that this tool wrote: a run inside the data is no class, and its curves no images."""

import re
from collections.abc import Callable, Collection, Iterable, Sequence

from unfreeze.data.sources.source import Source
from unfreeze.errors import DataError

HEAD = 2**16  # bytes that tell what a file is
_SETTINGS = re.compile(rb"^store_budget *=", re.MULTILINE)
# one of them stands beside a run's settings
_BESIDE = ("metrics.jsonl", "log.txt", "checkpoints", "compare.json")
_QUARANTINE = b"path,reason,detail,bytes,sha256,from"
_DEMO = (b'"results"', b'"scores"')
MARKS = frozenset(("config.toml", "demo.json", "manifest.csv"))  # no other folder is looked into

Head = Callable[[str], bytes]


def is_run(inside: Collection[str], head: Head) -> bool:
    """Whether the folder with these names in it is a run's; `head` reads the start of one."""
    if "config.toml" in inside and any(name in inside for name in _BESIDE):
        return _SETTINGS.search(head("config.toml")) is not None
    return "demo.json" in inside and all(sign in head("demo.json") for sign in _DEMO)


def is_output(inside: Collection[str], head: Head) -> bool:
    """Whether it is a run's folder, or one that `scan --quarantine` filled."""
    if MARKS.isdisjoint(inside):
        return False
    moved = "manifest.csv" in inside and head("manifest.csv").startswith(_QUARANTINE)
    return moved or is_run(inside, head)


def outputs_of(source: Source) -> tuple[str, ...]:
    """The folders of an archive that this tool wrote; DataError where it is nothing else."""
    found = _among(source.names, lambda row: source.head(row, HEAD))
    if "" in found:
        raise refuse_run(source.where)
    return tuple(found)


def _among(names: Sequence[str], head: Callable[[int], bytes]) -> list[str]:
    together = "\n".join(names)
    if not any(mark in together for mark in MARKS):
        return []  # said of a million names at once
    rows = {name: row for row, name in enumerate(names)}
    found = []
    for folder in {name.rpartition("/")[0] for name in names if name.rpartition("/")[2] in MARKS}:
        before = f"{folder}/" if folder else ""
        inside = {n[len(before) :].partition("/")[0] for n in names if n.startswith(before)}

        def start(name: str, before: str = before) -> bytes:
            return head(rows[before + name]) if before + name in rows else b""

        if is_output(inside, start) if folder else is_run(inside, start):
            found.append(folder)
    return sorted(one for one in found if not _within(one, found))


def _within(folder: str, others: Iterable[str]) -> bool:
    return any(other != folder and lies_in(f"{folder}/", [other]) for other in others)


def lies_in(name: str, folders: Sequence[str]) -> bool:
    """Whether a path lies in one of these folders."""
    return any(not folder or name.startswith(f"{folder}/") for folder in folders)


def outputs_note(folders: Sequence[str]) -> tuple[str, ...]:
    """The sentence about the folders that are not read."""
    if not folders:
        return ()
    what = (
        "A folder that unfreeze wrote is"
        if len(folders) == 1
        else (f"{len(folders):,} folders that unfreeze wrote are")
    )
    return (f"{what} not read as data: {', '.join(folders[:3])}{', ...' * (len(folders) > 3)}.",)


def refuse_run(where: str) -> DataError:
    """What to say of data that is a run's folder."""
    return DataError(
        f"{where} is the folder of a run, not data.", "Name the folder or archive of the images."
    )
