"""The labelled dataset of a fine-tuning run: read, decoded, split into train and val."""

import functools
import hashlib
from collections.abc import Hashable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from unfreeze.checkpoints.model_file import TRAINED_IMAGES
from unfreeze.checkpoints.state import BEST_CHECKPOINT, has_last
from unfreeze.config.finetune import (
    CLASSIFICATION,
    TEXT_CLASSIFICATION,
    FinetuneOptions,
    FinetuneSettings,
)
from unfreeze.config.shared import label_arguments
from unfreeze.data.cache.policy import PixelCachePlan, plan_pixel_cache
from unfreeze.data.images.intensity import format_intensity
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.data.index.class_stats import ClassCounts, class_counts
from unfreeze.data.index.index import VAL, Index, build_index
from unfreeze.data.index.splits import read_split_csv, write_split_csv
from unfreeze.data.loading.dataset import ImageDataset
from unfreeze.data.loading.sample import DatasetSample, sample_dataset
from unfreeze.data.texts.checks import (
    check_texts,
    say_duplicates,
    similar_texts,
    texts_digest,
)
from unfreeze.data.texts.source import TextSource
from unfreeze.data.validate.duplicates import (
    HEAD,
    SIGNATURE,
    Groups,
    Keys,
    Signatures,
    TrainedImages,
    content_keys,
    save_trained_images,
    similar_images,
)
from unfreeze.data.validate.precheck import (
    ImageProblem,
    check_images,
    write_problems_csv,
)
from unfreeze.data.validate.warnings import CroppedImages, cropped_away, dataset_warnings
from unfreeze.evaluation.checks import cropped_warning
from unfreeze.evaluation.warnings import RunWarning
from unfreeze.runs.finetuning.task_settings import (
    check_named_task,
    open_training_source,
    task_of_settings,
)
from unfreeze.runtime.console import Console, pluralised
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.tasks.supervised import SupervisedTask
from unfreeze.transfer.train_val_split import (
    Positions,
    SplitOptions,
    TrainValSplit,
    labelled_images,
    members_of,
    repeated_splits,
    split_groups,
    split_train_val,
    stratified_by,
)


@dataclass(frozen=True)
class LabelledListing:
    """The labelled images of train and val before decoding, and a sample of their headers.

    `task`: what the labels mean; None for classes.
    """

    index: Index
    sample: DatasetSample
    fingerprint: str
    census: ClassCounts  # test included
    doubts: tuple[RunWarning, ...] = ()
    task: SupervisedTask | None = None

    def split(
        self, usable: Positions, options: SplitOptions, alike: Groups | None = None
    ) -> TrainValSplit:
        """Train and val of the `usable` positions; stratified by class, or as the task says."""
        index, task = self.index, self.task
        if task is None:
            return split_train_val(index, usable, options, alike)
        strata = task.strata(task.targets(labels_of(index)))
        grouped = stratified_by(index, index.splits != VAL, strata)
        portions = split_train_val(grouped, usable, options, alike, members_of(strata))
        return replace(portions, index=index)

    @property
    def texts(self) -> bool:
        """Whether the samples are texts."""
        return isinstance(self.index.source, TextSource)

    @property
    def dense(self) -> bool:
        """Whether the labels are masks."""
        return self.task is not None and self.task.dense

    @property
    def task_name(self) -> str:
        """The task, for model.json."""
        if self.task is not None:
            return self.task.name
        return TEXT_CLASSIFICATION if self.texts else CLASSIFICATION

    @property
    def side(self) -> int:
        """Median of the shorter sides, pixels."""
        return self.sample.side

    @property
    def cropped(self) -> CroppedImages | None:
        """Images whose ends are cropped away, by the headers of the sample."""
        if self.texts or self.dense:
            return None
        return self.sample.cropped


@dataclass(frozen=True)
class LabelledDataset:
    """The datasets `train` and `val` after decoding all images once.

    `signatures`: for near-duplicates, by position in the portions' index. `doubts`: warnings about
    folders and lists.
    """

    portions: TrainValSplit
    train: ImageDataset
    val: ImageDataset
    problems: list[ImageProblem]
    hold: PixelCachePlan
    cropped: CroppedImages | None = None  # images whose ends are cropped away
    signatures: Signatures | None = None
    doubts: tuple[RunWarning, ...] = ()
    task: SupervisedTask | None = None

    @property
    def texts(self) -> bool:
        """Whether the samples are texts."""
        return isinstance(self.portions.index.source, TextSource)

    def targets(self, images: ImageDataset) -> torch.Tensor:
        """Targets [N, ...] of the images of train or val: class ids, or the task's."""
        if self.task is not None:
            return self.task.targets(labels_of(images.index))
        return torch.from_numpy(images.index.labels).long()

    def write(self, run: RunFolder) -> None:
        """Write problems.csv (files left out) and split.csv (train and val)."""
        write_problems_csv(run.file("problems.csv"), self.problems)
        write_split_csv(run.file("split.csv"), self.portions.rows())

    def chosen(self, portions: TrainValSplit) -> "LabelledDataset":
        """The same images with another split."""
        index = self.portions.index
        train = ImageDataset(
            index.take(portions.train), self.train.store, resize_to=self.train.resize_to
        )
        return replace(
            self, portions=portions, train=train, val=ImageDataset(index.take(portions.val))
        )

    def recorded(self, run: RunFolder) -> "LabelledDataset":
        """With the split in split.csv of a run that is resumed.

        The split depends on near-duplicates, which another version of a decoder may find
        differently.
        """
        path, current = run.file("split.csv"), self.portions
        if not path.exists() or (rows := read_split_csv(path)) == current.rows():
            return self
        position_of = {name: position for position, name in enumerate(current.index.paths)}
        try:
            train, val = (
                np.array([position_of[row.path] for row in rows if row.split == split], np.int64)
                for split in ("train", "val")
            )
        except KeyError:  # other data: refused later by its fingerprint, with a better message
            return self
        return self.chosen(replace(current, train=train, val=val))

    @functools.cached_property
    def keys(self) -> dict[str, Keys]:
        """Content keys of train and val, in order."""
        indexes = {"train": self.train.index, "val": self.val.index}
        return {name: content_keys(index) for name, index in indexes.items()}

    def digest(self, part: str) -> str:
        """Hex digest of the images of `train` or `val`, in order, by content.

        Content keys read only the first bytes of a file: for longer files the source's fingerprint
        (names, sizes and times) is added.
        """
        index = (self.train if part == "train" else self.val).index
        if isinstance(index.source, TextSource):
            return texts_digest(index.source, index.rows.tolist())
        digest = hashlib.sha256(self.keys[part].tobytes())
        if (index.source.sizes[index.rows] > HEAD).any():
            digest.update(index.source.fingerprint().encode())
        return digest.hexdigest()

    def groups(self, by: str | None) -> Positions | None:
        """A group number for each training image: a group stays in one fold; None: no groups."""
        names = split_groups(self.portions, self.portions.train, by)
        if names is None:
            return None
        numbers: dict[Hashable, int] = {}
        group_of = [
            numbers.setdefault(names[position], len(numbers))
            for position in self.portions.train.tolist()
        ]
        return np.array(group_of, np.int64)

    @property
    def data_warnings(self) -> list[RunWarning]:
        """Warnings about the images and their labels before training."""
        return [*self.doubts, *cropped_warning(self.cropped)]

    @property
    def copies(self) -> int:
        """Number of validation images that are also in train, byte for byte."""
        return int(np.isin(self.keys["val"], self.keys["train"]).sum())

    @functools.cached_property
    def seen(self) -> TrainedImages:
        """Content keys and signatures of train and val, to recognise these images later."""
        signed = None if self.signatures is None else self.signatures[self.portions.train]
        return TrainedImages(self.keys["train"], self.keys["val"], signed)

    @functools.cached_property
    def leaked(self) -> npt.NDArray[np.bool_]:
        """Mask of the images of val with a duplicate or near-duplicate in train (data leakage)."""
        none = np.zeros(len(self.val), SIGNATURE)
        signed = none if self.signatures is None else self.signatures[self.portions.val]
        return self.seen.leaked(self.keys["val"], signed)

    def write_seen(self, run: RunFolder) -> None:
        """Write the keys of train and val into model/, for leakage checks anywhere."""
        save_trained_images(run.file("model") / TRAINED_IMAGES, self.seen)


def read_labels(s: FinetuneSettings, console: Console) -> LabelledListing:
    """Labels, splits and the typical image size of `s.data`; reads headers, decodes nothing."""
    check_named_task(s)
    source = open_training_source(s, s.task, fetch=not s.dry_run, console=console)
    texts = isinstance(source, TextSource)
    task = task_of_settings(s, source)
    build = build_index if task is None else task.index
    everything = build(source, **label_arguments(s))
    index = labelled_images(everything, classes=task is None)
    counts = class_counts(everything)
    for line in (*index.notes, *(() if task else (*counts.lines(), *counts.notes()))):
        console.say(line)
    doubts = tuple(
        RunWarning(code, message)
        for code, message in (() if task else dataset_warnings(everything))
    )
    if (unlabelled := int((everything.labels < 0).sum())) and task is not None:
        console.say(f"{pluralised(unlabelled, 'image is', 'images are')} unlabelled.")
    if task is not None and not resumes(s):  # a resumed run has the task of its checkpoint
        task.fit(labels_of(index.take(index.splits != VAL)))
        task.check(index)
    for doubt in doubts:
        console.warn(doubt.message)
    fingerprint = source.fingerprint()
    if any(line is not None for line in label_arguments(s).values()):
        fingerprint += _said(everything)
    if task is not None:
        fingerprint += task.fingerprint(index)
    sample = DatasetSample(len(index), NO_SIZES, NO_SIZES, ())
    if not texts:
        sample = sample_dataset(index, np.arange(len(index)), format_intensity(None, s.channels))
    return LabelledListing(index, sample, fingerprint, counts, doubts, task)


NO_SIZES = np.zeros(0, np.int64)


def resumes(s: FinetuneSettings) -> bool:
    """Whether the run resumes from a checkpoint; a dry run plans it from the beginning."""
    folder = RunFolder(str(s.out), writes=False).file("checkpoints")
    return bool(s.resume) and not s.dry_run and has_last(folder, (BEST_CHECKPOINT,))


def labels_of(index: Index) -> list[str]:
    """The label of each image, as text."""
    return [index.classes[label] for label in index.labels.tolist()]


def _said(index: Index) -> str:
    """Hex digest of labels and splits that come from other files than the data."""
    digest = hashlib.sha256("\n".join(index.classes).encode("utf-8", "surrogateescape"))
    digest.update(index.labels.tobytes() + index.splits.tobytes())
    return digest.hexdigest()[:16]


def split_undecoded(s: FinetuneSettings, data: LabelledListing) -> TrainValSplit:
    """The split if every file can be decoded, for a dry run."""
    return data.split(np.arange(len(data.index)), split_options(s))


def runs_of_splits(
    s: FinetuneSettings, portions: TrainValSplit, task: SupervisedTask | None
) -> list[tuple[int, int | None, TrainValSplit]]:
    """(seed, fold, split) of each run of `--folds` and `--repeats`, as in `repeated_splits`."""
    strata = None
    if task is not None and (s.folds or s.repeats > 1):
        strata = task.strata(task.targets(labels_of(portions.index)))
    options = split_options(s)
    return [*repeated_splits(portions, options, folds=s.folds, repeats=s.repeats, strata=strata)]


def number_of_runs(
    s: FinetuneSettings, portions: TrainValSplit, task: SupervisedTask | None
) -> int:
    """The number of training runs: the run itself, and those of `--folds` and `--repeats`.

    DataError if there is too little data for them.
    """
    return 1 + len(runs_of_splits(s, portions, task))


def decode_and_split(
    s: FinetuneSettings,
    data: LabelledListing,
    preprocess: Preprocess,
    console: Console,
    processes: int = 1,
) -> LabelledDataset:
    """Decode every file once (train into the pixel cache) and split into train and val."""
    hold = choose_pixel_cache(s, data, preprocess, processes)
    scan = (
        check_texts(data.index)
        if data.texts
        else check_images(
            data.index,
            workers=s.workers,
            hold=hold,
            resize_to=_largest(preprocess),
            console=console,
            mode=s.scan,  # type: ignore[arg-type]  # its choices are the modes
            seed=s.seed,
            sign=True,
        )
    )
    if scan.problems:
        count_text = pluralised(len(scan.problems), "file was", "files were")
        console.warn(f"{count_text} left out: see problems.csv.")
    if data.texts:
        alike = similar_texts(data.index, scan.usable)
    elif scan.signatures is None:
        alike = []
    else:
        alike = similar_images(data.index, scan.usable, scan.signatures)
    if data.texts:
        say_duplicates(data.index, alike, console)
    portions = data.split(scan.usable, split_options(s), alike)
    train = ImageDataset(data.index.take(portions.train), scan.store, resize_to=scan.resize_to)
    # val is read from the files at full size, as in `evaluate` and `predict`
    val = ImageDataset(data.index.take(portions.val))
    cropped = data.cropped if preprocess.fit == "crop" else None
    if cropped is not None and s.scan == "full":
        cropped = cropped_away(scan.heights, scan.widths)
    return LabelledDataset(
        portions,
        train,
        val,
        scan.problems,
        hold,
        cropped=cropped,
        signatures=scan.signatures,
        doubts=data.doubts,
        task=data.task,
    )


def choose_pixel_cache(
    s: FinetuneSettings, data: LabelledListing, preprocess: Preprocess, processes: int = 1
) -> PixelCachePlan:
    """The pixel cache: where decoded images are kept, and why."""
    preprocess.attach(data.index.source)  # known once the weights are loaded
    if data.texts:
        return PixelCachePlan("none", 0, 0, "texts are kept in memory, tokens are made anew")
    return plan_pixel_cache(
        data.index.source,
        data.index.rows,
        _largest(preprocess),
        store=s.store,
        gibibytes=s.store_budget,
        processes=processes,
        scan=s.scan,
    )


def _largest(preprocess: Preprocess) -> int | None:
    """Largest length of the shorter side that is needed; None: images keep their size."""
    if preprocess.fit == "tile":
        return None
    return 2 * max(preprocess.resize, preprocess.image_size)


def split_options(s: FinetuneOptions) -> SplitOptions:
    """The settings that select and split the images."""
    return SplitOptions(
        s.seed,
        s.val,
        s.labels_per_class,
        s.label_fraction,
        s.limit,
        s.group_by,
        split_from=s.split_from,
    )
