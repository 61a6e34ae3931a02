"""The images that may be labelled next, the choice among them, and the table of `suggest`.

The table is filled in by people and never overwritten then. It goes into `--labels` of other
commands: rows without a label count as unlabelled there.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unfreeze.checkpoints.model_file import TRAINED_IMAGES, model_folder
from unfreeze.config.labelling import SuggestSettings
from unfreeze.config.shared import label_arguments
from unfreeze.data.index.index import TEST, VAL, Index, build_index
from unfreeze.data.index.mask_pairs import has_masks
from unfreeze.data.sources.source import Source
from unfreeze.data.validate.duplicates import (
    Keys,
    Signatures,
    content_keys,
    duplicates_across_splits,
    duplicates_of,
    load_trained_images,
)
from unfreeze.errors import DataError, UsageError
from unfreeze.evaluation.label_selection import (
    Picker,
    clustering_space,
    pick_typical,
    pick_uncertain,
    random_order,
)
from unfreeze.runs.labelling.label_table import COLUMNS
from unfreeze.runtime.console import pluralised
from unfreeze.runtime.output_files import check_output_file, is_csv_with
from unfreeze.runtime.text_layout import read_csv, write_csv

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class LabelPool:
    """The images of DATA in the order of their paths, and what is known about each, [N].

    `candidates`: without a label and not in a validation or test set; `trained`: labelled and in
    neither. `known`: number of labelled images that DATA or the model has.
    """

    index: Index
    keys: Keys
    labelled: Mask
    candidates: Mask
    trained: Mask
    known: int

    def take(self, kept: npt.NDArray[np.int64]) -> "LabelPool":
        """The images at these positions."""
        return replace(
            self,
            index=self.index.take(kept),
            keys=self.keys[kept],
            labelled=self.labelled[kept],
            candidates=self.candidates[kept],
            trained=self.trained[kept],
        )


def label_pool(source: Source, s: SuggestSettings) -> LabelPool:
    """The images of a source; DataError if all are labelled, UsageError if too few are not."""
    if has_masks(source):
        raise UsageError(
            f"{source.where} holds masks, and suggest is for labels in a table.",
            "Give the folder of the images alone.",
        )
    index = build_index(source, strange_classes=True, whole=True, **label_arguments(s))
    # in a list the order of the lines is the user's; the choice must not depend on it
    index = index.take(sorted(range(len(index)), key=index.paths.__getitem__))
    keys, labelled, known = content_keys(index), _labelled(index, s), 0
    folder = model_folder(s.run)
    record = load_trained_images(folder / TRAINED_IMAGES) if folder is not None else None
    if record is not None:  # images that the run was fine-tuned on have labels somewhere
        labelled |= np.isin(keys, np.concatenate([record.train, record.val]))
        known = len(record.train) + len(record.val)
    held_out = np.isin(index.splits, (VAL, TEST))
    candidates, count = ~labelled & ~held_out, int((~labelled & ~held_out).sum())
    if not count:
        raise DataError(
            f"{source.where} has no image left to label.",
            "Give images without labels, or a table of the labels so far with --labels.",
        )
    if s.budget is not None and s.budget > count:
        raise UsageError(
            f"--budget {s.budget} is more than the {count:,} unlabelled images.",
            f"Use --budget {count}, or add images.",
        )
    trained = labelled & ~held_out
    return LabelPool(index, keys, labelled, candidates, trained, max(known, int(trained.sum())))


def _labelled(index: Index, s: SuggestSettings) -> Mask:
    """Which images have a label, also one that is no class (several labels in one cell)."""
    written = index.columns.get("label")
    own = s.labels is None and s.label_column is None
    if own and index.source.labels is not None:
        written = [index.source.labels[row] for row in index.rows.tolist()]
    mask: Mask = index.labels >= 0
    return mask if written is None else mask | np.array([bool(text.strip()) for text in written])


def choose(
    pool: LabelPool,
    signatures: Signatures,
    by: str,
    budget: int,
    features: npt.NDArray[np.float32],
    uncertainty: npt.NDArray[np.float64] | None,
    *,
    seed: int,
) -> tuple[Picker, Picker]:
    """The picks for training and for the test set.

    The test set is drawn first, from all unlabelled images and without their features.
    """
    order = random_order(len(pool.index), seed=seed)
    alike = partial(duplicates_of, keys=pool.keys, table=signatures)
    # neither suggested: what is like a labelled image, or like one of a validation or test set
    sides = np.where(pool.candidates, 2, 1)
    new = duplicates_across_splits(sides, pool.keys, signatures) < 0
    test = Picker(pool.candidates & new, (budget + 5) // 10, alike)  # half an image is rounded up
    test.fill(order)
    train = Picker(test.free, budget - len(test.picks), alike)
    if by == "random":
        train.fill(order)
        return train, test
    space = clustering_space(features, seed=seed)
    if by == "uncertain" and uncertainty is not None:
        pick_uncertain(space, uncertainty, train, seed=seed)
    else:
        pick_typical(space, pool.trained, train, seed=seed)
    return train, test


def interleaved(
    paths: Sequence[str], train: Sequence[int], test: Sequence[int]
) -> list[tuple[str, str, str]]:
    """Rows of COLUMNS; test rows at even distances, for those who label only the first rows."""
    total = len(train) + len(test)
    ends = {(number + 1) * total // len(test) - 1 for number in range(len(test))}
    rest, held_out = iter(train), iter(test)
    return [
        (paths[next(held_out)], "", "test") if row in ends else (paths[next(rest)], "", "train")
        for row in range(total)
    ]


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
