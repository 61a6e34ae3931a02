"""What is known about the files of a source, kept between runs beside its fingerprint."""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from unfreeze.data.cache import cache_folder
from unfreeze.data.decode import DECODER
from unfreeze.data.duplicates import SIGNATURE, Signature, Signatures
from unfreeze.data.leftout import list_of, read_list
from unfreeze.data.sources import Source
from unfreeze.data.sources.several import SeveralSource
from unfreeze.data.undecodable import Reason
from unfreeze.runtime import atomic

UNKNOWN, USABLE, UNUSABLE = range(3)
FORMAT = 1  # of signatures, in their file and as they are made
Kept = TypeVar("Kept")


class Verdict(NamedTuple):
    """One file: its size in pixels, or the reason it gives none.

    `passing`: reading failed, not decoding; such a verdict is not kept for another run.
    `signature`: of a usable image, where signatures are wanted.
    """

    height: int
    width: int
    reason: Reason | None = None
    detail: str = ""
    passing: bool = False
    signature: Signature | None = None


class Verdicts:
    """A verdict for each row of a source: UNKNOWN, USABLE with its size, or UNUSABLE with why.

    With `sign` also `signatures`, an array of SIGNATURE by row; else that is None. They are in a
    file of their own: 266 bytes an image, which only who compares images has to read.
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
        # of several sources each keeps its own, so that no combination reads anything twice
        spans = source.spans() if isinstance(source, SeveralSource) else []
        self._parts = [(Verdicts(part, sign=sign), span) for part, span in spans]
        self._load()
        self._leave_out()

    def set(self, row: int, verdict: Verdict) -> None:
        """Notes a verdict."""
        self.sizes[row] = verdict.height, verdict.width
        self.states[row] = USABLE if verdict.reason is None else UNUSABLE
        if verdict.reason is not None:
            self.reasons[row] = verdict.reason, verdict.detail
        if verdict.passing:
            self._passing.add(row)
        if self.signatures is not None and verdict.signature is not None:
            verdict.signature.into(self.signatures, row)

    def lacking(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of `rows` have to be decoded: of unknown verdict, or without a signature."""
        states = self.states[rows]
        found: npt.NDArray[np.bool_] = states == UNKNOWN
        if self.signatures is not None:
            found |= (states == USABLE) & ~self.signatures["known"][rows]
        return found

    def save(self, *, signatures: bool = True) -> None:
        """Writes them, each file whole or not at all; the signatures only where that is said."""
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
        kept = sorted((row, *why) for row, why in self.reasons.items() if states[row] == UNUSABLE)
        reasons = json.dumps(kept)
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
        """The file of the signatures."""
        # of deep values a signature follows from how they are shown
        word = self.source.intensity
        other = word not in ("auto", "image")
        how = f".{hashlib.sha256(word.encode()).hexdigest()[:8]}" if other else ""
        return self.path.with_suffix(f"{how}.signatures.npz")

    def _leave_out(self) -> None:
        """What the list beside the source names is not used, whatever it is."""
        path = list_of(self.source)
        lines = read_list(path) if path is not None else {}
        if not lines:
            return
        rows = {name: row for row, name in enumerate(self.source.names)}
        for name, (reason, detail) in lines.items():
            if (row := rows.get(name)) is not None:
                why = f"{reason}: {detail}" if detail else reason
                # not for another run: its own list says
                self.set(row, Verdict(0, 0, "left out", why, passing=True))

    def _load(self) -> None:
        for part, span in self._parts:
            self.states[span], self.sizes[span] = part.states, part.sizes
            self.reasons |= {span.start + row: why for row, why in part.reasons.items()}
            self._passing |= {span.start + row for row in part._passing}
            if self.signatures is not None and part.signatures is not None:
                self.signatures[span] = part.signatures
        if not self._parts:
            self._read()

    def _read(self) -> None:
        try:
            with (
                self.path.open("rb") as file,  # np.load leaves a damaged file open
                np.load(file, allow_pickle=False) as held,
            ):
                states, sizes = held["states"], held["sizes"]
                reasons = json.loads(held["reasons"].tobytes())
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return  # none, or a damaged one: nothing is known
        if states.shape == self.states.shape and sizes.shape == self.sizes.shape:
            self.states, self.sizes = states, sizes
            self.reasons = {row: (reason, detail) for row, reason, detail in reasons}
            self._read_signatures()

    def _read_signatures(self) -> None:
        if self.signatures is None:
            return
        try:
            with self.signed.open("rb") as file, np.load(file, allow_pickle=False) as held:
                table, version = held["signatures"], int(held["format"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return  # none, or a damaged one: they are made again
        if version == FORMAT and table.nbytes == self.signatures.nbytes:
            self.signatures = table.view(SIGNATURE).copy()


def within(by_row: Mapping[int, Kept], span: slice) -> dict[int, Kept]:
    """What belongs to the rows of `span`, by the row counted from its start."""
    return {row - span.start: what for row, what in by_row.items() if span.start <= row < span.stop}


def _key(source: Source) -> str:
    # another decoder may judge otherwise
    word = f"{source.fingerprint()} {DECODER}"
    if "@" in source.intensity:  # a file may lack the channels that are asked for
        word += source.intensity.partition("@")[2]
    return hashlib.sha256(word.encode()).hexdigest()[:40]
