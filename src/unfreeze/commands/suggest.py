"""`suggest`: which images to label next."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt

from unfreeze.checkpoints.model_file import TRAINED_IMAGES, model_folder, read_card
from unfreeze.config.commands import SuggestSettings
from unfreeze.config.field import inputs_of
from unfreeze.config.layering import load_settings
from unfreeze.config.shared import Data, data_name, label_arguments
from unfreeze.data.index.index import TEST, VAL, Index, build_index
from unfreeze.data.index.mask_pairs import has_masks
from unfreeze.data.sources.open import open_source
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
    PER_CLASS,
    Picker,
    clustering_space,
    margin_uncertainty,
    pick_typical,
    pick_uncertain,
    random_order,
)
from unfreeze.models.text import is_text_arch
from unfreeze.reports.results_data import suggest_display
from unfreeze.runs.inference import Signed, feature_network, on_device, readers_of, run_inference
from unfreeze.runs.label_table import check_label_table, write_label_table
from unfreeze.runs.python_call import python_call
from unfreeze.runtime.console import Console, pluralised
from unfreeze.runtime.display import Display, Displayed
from unfreeze.runtime.isolation import isolated
from unfreeze.runtime.notebook import python_console
from unfreeze.transfer.calibration import apply_temperature
from unfreeze.transfer.predictor import FeaturesAndLogits, InferenceNetwork, load_classifier

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, repr=False)
class SuggestResult(Displayed):
    """The written table. `by`: how the images for training were chosen, for which `reason`.

    `images`: in DATA, of which `labelled` have a label, `unreadable` cannot be read and
    `near_duplicates` were left out, because an image like them is labelled or suggested.
    `suggestions`: `path` and `split` (train or test) in the order of the table.
    """

    out: str
    data: str
    by: str
    reason: str
    images: int
    labelled: int
    unreadable: int
    near_duplicates: int
    train: int
    test: int
    suggestions: list[dict[str, str]]

    def display(self) -> Display:
        """The content to display on a console or in a notebook."""
        return suggest_display(self)

    def rows(self) -> list[dict[str, Any]]:
        """One row per suggested image: `path`, `split`."""
        return [dict(suggestion) for suggestion in self.suggestions]


@python_call(SuggestSettings)
def suggest(
    run: str | PathLike[str],
    data: Data,
    out: str | PathLike[str],
    *,
    progress: bool | None = None,
    **settings: Any,
) -> SuggestResult:
    """Write the images of `data` to label next to the CSV file `out`, the most useful first.

    Columns: `path`, `label` (empty, to be filled in) and `split`: `test` for a random tenth, which
    makes an honest test set, and `train`. UsageError if the budget exceeds the unlabelled images,
    or if `out` holds labels; DataError if all images are labelled.
    """
    values = {"run": str(run), "data": data, "out": str(out), **settings}
    return run_suggest(load_settings(SuggestSettings, values), python_console(progress))


@isolated()
def run_suggest(settings: SuggestSettings, console: Console) -> SuggestResult:
    """The same from a settings object."""
    s = settings
    if s.budget is None:
        raise UsageError("suggest needs a budget.", "Add --budget N, the number of images.")
    if not s.out:
        raise UsageError("suggest needs an output file.", "Add --out LABELS.csv.")
    out = check_label_table(s.out, inputs_of(s))  # check before the work, not after
    network, classes = _network(s, console)
    pool = _pool(s, network, console)
    by, reason = _method(s, pool, classes)
    signed = Signed(readers_of(pool.index))
    outputs = run_inference(
        on_device(network, s.device, s.precision),
        pool.index.paths,
        signed.reads,
        batch_size=s.batch_size,
        console=console,
    )
    labelled, values = int(pool.labelled.sum()), outputs.values
    pool = pool.take(outputs.kept)
    signatures = signed.signatures[outputs.kept]
    uncertainty = None
    if classes:
        scores = apply_temperature(values[:, -classes:], network.card.temperature)
        uncertainty = margin_uncertainty(scores.softmax(dim=1).numpy())
    features = values[:, : values.shape[1] - classes].numpy()
    train, test = _choose(s, pool, signatures, by, features, uncertainty)
    rows = _interleaved(pool.index.paths, train.picks, test.picks)
    write_label_table(out, rows)
    if len(rows) < s.budget:
        console.warn(
            f"{pluralised(len(rows), 'image is', 'images are')} suggested instead of "
            f"{s.budget:,}: the others cannot be read, or are near-duplicates of labelled or "
            "suggested images."
        )
    return SuggestResult(
        out=s.out,
        data=data_name(s.data),
        by=by,
        reason=reason,
        images=len(signed.reads),
        labelled=labelled,
        unreadable=len(signed.reads) - len(outputs.kept),
        near_duplicates=int((pool.candidates & ~train.free).sum()) - len(rows),
        train=len(train.picks),
        test=len(test.picks),
        suggestions=[{"path": path, "split": split} for path, _, split in rows],
    )


def _choose(
    s: SuggestSettings,
    pool: "_Pool",
    signatures: Signatures,
    by: str,
    features: npt.NDArray[np.float32],
    uncertainty: npt.NDArray[np.float64] | None,
) -> tuple[Picker, Picker]:
    """The picks for training and for the test set.

    The test set is drawn first, from all unlabelled images and without their features.
    """
    budget, order = s.budget or 0, random_order(len(pool.index), seed=s.seed)
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
    space = clustering_space(features, seed=s.seed)
    if by == "uncertain" and uncertainty is not None:
        pick_uncertain(space, uncertainty, train, seed=s.seed)
    else:
        pick_typical(space, pool.trained, train, seed=s.seed)
    return train, test


@dataclass(frozen=True)
class _Pool:
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

    def take(self, kept: npt.NDArray[np.int64]) -> "_Pool":
        """The images at these positions."""
        return replace(
            self,
            index=self.index.take(kept),
            keys=self.keys[kept],
            labelled=self.labelled[kept],
            candidates=self.candidates[kept],
            trained=self.trained[kept],
        )


def _pool(s: SuggestSettings, network: InferenceNetwork, console: Console) -> _Pool:
    """DataError if every image is labelled, UsageError if fewer than the budget are not."""
    source = open_source(s.data, data_root=s.data_root, console=console)
    network.preprocess.attach(source)
    if has_masks(source):
        raise UsageError(
            f"{source.where} holds masks, and suggest is for labels in a table.",
            "Give the folder of the images alone.",
        )
    index = build_index(source, strange_classes=True, **label_arguments(s))
    for note in index.notes:
        console.say(note)
    # in a list the order of the lines is the user's; the choice must not depend on it
    index = index.take(np.argsort(np.array(index.paths, np.str_), kind="stable"))
    keys, labelled, known = content_keys(index), _labelled(index), 0
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
    return _Pool(index, keys, labelled, candidates, trained, max(known, int(trained.sum())))


def _labelled(index: Index) -> Mask:
    """Which images have a label, also one that is no class (several labels in one cell)."""
    written = index.columns.get("label")
    if written is None and index.source.labels is not None:
        written = [index.source.labels[row] for row in index.rows.tolist()]
    mask: Mask = index.labels >= 0
    return mask if written is None else mask | np.array([bool(text.strip()) for text in written])


def _network(s: SuggestSettings, console: Console) -> tuple[InferenceNetwork, int]:
    """The network and its number of classes C; outputs are features and, if C > 0, C logits."""
    if model_folder(s.run) is not None:
        card = read_card(s.run)
        if is_text_arch(card.arch):
            raise UsageError(
                f"{s.run} is a model of texts, and suggest is for images.",
                "Give a run, or weights, of images.",
            )
        if card.kind == "classifier" and len(card.classes) > 1:
            fine_tuned = load_classifier(s.run)
            both = FeaturesAndLogits(fine_tuned.network, fine_tuned.head)
            return InferenceNetwork(both, card, fine_tuned.preprocess), len(card.classes)
    return feature_network(s.run, s.arch, console), 0


def _method(s: SuggestSettings, pool: _Pool, classes: int) -> tuple[str, str]:
    """(how to choose, why). The limits of `auto` were measured: docs/RESULTS.md."""
    if s.by == "uncertain" and not classes:
        raise UsageError(
            f"--by uncertain needs a model with classes, and {s.run} has none.",
            "Give a fine-tuned run, or use --by typical.",
        )
    if s.by != "auto":
        return s.by, "set by --by"
    if not pool.known:
        return "typical", "no image has a label yet"
    labels = pluralised(pool.known, "label", "labels")
    if not classes:
        return "typical", f"{labels}, but no fine-tuned model that could be uncertain"
    few = pool.known < PER_CLASS * classes
    share = f"{labels} for {classes:,} classes, {'fewer than' if few else 'at least'} {PER_CLASS}"
    return ("typical" if few else "uncertain"), f"{share} for each"


def _interleaved(
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
