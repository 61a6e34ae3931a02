"""The table of images to label: written by `suggest`, filled in by people, never overwritten then.

It goes into `--labels` of other commands once labels are filled in; rows without a label count as
unlabelled there.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from unfreeze.errors import UsageError
from unfreeze.runtime.console import pluralised
from unfreeze.runtime.output_files import check_output_file, is_csv_with
from unfreeze.runtime.text_layout import read_csv, write_csv

COLUMNS = ("path", "label", "split")


def check_label_table(path: str, inputs: Iterable[str]) -> Path:
    """The resolved output path; UsageError if it is an input, foreign, or holds labels."""
    out = check_output_file(path, ours=is_csv_with(COLUMNS), inputs=inputs)
    _refuse_labels(out)
    return out


def write_label_table(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Write the rows atomically; UsageError if labels were filled in since the check."""
    _refuse_labels(path)
    write_csv(path, COLUMNS, rows)


def _refuse_labels(path: Path) -> None:
    """UsageError if the table at `path` holds labels, or cannot be read."""
    if not path.is_file():
        return
    try:
        rows = read_csv(path)
    except (OSError, csv.Error) as error:
        raise UsageError(f"--out {path} cannot be read: {error}.", "Name a new file.") from error
    labels = sum(len(row) > 1 and bool(row[1].strip()) for row in rows[1:])
    if labels:
        raise UsageError(
            f"--out {path} holds {pluralised(labels, 'label', 'labels')}, so it was not "
            "overwritten.",
            "Name a new file, and give this one as --labels.",
        )
