"""The cache of the image checks of `scan`, by row of a source."""

import io
import json
import zipfile

import numpy as np

from unfreeze.data.sources.concat import ConcatSource
from unfreeze.data.sources.source import Source
from unfreeze.data.validate.checks import ImageCheck, ImageNote
from unfreeze.data.validate.duplicates import Signatures
from unfreeze.data.validate.verdicts import UNKNOWN, USABLE, FileVerdict, VerdictCache, within
from unfreeze.runtime import atomic

_ROW = np.dtype([("known", "?"), ("digest", "V16"), ("keras", "?")])
FORMAT = 3  # version of the file and of the checks


class CheckCache:
    """The check results of all rows of a source, with the verdicts that all runs share."""

    def __init__(self, source: Source) -> None:
        self.verdicts = VerdictCache(source, sign=True)
        self.path = self.verdicts.path.with_suffix(".scan.npz")
        self.table = np.zeros(len(source), _ROW)
        self.notes: dict[int, tuple[ImageNote, ...]] = {}
        self._passing: set[int] = set()
        spans = source.spans() if isinstance(source, ConcatSource) else []
        self._parts = [(CheckCache(part), span) for part, span in spans]
        self._load()

    def set(self, row: int, result: ImageCheck) -> None:
        """Stores the result of a check and its verdict."""
        entry = self.table[row]
        entry["known"], entry["keras"] = True, result.keras
        entry["digest"] = np.void(result.digest.ljust(16, b"\0"))
        if result.notes:
            self.notes[row] = result.notes
        if result.passing:
            self._passing.add(row)
        failure = result.reason, result.detail, result.passing
        self.verdicts.set(row, FileVerdict(result.height, result.width, *failure, result.signature))

    @property
    def signatures(self) -> Signatures:
        """Perceptual hashes of all rows."""
        if self.verdicts.signatures is None:
            raise ValueError("these verdicts have no signatures")
        return self.verdicts.signatures

    def take_over(self, other: "CheckCache") -> None:
        """Copies the results of files with the same names from another version of the dataset."""
        rows = {name: row for row, name in enumerate(other.verdicts.source.names)}
        for row, name in enumerate(self.verdicts.source.names):
            old = rows.get(name)
            if old is None or not other.table["known"][old] or old in other._passing:
                continue
            self.table[row] = other.table[old]
            self.signatures[row] = other.signatures[old]
            self.verdicts.states[row] = other.verdicts.states[old]
            self.verdicts.sizes[row] = other.verdicts.sizes[old]
            if (reason := other.verdicts.reasons.get(old)) is not None:
                self.verdicts.reasons[row] = reason
            if old in other.notes:
                self.notes[row] = other.notes[old]

    def save(self) -> None:
        """Writes verdicts and check results, each file atomically."""
        self.verdicts.save()
        for part, span in self._parts:
            part.table, part.notes = self.table[span], within(self.notes, span)
            part._passing = set(within(dict.fromkeys(self._passing), span))
            part._write()
        if not self._parts:
            self._write()

    def _write(self) -> None:
        table = self.table.copy()
        table["known"][list(self._passing)] = False
        notes = {
            str(row): row_notes for row, row_notes in self.notes.items() if table["known"][row]
        }
        buffer = io.BytesIO()
        encoded = np.frombuffer(json.dumps(notes).encode(), np.uint8)
        np.savez_compressed(buffer, table=table.view(np.uint8), notes=encoded, format=FORMAT)
        atomic.write_bytes(self.path, buffer.getvalue())

    def _load(self) -> None:
        for part, span in self._parts:
            self.table[span] = part.table
            self.notes |= {span.start + row: row_notes for row, row_notes in part.notes.items()}
        if not self._parts:
            self._read()

    def _read(self) -> None:
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                table, version = arrays["table"], int(arrays["format"])
                notes = json.loads(arrays["notes"].tobytes())
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return  # missing or damaged: start empty
        if version != FORMAT or table.nbytes != self.table.nbytes:
            return
        self.table = table.view(_ROW).copy()
        # results without a verdict and a signature are discarded
        states, has_signature = self.verdicts.states, self.signatures["known"]
        self.table["known"] &= (states != UNKNOWN) & ((states != USABLE) | has_signature)
        self.notes = {
            int(row): tuple(ImageNote(*note) for note in row_notes)
            for row, row_notes in notes.items()
        }
