"""From `DATA` to the fixed lists of labelled pictures a fine-tuning uses."""

import functools
import hashlib
from dataclasses import dataclass

import numpy as np

from unfreeze.data.census import Census, census
from unfreeze.data.content import HEAD, Keys, content_keys, save_keys
from unfreeze.data.dataset_warnings import Cropped, cropped_away, dataset_warnings
from unfreeze.data.holding import Holding, holding
from unfreeze.data.index import Index, build_index
from unfreeze.data.intensity import reading
from unfreeze.data.pictures import Pictures
from unfreeze.data.preprocess import Preprocess
from unfreeze.data.sample import Sampled, sampled
from unfreeze.data.scan import Problem, check, write_problems_csv
from unfreeze.data.sources.open import open_source
from unfreeze.data.splits import write_split_csv
from unfreeze.runtime.console import Console, worded
from unfreeze.runtime.runfolder import RunFolder
from unfreeze.settings.finetune import FinetuneSettings
from unfreeze.settings.shared import said_of
from unfreeze.transfer.portions import Portions, Positions, Wanted, grouped, labelled, portion


@dataclass(frozen=True)
class Labelled:
    """The labelled pictures of train and val before the check, and some that were looked at."""

    index: Index
    sample: Sampled
    fingerprint: str
    census: Census  # test included

    @property
    def side(self) -> int:
        """Median of the shorter sides, pixels."""
        return self.sample.side

    @property
    def cropped(self) -> Cropped | None:
        """Images so long that their ends are cut off, by the headers of the sample."""
        return self.sample.cropped


@dataclass(frozen=True)
class Checked:
    """What is left after decoding everything once: `train` and `val` as pictures of their own."""

    portions: Portions
    train: Pictures
    val: Pictures
    problems: list[Problem]
    hold: Holding
    cropped: Cropped | None = None  # images so long that their ends are cut off

    def write(self, run: RunFolder) -> None:
        """problems.csv and split.csv: what was left out, and what is used for what."""
        write_problems_csv(run.file("problems.csv"), self.problems)
        write_split_csv(run.file("split.csv"), self.portions.rows())

    @functools.cached_property
    def keys(self) -> dict[str, Keys]:
        """The content keys of train and val, in their order."""
        parts = {"train": self.train.index, "val": self.val.index}
        return {name: content_keys(index) for name, index in parts.items()}

    def digest(self, part: str) -> str:
        """Hex of the pictures of `train` or `val`, in their order, by what is in them.

        Content keys look at the first bytes of a file only: where there are more, names, sizes
        and times of the source are taken in, too.
        """
        index = (self.train if part == "train" else self.val).index
        digest = hashlib.sha256(self.keys[part].tobytes())
        if (index.source.sizes[index.rows] > HEAD).any():
            digest.update(index.source.fingerprint().encode())
        return digest.hexdigest()

    def groups(self, by: str | None) -> Positions | None:
        """A number for each training image, the same where `--group-by` keeps them together."""
        names = grouped(self.portions.index, by)
        if names is None:
            return None
        own = [names[place] for place in self.portions.train.tolist()]
        return np.unique(own, return_inverse=True)[1].astype(np.int64)

    @property
    def copies(self) -> int:
        """How many held-out pictures are among the training ones, too, byte for byte."""
        return int(np.isin(self.keys["val"], self.keys["train"]).sum())

    def write_keys(self, run: RunFolder) -> None:
        """model/pictures.npz: what was trained on and held out, to be known again anywhere."""
        save_keys(run.file("model/pictures.npz"), self.keys)


def read_labels(s: FinetuneSettings, console: Console) -> Labelled:
    """Labels and splits of `s.data`, and the usual size by a sample's headers; decodes nothing."""
    source = open_source(s.data, data_root=s.data_root, fetch=not s.dry_run, console=console)
    everything = build_index(source, **said_of(s))
    index = labelled(everything)
    counted = census(everything)
    for said in (*index.notes, *counted.lines(), *counted.notes()):
        console.say(said)
    for _, warning in dataset_warnings(everything):
        console.warn(warning)
    fingerprint = source.fingerprint()
    if any(said is not None for said in said_of(s).values()):
        fingerprint += _said(everything)
    sample = sampled(index, np.arange(len(index)), reading(None, s.channels))
    return Labelled(index, sample, fingerprint, counted)


def _said(index: Index) -> str:
    """Hex of the labels and splits that something else says of the pictures."""
    digest = hashlib.sha256("\n".join(index.classes).encode("utf-8", "surrogateescape"))
    digest.update(index.labels.tobytes() + index.splits.tobytes())
    return digest.hexdigest()[:16]


def unchecked(s: FinetuneSettings, found: Labelled) -> Portions:
    """The portions if every file can be used: what a dry run plans with."""
    return portion(found.index, np.arange(len(found.index)), wanted(s))


def checked(
    s: FinetuneSettings,
    found: Labelled,
    preprocess: Preprocess,
    console: Console,
    processes: int = 1,
) -> Checked:
    """Every file decoded once, train held in memory where it fits, and the portions."""
    hold = held(s, found, preprocess, processes)
    scan = check(
        found.index,
        workers=s.workers,
        hold=hold,
        resize_to=_largest(preprocess),
        console=console,
        mode=s.scan,  # type: ignore[arg-type]  # its choices are the modes
        seed=s.seed,
    )
    if scan.problems:
        left = worded(len(scan.problems), "file was", "files were")
        console.warn(f"{left} left out: see problems.csv.")
    portions = portion(scan.index, scan.usable, wanted(s))
    train = Pictures(found.index.take(portions.train), scan.store, resize_to=scan.resize_to)
    # val is read as `evaluate` and `predict` will read it: from the files, at full size
    val = Pictures(found.index.take(portions.val))
    cropped = cropped_away(scan.heights, scan.widths) if s.scan == "full" else found.cropped
    return Checked(portions, train, val, scan.problems, hold, cropped)


def held(
    s: FinetuneSettings, found: Labelled, preprocess: Preprocess, processes: int = 1
) -> Holding:
    """Where the decoded pictures are held, and why."""
    found.index.source.intensity = preprocess.intensity  # known since the weights are
    return holding(
        found.index.source,
        found.index.rows,
        _largest(preprocess),
        store=s.store,
        gibibytes=s.store_budget,
        processes=processes,
        scan=s.scan,
    )


def _largest(preprocess: Preprocess) -> int:
    return 2 * max(preprocess.resize, preprocess.image_size)


def wanted(s: FinetuneSettings) -> Wanted:
    """The flags that choose among the pictures."""
    return Wanted(
        s.seed,
        s.val,
        s.labels_per_class,
        s.label_fraction,
        s.limit,
        s.group_by,
        split_from=s.split_from,
    )
