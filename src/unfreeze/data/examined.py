"""What `scan` found of each row of a source, kept between runs beside its fingerprint."""

import io
import json
import zipfile

import numpy as np

from unfreeze.data.duplicates import Signatures
from unfreeze.data.examine import Examination, Note
from unfreeze.data.sources import Source
from unfreeze.data.sources.several import SeveralSource
from unfreeze.data.verdicts import UNKNOWN, USABLE, Verdict, Verdicts, within
from unfreeze.runtime import atomic

_ROW = np.dtype([("known", "?"), ("digest", "V16"), ("keras", "?")])
FORMAT = 3  # of the file, and of how images are examined


class Examined:
    """The examinations of a source's rows; their verdicts are those that every run goes by."""

    def __init__(self, source: Source) -> None:
        self.verdicts = Verdicts(source, sign=True)
        self.path = self.verdicts.path.with_suffix(".scan.npz")
        self.table = np.zeros(len(source), _ROW)
        self.notes: dict[int, tuple[Note, ...]] = {}
        self._passing: set[int] = set()
        spans = source.spans() if isinstance(source, SeveralSource) else []
        self._parts = [(Examined(part), span) for part, span in spans]
        self._load()

    def set(self, row: int, found: Examination) -> None:
        """Notes an examination, and its verdict."""
        entry = self.table[row]
        entry["known"], entry["keras"] = True, found.keras
        entry["digest"] = np.void(found.digest.ljust(16, b"\0"))
        if found.notes:
            self.notes[row] = found.notes
        if found.passing:
            self._passing.add(row)
        why = found.reason, found.detail, found.passing
        self.verdicts.set(row, Verdict(found.height, found.width, *why, found.signature))

    @property
    def signatures(self) -> Signatures:
        """Of all rows."""
        if self.verdicts.signatures is None:
            raise ValueError("these verdicts have no signatures")
        return self.verdicts.signatures

    def take_over(self, other: "Examined") -> None:
        """What `other` knows of files with the same names: of the same data, less or more of it."""
        rows = {name: row for row, name in enumerate(other.verdicts.source.names)}
        for row, name in enumerate(self.verdicts.source.names):
            old = rows.get(name)
            if old is None or not other.table["known"][old] or old in other._passing:
                continue
            self.table[row] = other.table[old]
            self.signatures[row] = other.signatures[old]
            self.verdicts.states[row] = other.verdicts.states[old]
            self.verdicts.sizes[row] = other.verdicts.sizes[old]
            if (why := other.verdicts.reasons.get(old)) is not None:
                self.verdicts.reasons[row] = why
            if old in other.notes:
                self.notes[row] = other.notes[old]

    def save(self) -> None:
        """Writes verdicts and examinations, each whole or not at all."""
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
        notes = {str(row): told for row, told in self.notes.items() if table["known"][row]}
        buffer = io.BytesIO()
        held = np.frombuffer(json.dumps(notes).encode(), np.uint8)
        np.savez_compressed(buffer, table=table.view(np.uint8), notes=held, format=FORMAT)
        atomic.write_bytes(self.path, buffer.getvalue())

    def _load(self) -> None:
        for part, span in self._parts:
            self.table[span] = part.table
            self.notes |= {span.start + row: told for row, told in part.notes.items()}
        if not self._parts:
            self._read()

    def _read(self) -> None:
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as held:
                table, version = held["table"], int(held["format"])
                notes = json.loads(held["notes"].tobytes())
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return  # none, or a damaged one: nothing is known
        if version != FORMAT or table.nbytes != self.table.nbytes:
            return
        self.table = table.view(_ROW).copy()
        # without its verdict and its signature an examination is worth nothing
        states, signed = self.verdicts.states, self.signatures["known"]
        self.table["known"] &= (states != UNKNOWN) & ((states != USABLE) | signed)
        self.notes = {int(row): tuple(Note(*note) for note in told) for row, told in notes.items()}
