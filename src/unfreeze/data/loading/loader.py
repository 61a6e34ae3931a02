"""The data loader: batches by global step, for any number of workers and processes.

A batch depends only on (seed, step) and the fixed list of images. The state of the loader is the
step, and any number of workers or processes gives the same global batch.
"""

import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from unfreeze.data.augment.parameters import permutation
from unfreeze.data.images.errors import pillow_silenced
from unfreeze.data.loading.dataset import ImageDataset
from unfreeze.data.loading.workers import (
    NoWorkers,
    cannot_start_workers,
    running_workers,
    start_method,
    worker_init,
)
from unfreeze.errors import DataError, ResourceError, UnfreezeError, UsageError
from unfreeze.runtime.signals import SIGNAL_DELAY, StopRequest

Ids = npt.NDArray[np.int64]
Views = list[torch.Tensor]
# views of images with these ids in an epoch; a task may make targets with them
MakeViews = Callable[[Sequence[npt.NDArray[np.uint8]], Ids, int], Views]
MakeTargets = Callable[[Sequence[npt.NDArray[np.uint8]], Ids, int], tuple[Views, torch.Tensor]]
Make = MakeViews | MakeTargets


Order = Callable[[int], Ids]
Request = tuple[int, int, Ids]  # step, epoch, images


class Batch(NamedTuple):
    """The share of one process in a global batch."""

    step: int
    epoch: int
    ids: Ids  # [B] positions in the dataset
    target: torch.Tensor  # [B, ...] what the task learns; by default class ids, -1 if unlabelled
    views: Views


class Loader:
    """Batches of `positions` of `images`; `make(images, ids, epoch)` makes views, maybe targets.

    `batch_size` is global; this process gets share `rank` of `world` equal shares. With `drop_last`
    every batch is full. Without, the last batch may be smaller, with shares that differ by one; a
    last batch of one image (batch norm needs two), or of fewer images than processes, is dropped if
    there are other batches. `order(epoch)` is a permutation of `positions`, and may be replaced by
    another function with as many images. Set `pinned` for training on a GPU.
    """

    def __init__(
        self,
        images: ImageDataset,
        make: Make,
        *,
        batch_size: int,
        seed: int,
        drop_last: bool,
        workers: int = 0,
        positions: Ids | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size % world:
            raise UsageError(
                f"--batch-size {batch_size} is not divisible by {world} processes.",
                f"Use a multiple of {world}.",
            )
        self.positions = np.arange(len(images)) if positions is None else positions
        self.batch_size, self.seed = batch_size, seed
        self.workers, self.pinned = workers, False
        self.warn: Callable[[str], object] = warnings.warn
        self.rank, self.world = rank, world
        self.dataset = _BatchDataset(images, make)
        self.order: Order = lambda epoch: permutation(seed, epoch, self.positions)
        self._order: tuple[int, Ids] | None = None  # cache of the last requested epoch
        self.steps_per_epoch = steps_per_epoch(
            len(self.positions), batch_size, drop_last=drop_last, world=world
        )

    def stream(self, start: int, stop: int) -> Generator[Batch]:
        """The batches of the global steps from `start` to `stop` (exclusive).

        Workers start with the first batch and end when the generator is closed.
        """
        return self._cut(_Requests(self, start, stop))

    def these(self, batches: Iterable[Ids], epoch: int) -> Generator[Batch]:
        """Batches of the given images with the crops of `epoch`; `step` counts from 0."""
        return self._cut([(step, epoch, ids) for step, ids in enumerate(batches)])

    def _cut(self, requests: Iterable[Request]) -> Generator[Batch]:
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)  # images are processed in parallel, so one thread for each
        try:
            for batch in self._batches(requests):
                if isinstance(batch, UnfreezeError):
                    raise batch
                yield batch
        finally:
            cv2.setNumThreads(threads)

    def _batches(self, requests: Iterable[Request]) -> Iterator[Any]:
        """Batches from workers, or from this process if there are none."""
        reason = cannot_start_workers() if self.workers else ""
        if self.workers and not reason:
            try:
                with running_workers(self._torch_loader(requests, self.workers)) as batches:
                    yield from batches
                    return
            except NoWorkers as error:  # raised before the first batch
                reason = str(error)
        if reason:
            self.workers = 0
            self.warn(f"{reason}: images are loaded in the main process (--workers 0).")
        yield from self._torch_loader(requests, 0)

    def _torch_loader(self, requests: Iterable[Request], workers: int) -> DataLoader[Any]:
        return DataLoader(
            self.dataset,
            batch_size=None,
            sampler=requests,
            collate_fn=_identity,
            num_workers=workers,
            worker_init_fn=worker_init,
            multiprocessing_context=start_method() if workers else None,
            pin_memory=self.pinned,
            # the default would draw from the global generator, which dropout uses
            generator=torch.Generator(),
        )

    def images_until(self, step: int) -> int:
        """Number of images in the global batches of the steps before `step`."""
        epochs, steps = divmod(step, self.steps_per_epoch)
        per_epoch = min(len(self.positions), self.steps_per_epoch * self.batch_size)
        return epochs * per_epoch + steps * self.batch_size

    def ids(self, step: int) -> Ids:
        """Positions of the images of a global step for this process."""
        batch = self.batch(step)
        first, last = (len(batch) * rank // self.world for rank in (self.rank, self.rank + 1))
        return batch[first:last]

    def batch(self, step: int) -> Ids:
        """Positions of the images of a global step for all processes."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, self.order(epoch)
        return self._order[1][index * self.batch_size : (index + 1) * self.batch_size]

    def paths(self, step: int) -> list[str]:
        """File names of the images of a global step."""
        names = self.dataset.images.index.paths
        return [names[int(i)] for i in self.batch(step)]


def next_batch(
    batches: Iterator[Batch], stop: StopRequest
) -> tuple[Batch | None, UnfreezeError | None]:
    """(next batch, None), or (None, error) if a file or a worker is lost.

    (None, None) if a stop signal also ended the worker, or the preparation of an epoch.
    """
    try:
        return next(batches, None), None
    except DataError as error:
        return None, error
    except ResourceError as error:
        return None, None if stop.comes(SIGNAL_DELAY) else error


def steps_per_epoch(images: int, batch_size: int, *, drop_last: bool, world: int = 1) -> int:
    """Number of batches per epoch; DataError if the images do not fill one batch."""
    full, rest = divmod(images, batch_size)
    left_out = drop_last or (rest < max(2, world) and full)
    steps = full if left_out else full + bool(rest)
    if not steps:
        raise DataError(
            f"{images} images do not fill one batch of {batch_size}.",
            "Lower --batch-size or add images.",
        )
    return steps


class _Requests:
    """The sampler: (step, epoch, ids) of each batch, in order."""

    def __init__(self, loader: Loader, start: int, stop: int) -> None:
        self.loader, self.start, self.stop = loader, start, stop

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __iter__(self) -> Iterator[tuple[int, int, Ids]]:
        for step in range(self.start, self.stop):
            yield step, step // self.loader.steps_per_epoch, self.loader.ids(step)


class _BatchDataset(Dataset[Batch]):
    """The torch dataset: reads the images of a batch and makes their crops."""

    def __init__(self, images: ImageDataset, make: Make) -> None:
        self.images, self.make = images, make
        self.targets = torch.from_numpy(np.asarray(images.index.labels, np.int64))

    def __getitem__(self, request: tuple[int, int, Ids]) -> Batch:
        step, epoch, ids = request
        try:
            with pillow_silenced():  # once per batch
                images = [self.images[int(i)] for i in ids]
        except UnfreezeError as error:
            return error  # type: ignore[return-value]  # raised in the main process
        made = self.make(images, ids, epoch)
        views, target = made if isinstance(made, tuple) else (made, self.targets[ids])
        batch = Batch(step, epoch, ids, target, views)
        return batch if get_worker_info() is None else _to_shared_memory(batch)


def _to_shared_memory(batch: Batch) -> Batch:
    """Moves a batch to shared memory here, because torch would do it in a background thread.

    If shared memory is full that thread would fail silently, and training would wait forever.
    """
    try:
        for tensor in (batch.target, *batch.views):
            tensor.share_memory_()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        return ResourceError(  # type: ignore[return-value]  # as above
            f"Out of shared memory for batches: {' '.join(str(error).split())}.",
            "Use fewer --workers (or 0), or give the container more (--shm-size 8g or --ipc host).",
        )
    return batch


def _identity(item: Any) -> Any:
    return item


CHOICE, SHUFFLE, BUCKETS = -3, -4, -5  # separate random streams
WINDOW = 50  # batches that are sorted by length together


def class_balanced_order(labels: npt.NDArray[Any], seed: int) -> Order:
    """A class-balanced order for `Loader.order`, with N images per epoch for `labels` [N].

    Each class gets an equal share of the epoch. Each of its n images occurs floor(share / n) or
    ceil(share / n) times; which ones occur more often changes with the epoch. The order depends
    only on (seed, epoch).
    """
    classes = np.unique(labels)
    members = [np.flatnonzero(labels == label).astype(np.int64) for label in classes]

    def order(epoch: int) -> Ids:
        share, extra = divmod(len(labels), len(classes))
        parts = []
        for class_id, images in enumerate(members):
            # the classes with one more image rotate over the epochs
            count = share + ((class_id - epoch) % len(classes) < extra)
            repeats, rest = divmod(count, len(images))
            remainder = permutation(seed, epoch, images, CHOICE)[:rest]
            parts.append(np.concatenate([np.tile(images, repeats), remainder]))
        selected = np.concatenate(parts)
        indices = np.arange(len(selected), dtype=np.int64)
        return selected[permutation(seed, epoch, indices, SHUFFLE)]

    return order


def length_bucketed_order(lengths: npt.NDArray[Any], seed: int, batch_size: int) -> Order:
    """An order for `Loader.order` whose batches hold samples of similar `lengths` [N].

    A random permutation is sorted by length within windows of WINDOW batches; the order of the
    batches is random again. A last batch that is not full stays the last.
    """
    positions = np.arange(len(lengths), dtype=np.int64)
    full = len(lengths) // batch_size * batch_size

    def order(epoch: int) -> Ids:
        drawn = permutation(seed, epoch, positions)
        body, window = drawn[:full], WINDOW * batch_size
        parts = [body[start : start + window] for start in range(0, full, window)]
        ordered = [part[np.argsort(lengths[part], kind="stable")] for part in parts]
        batches = np.concatenate([*ordered, body[:0]]).reshape(-1, batch_size)
        numbers = np.arange(len(batches), dtype=np.int64)
        shuffled = batches[permutation(seed, epoch, numbers, BUCKETS)] if len(batches) else batches
        return np.concatenate([shuffled.reshape(-1), drawn[full:]])

    return order
