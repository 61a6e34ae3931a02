"""Batches by global step: which images, in which order, cut by whom.

Everything about a batch follows from (seed, step) and the fixed list of images: the position of
the loader is the step, and any number of workers or processes gives the same global batch.
"""

import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from unfreeze.data.dataset import ImageDataset
from unfreeze.data.silence import pillow_silenced
from unfreeze.data.views.draws import permutation
from unfreeze.data.workers import NoWorkers, in_a_worker, no_workers_here, start_method, started
from unfreeze.errors import DataError, ResourceError, UnfreezeError, UsageError
from unfreeze.runtime.signals import WORKERS_FIRST, StopRequest

Ids = npt.NDArray[np.int64]
Make = Callable[[Sequence[npt.NDArray[np.uint8]], Ids, int], list[torch.Tensor]]


Order = Callable[[int], Ids]
Request = tuple[int, int, Ids]  # step, epoch, images


class Batch(NamedTuple):
    """One process's share of a global batch."""

    step: int
    epoch: int
    ids: Ids  # [B] positions in the list of images
    labels: torch.Tensor  # [B] int64, -1 where there is none
    views: list[torch.Tensor]  # whatever `make` returns


class Loader:
    """Batches of `positions` of `images`; `make(images, ids, epoch)` cuts the views.

    `batch_size` is global; this process gets the `rank`-th of `world` equal shares. With
    `drop_last` every batch is full; without, the last one may be smaller and its shares differ by
    one, but a batch of one image (which batch norm cannot take), or of fewer than there are
    processes, is left out where there are others. `order(epoch)` is a permutation of
    `positions`; another function of as many images may take its place.
    What is made for a GPU is to be `pinned`.
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
        self.dataset = _Cutter(images, make)
        self.order: Order = lambda epoch: permutation(seed, epoch, self.positions)
        self._order: tuple[int, Ids] | None = None  # of the epoch last asked for
        self.steps_per_epoch = steps_of(
            len(self.positions), batch_size, drop_last=drop_last, world=world
        )

    def stream(self, start: int, stop: int) -> Generator[Batch]:
        """The batches of the global steps `start` to `stop` (not included).

        Workers, where there are some, begin with the first batch and end where this is closed.
        """
        return self._cut(_Requests(self, start, stop))

    def these(self, batches: Iterable[Ids], epoch: int) -> Generator[Batch]:
        """Batches of these images instead, as `epoch` cuts them; `step` counts them from 0."""
        return self._cut([(place, epoch, ids) for place, ids in enumerate(batches)])

    def _cut(self, requests: Iterable[Request]) -> Generator[Batch]:
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)  # parallel over images, not inside one
        try:
            for batch in self._made(requests):
                if isinstance(batch, UnfreezeError):
                    raise batch
                yield batch
        finally:
            cv2.setNumThreads(threads)

    def _made(self, requests: Iterable[Request]) -> Iterator[Any]:
        """Batches by the workers; by this process where there are none, or none can be started."""
        reason = no_workers_here() if self.workers else ""
        if self.workers and not reason:
            try:
                with started(self._torch_loader(requests, self.workers)) as batches:
                    yield from batches
                    return
            except NoWorkers as none:  # before any batch
                reason = str(none)
        if reason:
            self.workers = 0
            self.warn(f"{reason}: images are loaded in the main process (--workers 0).")
        yield from self._torch_loader(requests, 0)

    def _torch_loader(self, requests: Iterable[Request], workers: int) -> DataLoader[Any]:
        return DataLoader(
            self.dataset,
            batch_size=None,
            sampler=requests,
            collate_fn=_as_it_is,
            num_workers=workers,
            worker_init_fn=in_a_worker,
            multiprocessing_context=start_method() if workers else None,
            pin_memory=self.pinned,
            # else it draws from the generator that dropout uses, once for each start
            generator=torch.Generator(),
        )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from its `start`-th on."""
        first = epoch * self.steps_per_epoch
        return self.stream(first + start, first + self.steps_per_epoch)

    def ids(self, step: int) -> Ids:
        """The share that this process has of the images of a global step."""
        batch = self.batch(step)
        first, last = (len(batch) * rank // self.world for rank in (self.rank, self.rank + 1))
        return batch[first:last]

    def batch(self, step: int) -> Ids:
        """The images of a global step, of all processes together."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, self.order(epoch)
        return self._order[1][place * self.batch_size : (place + 1) * self.batch_size]

    def paths(self, step: int) -> list[str]:
        """The names of the files of a global step."""
        names = self.dataset.images.index.paths
        return [names[int(i)] for i in self.batch(step)]


def next_batch(
    batches: Iterator[Batch], stop: StopRequest
) -> tuple[Batch | None, UnfreezeError | None]:
    """(the next batch, None), or (None, the error) where a file or a worker is lost.

    (None, None) where a signal asked to stop that ended the worker, too.
    """
    try:
        return next(batches), None
    except DataError as error:
        return None, error
    except ResourceError as error:
        return None, None if stop.comes(WORKERS_FIRST) else error


def steps_of(images: int, batch_size: int, *, drop_last: bool, world: int = 1) -> int:
    """Batches of an epoch of so many images; DataError where they do not fill one."""
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
    """What a worker is asked for: (step, epoch, ids), in order."""

    def __init__(self, loader: Loader, start: int, stop: int) -> None:
        self.loader, self.start, self.stop = loader, start, stop

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __iter__(self) -> Iterator[tuple[int, int, Ids]]:
        for step in range(self.start, self.stop):
            yield step, step // self.loader.steps_per_epoch, self.loader.ids(step)


class _Cutter(Dataset[Batch]):
    """Reads images and cuts their views, in whichever process it is called."""

    def __init__(self, images: ImageDataset, make: Make) -> None:
        self.images, self.make = images, make
        self.labels = torch.from_numpy(np.asarray(images.index.labels, np.int64))

    def __getitem__(self, request: tuple[int, int, Ids]) -> Batch:
        step, epoch, ids = request
        try:
            with pillow_silenced():  # once for all
                images = [self.images[int(i)] for i in ids]
        except UnfreezeError as error:
            return error  # type: ignore[return-value]  # raised where it can be shown whole
        batch = Batch(step, epoch, ids, self.labels[ids], self.make(images, ids, epoch))
        return batch if get_worker_info() is None else _shared(batch)


def _shared(batch: Batch) -> Batch:
    """The batch in the shared memory by which it travels: torch would try it in a thread.

    That thread fails alone where there is no room, and everybody waits for ever.
    """
    try:
        for tensor in (batch.labels, *batch.views):
            tensor.share_memory_()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        return ResourceError(  # type: ignore[return-value]  # as above
            f"Out of shared memory for batches: {' '.join(str(error).split())}.",
            "Use fewer --workers (or 0), or give the container more (--shm-size 8g or --ipc host).",
        )
    return batch


def _as_it_is(item: Any) -> Any:
    return item
