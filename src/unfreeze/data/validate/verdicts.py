"""Verdicts on the files of a source (usable or not), cached between runs by its fingerprint."""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from unfreeze.data.cache.folder import cache_folder
from unfreeze.data.images.decode import DECODER
from unfreeze.data.images.errors import Reason
from unfreeze.data.sources.concat import ConcatSource
from unfreeze.data.sources.delimited import read_delimited
from unfreeze.data.sources.remote import is_url
from unfreeze.data.sources.source import Source
from unfreeze.data.validate.duplicates import SIGNATURE, Signature, Signatures
from unfreeze.errors import DataError
from unfreeze.runtime import atomic
from unfreeze.runtime.text_layout import write_csv

ENDING = ".left-out.csv"
# kinds of sources that can have an ignore list
LISTED = ("zip", "tar", "tar.gz", "csv", "parquet", "saved", "shards")
Lines = dict[str, tuple[str, str]]  # path -> (reason, detail)
_FIELDS = ("path", "reason", "detail")


def ignore_list_path(source: Source) -> Path | None:
    """Path of the ignore list of a source; None for folders, URLs and arrays."""
    if is_url(source.where):
        return None
    return Path(str(Path(source.where)) + ENDING) if source.kind in LISTED else None


def read_ignore_list(path: Path) -> Lines:
    """The entries of an ignore list, {} if it does not exist; DataError if it is invalid."""
    if not os.path.isfile(path):  # noqa: PTH113 - False also if the name is too long
        return {}
    # names are written as they are on disk, whatever their bytes
    columns = read_delimited(path, exists=lambda name: True, strip=False).columns
    if "path" not in columns:
        raise DataError(
            f"{path} lists excluded files, but has no column `path`.",
            "Name the columns path,reason,detail, or remove the file.",
        )
    empty = [""] * len(columns["path"])
    rows = zip(
        columns["path"], columns.get("reason", empty), columns.get("detail", empty), strict=True
    )
    return {name: (reason or "left out", detail) for name, reason, detail in rows}


def write_ignore_list(path: Path, lines: Mapping[str, tuple[str, str]]) -> None:
    """Writes the ignore list; without entries the file is deleted."""
    if not lines:
        path.unlink(missing_ok=True)
        return
    write_csv(path, _FIELDS, ((name, *reason) for name, reason in lines.items()))


UNKNOWN, USABLE, UNUSABLE = range(3)
FORMAT = 1  # version of the signatures and of their file
Value = TypeVar("Value")


class FileVerdict(NamedTuple):
    """The size of an image in pixels, or the reason why it is unusable.

    `passing`: reading failed, not decoding; such verdicts are not cached. `signature`: perceptual
    hash of a usable image, if requested.
    """

    height: int
    width: int
    reason: Reason | None = None
    detail: str = ""
    passing: bool = False
    signature: Signature | None = None


class VerdictCache:
    """The verdict on each row: UNKNOWN, USABLE with a size, or UNUSABLE with a reason.

    `sign`: also `signatures`, an array of SIGNATURE by row, else None. They have a separate file
    (266 bytes per image), read only when images are compared.
    """

    def __init__(self, source: Source, *, sign: bool = False) -> None:
        self.source = source
        self.path = cache_folder() / "checks" / f"{_key(source)}.npz"
        count = len(source)
        self.states: npt.NDArray[np.uint8] = np.zeros(count, np.uint8)
        self.sizes: npt.NDArray[np.int32] = np.zeros((count, 2), np.int32)
        self.signatures: Signatures | None = np.zeros(count, SIGNATURE) if sign else None
        self.reasons: dict[int, tuple[Reason, str]] = {}
        self._passing: set[int] = set()
        # each of several sources has its own file, so that no image is checked twice
        spans = source.spans() if isinstance(source, ConcatSource) else []
        self._parts = [(VerdictCache(part, sign=sign), span) for part, span in spans]
        self._load()
        self._apply_ignore_list()

    def set(self, row: int, verdict: FileVerdict) -> None:
        """Stores a verdict."""
        self.sizes[row] = verdict.height, verdict.width
        self.states[row] = USABLE if verdict.reason is None else UNUSABLE
        if verdict.reason is not None:
            self.reasons[row] = verdict.reason, verdict.detail
        if verdict.passing:
            self._passing.add(row)
        if self.signatures is not None and verdict.signature is not None:
            verdict.signature.into(self.signatures, row)

    def lacking(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Mask of `rows` that must be decoded: unknown verdict, or missing signature."""
        states = self.states[rows]
        incomplete: npt.NDArray[np.bool_] = states == UNKNOWN
        if self.signatures is not None:
            incomplete |= (states == USABLE) & ~self.signatures["known"][rows]
        return incomplete

    def save(self, *, signatures: bool = True) -> None:
        """Writes the verdicts, and the signatures unless disabled; each file atomically."""
        for part, span in self._parts:
            part.states, part.sizes = self.states[span], self.sizes[span]
            part.reasons = within(self.reasons, span)
            if self.signatures is not None:
                part.signatures = self.signatures[span]
            part._passing = set(within(dict.fromkeys(self._passing), span))
            part.save(signatures=signatures)
        if not self._parts:
            self._write(signatures)

    def _write(self, signatures: bool) -> None:
        buffer = io.BytesIO()
        states = self.states.copy()
        states[list(self._passing)] = UNKNOWN
        entries = sorted(
            (row, *reason) for row, reason in self.reasons.items() if states[row] == UNUSABLE
        )
        reasons = json.dumps(entries)
        np.savez_compressed(
            buffer,
            states=states,
            sizes=self.sizes,
            reasons=np.frombuffer(reasons.encode(), np.uint8),
        )
        atomic.write_bytes(self.path, buffer.getvalue())
        if self.signatures is not None and signatures:
            with atomic.replacing(self.signed) as path, path.open("wb") as stream:
                np.savez(stream, signatures=self.signatures.view(np.uint8), format=FORMAT)

    @property
    def signed(self) -> Path:
        """Path of the file of signatures."""
        # signatures of high-bit-depth images depend on the intensity rule
        rule = self.source.intensity
        not_default = rule not in ("auto", "image")
        suffix = f".{hashlib.sha256(rule.encode()).hexdigest()[:8]}" if not_default else ""
        return self.path.with_suffix(f"{suffix}.signatures.npz")

    def _apply_ignore_list(self) -> None:
        """Marks the files on the ignore list of the source as unusable."""
        path = ignore_list_path(self.source)
        lines = read_ignore_list(path) if path is not None else {}
        if not lines:
            return
        rows = {name: row for row, name in enumerate(self.source.names)}
        for name, (reason, detail) in lines.items():
            if (row := rows.get(name)) is not None:
                message = f"{reason}: {detail}" if detail else reason
                # not cached: each run reads the list
                self.set(row, FileVerdict(0, 0, "left out", message, passing=True))

    def _load(self) -> None:
        for part, span in self._parts:
            self.states[span], self.sizes[span] = part.states, part.sizes
            self.reasons |= {span.start + row: reason for row, reason in part.reasons.items()}
            self._passing |= {span.start + row for row in part._passing}
            if self.signatures is not None and part.signatures is not None:
                self.signatures[span] = part.signatures
        if not self._parts:
            self._read()

    def _read(self) -> None:
        try:
            with (
                self.path.open("rb") as file,  # np.load does not close a damaged file
                np.load(file, allow_pickle=False) as arrays,
            ):
                states, sizes = arrays["states"], arrays["sizes"]
                reasons = json.loads(arrays["reasons"].tobytes())
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return  # missing or damaged: start empty
        if states.shape == self.states.shape and sizes.shape == self.sizes.shape:
            self.states, self.sizes = states, sizes
            self.reasons = {row: (reason, detail) for row, reason, detail in reasons}
            self._read_signatures()

    def _read_signatures(self) -> None:
        if self.signatures is None:
            return
        try:
            with self.signed.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                table, version = arrays["signatures"], int(arrays["format"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return  # missing or damaged: compute them again
        if version == FORMAT and table.nbytes == self.signatures.nbytes:
            self.signatures = table.view(SIGNATURE).copy()


def within(by_row: Mapping[int, Value], span: slice) -> dict[int, Value]:
    """The entries of the rows in `span`, with rows relative to its start."""
    return {
        row - span.start: value for row, value in by_row.items() if span.start <= row < span.stop
    }


def _key(source: Source) -> str:
    # verdicts depend on the decoder
    description = f"{source.fingerprint()} {DECODER}"
    if "@" in source.intensity:  # a file may lack the selected channels
        description += source.intensity.partition("@")[2]
    return hashlib.sha256(description.encode()).hexdigest()[:40]
