"""`suggest`: which images to label next."""

from dataclasses import dataclass
from os import PathLike
from typing import Any

from unfreeze.config.field import inputs_of
from unfreeze.config.labelling import SuggestSettings
from unfreeze.config.layering import load_settings
from unfreeze.config.shared import Data, data_name
from unfreeze.data.sources.open import open_source
from unfreeze.errors import UsageError
from unfreeze.evaluation.calibration import apply_temperature
from unfreeze.evaluation.label_selection import LITTLE_GAIN, PER_CLASS, margin_uncertainty
from unfreeze.reports.results_data import suggest_display
from unfreeze.runs.inference import Signed, on_device, readers_of, run_inference
from unfreeze.runs.labelling.model import network_with_features
from unfreeze.runs.labelling.suggestions import (
    LabelPool,
    check_label_table,
    choose,
    interleaved,
    label_pool,
    write_label_table,
)
from unfreeze.runs.python_call import python_call
from unfreeze.runtime.console import Console, pluralised
from unfreeze.runtime.display import Display, Displayed
from unfreeze.runtime.isolation import isolated
from unfreeze.runtime.notebook import python_console


@dataclass(frozen=True, repr=False)
class SuggestResult(Displayed):
    """The written table. `by`: how the images for training were chosen, for which `reason`.

    `images`: in DATA, of which `labelled` have a label, `unreadable` cannot be read and
    `near_duplicates` were left out, because an image like them is labelled or suggested.
    `suggestions`: `path` and `split` (train or test) in the order of the table.
    """

    out: str
    run: str
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
    network, classes = network_with_features(s.run, s.arch, "suggest", console)
    source = open_source(s.data, data_root=s.data_root, console=console)
    network.preprocess.attach(source)
    pool = label_pool(source, s)
    for note in pool.index.notes:
        console.say(note)
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
        scores = apply_temperature(values[:, :classes], network.card.temperature)
        uncertainty = margin_uncertainty(scores.softmax(dim=1).numpy())
    features = values[:, classes:].numpy()
    train, test = choose(pool, signatures, by, s.budget, features, uncertainty, seed=s.seed)
    rows = interleaved(pool.index.paths, train.picks, test.picks)
    write_label_table(out, rows)
    if len(rows) < s.budget:
        console.warn(
            f"{pluralised(len(rows), 'image is', 'images are')} suggested instead of "
            f"{s.budget:,}: the others cannot be read, or are near-duplicates of labelled or "
            "suggested images."
        )
    return SuggestResult(
        out=s.out,
        run=s.run,
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


def _method(s: SuggestSettings, pool: LabelPool, classes: int) -> tuple[str, str]:
    """(how to choose, why). The limits of `auto` were measured: docs/RESULTS.md."""
    if s.by == "uncertain" and not classes:
        raise UsageError(
            f"--by uncertain needs a model with classes, and {s.run} has none.",
            "Give a fine-tuned run, or use --by typical.",
        )
    if s.by != "auto":
        return s.by, "as given"
    if not pool.known and classes:  # a model folder without the record of its training images
        return "uncertain", f"{s.run} has {classes:,} classes, of how many labels is not known"
    if not pool.known:
        return "typical", "no image has a label yet"
    labels = pluralised(pool.known, "label", "labels")
    if not classes:
        return "typical", f"{labels}, but no fine-tuned model that could be uncertain"
    few = pool.known < PER_CLASS * classes
    share = f"{labels} for {classes:,} classes, {'fewer than' if few else 'at least'} {PER_CLASS}"
    if pool.known >= LITTLE_GAIN * classes:
        share += f" for each; from {LITTLE_GAIN} on, expect about a point more than at random"
        return "uncertain", share
    return ("typical" if few else "uncertain"), f"{share} for each"
