"""The unlabelled dataset of a pretraining run: opened, decoded, and its data loader."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from unfreeze.data.dataset import ImageDataset
from unfreeze.data.dataset_warnings import dataset_warnings
from unfreeze.data.device import Held, HeldLoader
from unfreeze.data.holding import Holding, holding
from unfreeze.data.index import TRAIN, Index, build_index
from unfreeze.data.intensity import reading
from unfreeze.data.loader import Loader
from unfreeze.data.sample import Sampled, sampled
from unfreeze.data.scan import Problem, check, write_problems_csv
from unfreeze.data.sources.open import open_source
from unfreeze.data.splits import subset, write_split_csv
from unfreeze.data.views.multicrop import Cut
from unfreeze.errors import DataError
from unfreeze.evaluation.warnings import RunWarning
from unfreeze.runtime.console import Console, worded
from unfreeze.runtime.processes import Processes
from unfreeze.runtime.runfolder import RunFolder
from unfreeze.settings.pretrain import PretrainSettings
from unfreeze.settings.shared import said_of
from unfreeze.swav.recipe import view_specs

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Gathering:
    """Images, positions to train on, a sample of headers, and the files left out."""

    index: Index
    images: ImageDataset
    train: Positions
    sample: Sampled
    fingerprint: str
    problems: tuple[Problem, ...] = ()
    doubts: tuple[RunWarning, ...] = ()  # about folders and lists

    @property
    def side(self) -> int:
        """Median of the shorter sides, pixels."""
        return self.sample.side

    def holding(self, s: PretrainSettings, resize_to: int, processes: int) -> Holding:
        """The pixel cache: where decoded images will be kept, and why."""
        return holding(
            self.index.source,
            self.index.rows[self.train],
            resize_to,
            store=s.store,
            gibibytes=s.store_budget,
            processes=processes,
            scan=s.scan,
        )

    def checked(
        self, s: PretrainSettings, resize_to: int, hold: Holding, console: Console
    ) -> "Gathering":
        """The dataset after decoding every file once, without unusable files."""
        index = self.index.take(self.train)
        scan = check(
            index,
            workers=s.workers,
            hold=hold,
            resize_to=resize_to,
            console=console,
            mode=s.scan,  # type: ignore[arg-type]  # its choices are the modes
            seed=s.seed,
        )
        if scan.problems:
            left = worded(len(scan.problems), "file was", "files were")
            console.warn(f"{left} left out: see problems.csv.")
        images = scan.images()
        everything = np.arange(len(images))
        return replace(
            self,
            index=images.index,
            images=images,
            train=everything,
            problems=tuple(scan.problems),
        )

    def held(self, s: PretrainSettings, device: torch.device, most: float) -> Held | None:
        """The images on the device in `most` bytes, if crops are computed there; else None."""
        if s.views_on != "device":
            return None
        return Held(self.images, self.train, device, most=int(most))

    def loader(
        self, s: PretrainSettings, processes: Processes, *, workers: int, held: Held | None
    ) -> Loader:
        """The data loader for multi-crop batches."""
        specs = view_specs(s)
        arguments: dict[str, Any] = {
            "images": self.images,
            "make": Cut(s.seed, specs),
            "batch_size": s.batch_size or 0,
            "seed": s.seed,
            "drop_last": True,
            "positions": self.train,
            "rank": processes.rank,
            "world": processes.world,
        }
        if held is not None:
            return HeldLoader(held, specs, **arguments)
        return Loader(**arguments, workers=workers)

    def write(self, run: RunFolder) -> None:
        """Write problems.csv (files left out) and split.csv (files used)."""
        write_problems_csv(run.file("problems.csv"), self.problems)
        write_split_csv(run.file("split.csv"), self.rows())

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """The rows of split.csv: path, label, split."""
        names = ("", *self.index.classes)
        paths, labels = self.index.paths, (self.index.labels[self.train] + 1).tolist()
        for i, label in zip(self.train.tolist(), labels, strict=True):
            yield paths[i], names[label], "train"


def gathering(s: PretrainSettings, console: Console) -> Gathering:
    """The images of `s.data`; only `train` if there are splits."""
    source = open_source(s.data, data_root=s.data_root, fetch=not s.dry_run, console=console)
    index = build_index(source, strange_classes=True, **said_of(s))
    for note in index.notes:
        console.say(note)
    doubts = tuple(RunWarning(code, message) for code, message in dataset_warnings(index))
    for doubt in doubts:
        console.warn(doubt.message)
    train = np.arange(len(index))
    if (index.splits == TRAIN).any():
        train = index.where(TRAIN)
        console.say(f"The data has splits: using the {len(train):,} images of train.")
    if s.limit is not None:
        train = subset(index.labels, train, limit=s.limit, seed=s.seed)
    if not len(train):
        raise DataError(f"No training images in {source.where}.", "Check the path.")
    sample = sampled(index, train, reading(None, s.channels))
    images, fingerprint = ImageDataset(index), source.fingerprint()
    return Gathering(index, images, train, sample, fingerprint, doubts=doubts)
