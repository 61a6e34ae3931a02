"""The unlabelled dataset of a pretraining run: opened, decoded, and its data loader."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from unfreeze.config.pretrain import PretrainSettings
from unfreeze.config.shared import label_arguments
from unfreeze.data.augment.multicrop import MultiCropTransform
from unfreeze.data.cache.policy import PixelCachePlan, plan_pixel_cache
from unfreeze.data.images.intensity import format_intensity
from unfreeze.data.index.index import TRAIN, Index, build_index
from unfreeze.data.index.mask_pairs import has_masks, mask_rows
from unfreeze.data.index.splits import subset, write_split_csv
from unfreeze.data.loading.dataset import ImageDataset
from unfreeze.data.loading.device_loader import DeviceImages, DeviceLoader
from unfreeze.data.loading.loader import Loader
from unfreeze.data.loading.sample import DatasetSample, sample_dataset
from unfreeze.data.sources.open import open_source
from unfreeze.data.validate.precheck import ImageProblem, check_images, write_problems_csv
from unfreeze.data.validate.warnings import dataset_warnings
from unfreeze.errors import DataError
from unfreeze.evaluation.warnings import RunWarning
from unfreeze.runtime.console import Console, pluralised
from unfreeze.runtime.distributed import Distributed
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.swav.auto_recipe import view_specs
from unfreeze.tasks.base import TeacherFeatures

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class UnlabelledDataset:
    """Images, positions to train on, a sample of headers, and the files left out."""

    index: Index
    images: ImageDataset
    train: Positions
    sample: DatasetSample
    fingerprint: str
    problems: tuple[ImageProblem, ...] = ()
    doubts: tuple[RunWarning, ...] = ()  # about folders and lists
    teacher: TeacherFeatures | None = None  # of the training images, for methods that need them

    @property
    def side(self) -> int:
        """Median of the shorter sides, pixels."""
        return self.sample.side

    def holding(self, s: PretrainSettings, resize_to: int, processes: int) -> PixelCachePlan:
        """The pixel cache: where decoded images will be kept, and why."""
        return plan_pixel_cache(
            self.index.source,
            self.index.rows[self.train],
            resize_to,
            store=s.store,
            gibibytes=s.store_budget,
            processes=processes,
            scan=s.scan,
        )

    def checked(
        self, s: PretrainSettings, resize_to: int, hold: PixelCachePlan, console: Console
    ) -> "UnlabelledDataset":
        """The dataset after decoding every file once, without unusable files."""
        index = self.index.take(self.train)
        scan = check_images(
            index,
            workers=s.workers,
            hold=hold,
            resize_to=resize_to,
            console=console,
            mode=s.scan,  # type: ignore[arg-type]  # its choices are the modes
            seed=s.seed,
        )
        if scan.problems:
            left = pluralised(len(scan.problems), "file was", "files were")
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

    def held(self, s: PretrainSettings, device: torch.device, most: float) -> DeviceImages | None:
        """The images on the device in `most` bytes, if crops are computed there; else None."""
        if s.views_on != "device":
            return None
        return DeviceImages(self.images, self.train, device, most=int(most))

    def loader(
        self,
        s: PretrainSettings,
        processes: Distributed,
        *,
        workers: int,
        held: DeviceImages | None,
    ) -> Loader:
        """The data loader for multi-crop batches."""
        specs = view_specs(s)
        arguments: dict[str, Any] = {
            "images": self.images,
            "make": MultiCropTransform(s.seed, specs),
            "batch_size": s.batch_size or 0,
            "seed": s.seed,
            "drop_last": True,
            "positions": self.train,
            "rank": processes.rank,
            "world": processes.world,
        }
        if held is not None:
            return DeviceLoader(held, specs, **arguments)
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


def without_rows(index: Index, left_out: Collection[int]) -> Index:
    """The index without these rows of its source; folders of images are no classes."""
    kept = index.take(np.array([row not in left_out for row in index.rows.tolist()], np.bool_))
    return replace(kept, labels=np.full(len(kept), -1, np.int32), classes=(), doubt=None)


def list_images(s: PretrainSettings, console: Console) -> UnlabelledDataset:
    """The images of `s.data`; only `train` if there are splits."""
    source = open_source(s.data, data_root=s.data_root, fetch=not s.dry_run, console=console)
    index = build_index(source, strange_classes=True, **label_arguments(s))
    if has_masks(source) and (masks := set(mask_rows(source))):
        index = without_rows(index, masks)
        console.say(f"{len(masks):,} masks beside the images are not used.")
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
    sample = sample_dataset(index, train, format_intensity(None, s.channels))
    images, fingerprint = ImageDataset(index), source.fingerprint()
    return UnlabelledDataset(index, images, train, sample, fingerprint, doubts=doubts)
