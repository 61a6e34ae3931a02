"""Text layout for terminals: wrapping, tables, commands. Words are never broken.

Widths are in terminal cells: a Chinese character and most emoji take two.
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from unfreeze.runtime import atomic
from unfreeze.text import as_text, has_surrogates, without_surrogates

GAP = 2  # spaces between columns
NARROW = 18  # minimum cells of a text column
LONGEST = 28  # cells of a word in a table; longer ones, mostly paths, are shortened
# a command at the end of a sentence, and its words; quoted strings are one word
COMMAND = re.compile(r"^(.*?[:;] )(unfreeze [a-z]+(?: .*)?)$", re.DOTALL)
WORD = re.compile(r"""(?:'[^']*'|"[^"]*"|\S)+""")


def cell_width(text: str) -> int:
    """Width of `text` in terminal cells."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def padded(text: str, width: int, *, right: bool = False) -> str:
    """`text` padded with spaces to `width` cells."""
    space = " " * max(0, width - cell_width(text))
    return space + text if right else text + space


def wrapped(text: str, width: int | None) -> list[str]:
    """The lines of `text`, each at most `width` cells unless a single word is longer.

    Continuation lines keep the indentation of the first. None: no limit.
    """
    lines: list[str] = []
    for line in text.split("\n"):
        if width is None or cell_width(line) <= width:
            lines.append(line.rstrip())
            continue
        words = line.split()
        indent = line[: len(line) - len(line.lstrip())]
        lines += _filled(words, width, indent)
    return lines


def _filled(words: Sequence[str], width: int, indent: str) -> list[str]:
    lines, line = [], indent
    for word in words:
        joined = f"{line} {word}" if line.strip() else indent + word
        if line.strip() and cell_width(joined) > width:
            lines.append(line)
            joined = indent + word
        line = joined
    return [*lines, line]


def shortened(word: str, limit: int) -> str:
    """A word shortened to `limit` cells: a path to its last parts, others to both ends."""
    if cell_width(word) <= limit:
        return word
    tail = ""
    for part in reversed(word.split("/")):
        longer = f"/{part}{tail}"
        if cell_width(longer) + 1 > limit:
            break
        tail = longer
    half = (limit - 1) // 2
    return f"…{tail}" if tail else f"{word[:half]}…{word[-half:]}"


def wrapped_with_command(text: str, width: int | None) -> list[str]:
    """The lines of `text` for a terminal: prose is wrapped, a command at its end can be pasted."""
    if width is None or cell_width(text) <= width:
        return text.split("\n")
    match = COMMAND.match(text)
    if match is None:
        return wrapped(text, width)
    return [*wrapped(match[1].rstrip(), width), *command_lines(match[2], width)]


def command_lines(words: str, width: int | None, *, indent: int = 2) -> list[str]:
    """A command on separate lines, continued with a backslash as in shells."""
    space = " " * indent
    if width is None or cell_width(words) + indent <= width:
        return [space + words]
    lines, line = [], space
    for part in _parts(words):
        joined = f"{line} {part}" if line.strip() else line + part
        if line.strip() and cell_width(joined) + GAP > width:
            lines.append(f"{line} \\")
            joined = f"{space}  {part}"
        line = joined
    return [*lines, line]


def _parts(words: str) -> list[str]:
    """The words of a command, each flag together with its value."""
    parts: list[str] = []
    for word in WORD.findall(words):
        flag = parts[-1] if parts else ""
        if flag.startswith("--") and " " not in flag and not word.startswith("-"):
            parts[-1] = f"{flag} {word}"
        else:
            parts.append(word)
    return parts


@dataclass(frozen=True)
class TextTable:
    """Rows of text under a header; numbers are right-aligned. A row of one cell is a subtitle."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""

    def numeric(self, column: int) -> bool:
        """Whether all non-empty cells of the column are numbers, and there is one."""
        values = [row[column] for row in self.whole if row[column] not in ("", "-")]
        return bool(values) and all(re.match(r"[-+±]?\.?\d", cell) for cell in values)

    @property
    def whole(self) -> list[Sequence[str]]:
        """The rows without subtitles."""
        return [row for row in self.rows if len(row) == len(self.head)]

    def first(self, rows: int) -> "TextTable":
        """The first `rows`, and a row with the number of omitted ones."""
        more = len(self.rows) - rows
        if more <= 0:
            return self
        last = (f"and {more:,} more", *[""] * (len(self.head) - 1))
        return replace(self, rows=[*self.rows[:rows], last])

    def _shortened(self, limit: int) -> "TextTable":
        """The table with words longer than `limit` cells, mostly paths, shortened."""
        rows = [
            [" ".join(shortened(w, limit) for w in cell.split(" ")) for cell in row]
            for row in self.rows
        ]
        return replace(self, rows=rows)

    def lines(self, width: int | None = None) -> list[str]:
        """The header, a rule and the rows in `width` cells; stacked if that is too narrow."""
        if width is not None:
            self = self._shortened(max(LONGEST, width // 3))
        widths = column_widths(self, width)
        if widths is None:
            return _stacked(self, width or 0)
        right = [self.numeric(column) for column in range(len(widths))]
        head = _row(self.head, widths, right)
        lines = [
            line
            for row in self.rows
            for line in (wrapped(row[0], width) if len(row) == 1 else _row(row, widths, right))
        ]
        if not any(self.head):
            return lines
        return [*head, "─" * max(map(cell_width, [*head, *lines])), *lines]


def _row(row: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> list[str]:
    """The lines of a row, with its cells wrapped."""
    columns = [wrapped(cell, wide) for cell, wide in zip(row, widths, strict=True)]
    lines = []
    for index in range(max(map(len, columns))):
        parts = [column[index] if index < len(column) else "" for column in columns]
        shown = [
            padded(part, wide, right=number)
            for part, wide, number in zip(parts, widths, right, strict=True)
        ]
        lines.append((" " * GAP).join(shown).rstrip())
    return lines


def column_widths(table: TextTable, width: int | None) -> list[int] | None:
    """Width of each column in cells; None if they do not fit in `width`."""
    columns = list(zip(table.head, *table.whole, strict=True))
    natural = [max(map(cell_width, column)) for column in columns]
    space = GAP * (len(columns) - 1)
    if width is None or sum(natural) + space <= width:
        return natural
    minimum = [
        natural[index]
        if table.numeric(index)
        else max(
            min(NARROW, max(map(cell_width, column[1:]), default=0)),
            *(_longest_word(cell) for cell in column),
        )
        for index, column in enumerate(columns)
    ]
    free = width - space - sum(minimum)
    if free < 0:
        return None
    widths = list(minimum)
    # narrow columns get their natural width; wider ones share the rest
    order = sorted(range(len(widths)), key=lambda index: natural[index] - minimum[index])
    for number, index in enumerate(order):
        share = free // (len(order) - number)
        extra = min(natural[index] - minimum[index], share)
        widths[index], free = widths[index] + extra, free - extra
    return widths


def _longest_word(text: str) -> int:
    return max(map(cell_width, text.split()), default=0)


def _stacked(table: TextTable, width: int) -> list[str]:
    """Each row as several lines: its first cell, then the others with their column names."""
    lines = []
    for row in table.rows:
        lines += wrapped(row[0], width)
        for name, cell in zip(table.head[1:], row[1:], strict=False):
            if cell:
                lines += wrapped(f"  {name}: {cell}" if name else f"  {cell}", width)
    return lines


def facts(pairs: Sequence[tuple[str, str]], width: int | None = None) -> list[str]:
    """`name  value` lines; long values are wrapped in their column."""
    left = max((cell_width(name) for name, _ in pairs), default=0)
    lines = []
    for name, value in pairs:
        room = None if width is None else max(NARROW, width - left - GAP)
        first, *rest = wrapped(value, room)
        lines.append(f"{padded(name, left)}{' ' * GAP}{first}".rstrip())
        lines += [" " * (left + GAP) + line for line in rest]
    return lines


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """The rows as CSV; file names with invalid UTF-8 are escaped."""
    buffer = io.StringIO()
    plain = csv.writer(buffer, lineterminator="\n")
    # csv.writer does not quote carriage returns, which csv.reader refuses unquoted
    quoted = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        cells = [as_text(c) if isinstance(c, str) and has_surrogates(c) else c for c in row]
        has_return = any(isinstance(cell, str) and "\r" in cell for cell in cells)
        (quoted if has_return else plain).writerow(cells)
    return buffer.getvalue()


def write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write columns and rows to `path` atomically."""
    atomic.write_text(path, csv_text([columns, *rows]))


def read_csv(path: str | Path) -> list[list[str]]:
    """All rows of a CSV file, the columns first; OSError or csv.Error if it cannot be read.

    Bytes that are not valid UTF-8 are escaped as in file names.
    """
    text = Path(path).read_bytes().decode("utf-8-sig", "surrogateescape")
    rows = csv.reader(io.StringIO(without_surrogates(text), newline=""))
    return [row for row in rows if row]


def read_records(path: str | Path) -> list[dict[str, str]]:
    """The rows as dictionaries by column."""
    rows = read_csv(path)
    return [dict(zip(rows[0], row, strict=False)) for row in rows[1:]]
