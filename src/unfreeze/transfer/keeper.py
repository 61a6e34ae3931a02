"""Keeps what the frozen part makes of the images, and gives each stretch of epochs its shortcut.

Features are found again by everything they follow from: the weights and layers before the border,
the files, how a image enters the network, the view, the arithmetic.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from unfreeze.data.loader import Loader
from unfreeze.runtime.console import Console
from unfreeze.runtime.devices import autocast
from unfreeze.runtime.processes import Processes
from unfreeze.transfer import holdout as held_out
from unfreeze.transfer.border import Border, NoBorder, find_border
from unfreeze.transfer.freeze import apply_freeze, fingerprint
from unfreeze.transfer.head_solver import find_head_input
from unfreeze.transfer.holdout import HoldOut
from unfreeze.transfer.kept import Kept, Wanted, check_room, keep, make_room
from unfreeze.transfer.shortcut import Held, Shortcut
from unfreeze.transfer.stretches import Stretch, wanted

T = TypeVar("T")
FORMAT = 1
PASS_PIXELS = {"cpu": 2**19}  # of a forward pass of the frozen part, about; else:
PASS_PIXELS_DEVICE = 2**23
PASS_MOST = 512  # images of a pass at most


@dataclass(frozen=True)
class Passing:
    """Whose features are computed, and which of them the run's own images are (None: all)."""

    loader: Loader
    holdout: HoldOut | None
    train: Tensor | None = None
    val: Tensor | None = None


@dataclass(frozen=True)
class Keeping:
    """What is kept and how: `mode` is FEATURES or ACTIVATIONS; `views` of each image.

    `prepare`: uint8 [B, side, side, 3] to the network's input. `memory`, `disk`: bytes that
    features may take. `about`: what they follow from beyond the network, as plain values; `train`,
    `val`: digests of the images.
    """

    mode: str
    views: int
    prepare: Callable[[Tensor], Tensor]
    side: int
    precision: str
    memory: int
    disk: int
    about: Mapping[str, Any]
    train: Callable[[], str]
    val: Callable[[], str]
    head: tuple[str, ...] = ()  # parameters of the head whose pooled input is kept, else a border


class Keeper:
    """Shortcuts for the stretches of a run; one at a time is held."""

    def __init__(
        self,
        network: nn.Module,
        loader: Loader,
        holdout: HoldOut | None,
        *,
        keeping: Keeping,
        stretches: Sequence[Stretch],
        processes: Processes | None = None,
        passing: Passing | None = None,
    ) -> None:
        self.network, self.loader, self.holdout = network, loader, holdout
        self.keeping, self.stretches = keeping, list(stretches)
        self.processes = processes or Processes()
        self.passing = passing or Passing(loader, holdout)
        self.device = next(network.parameters()).device
        self._held: tuple[Stretch, Shortcut | None] | None = None

    def at(self, epoch: int, console: Console, stop: Callable[[], bool]) -> Shortcut | None:
        """The shortcut of an epoch, its features computed where they are not kept yet.

        None where the epoch needs the images themselves, or where `stop` said so on the way.
        """
        stretch = next(s for s in self.stretches if s.first <= epoch < s.last)
        if self._held is None or self._held[0] != stretch:
            self._held = None  # frees the memory of the last one first
            shortcut = self._shortcut(stretch, console, stop)
            if shortcut is None and self.processes.any([stop()])[0]:
                return None
            self._held = stretch, shortcut
        return self._held[1]

    def _shortcut(
        self, stretch: Stretch, console: Console, stop: Callable[[], bool]
    ) -> Shortcut | None:
        if not wanted(self.keeping.mode, stretch):
            return None
        try:
            border = self._border(stretch)
            self.network.eval()  # the trainer says when training begins
        except NoBorder as reason:
            console.say(f"Nothing is kept from epoch {stretch.first} on: {reason}.")
            return None
        return _Stretched(self, stretch, border, console, stop).shortcut()

    def _border(self, stretch: Stretch) -> Border:
        if self.keeping.head:
            apply_freeze(self.network, stretch.frozen)
            return find_head_input(self.network, self.keeping.head, self.keeping.side)
        return find_border(self.network, stretch.frozen, self.keeping.side)


class _Stretched:
    """The features of one stretch: which, from where, computed and opened."""

    def __init__(
        self,
        keeper: Keeper,
        stretch: Stretch,
        border: Border,
        console: Console,
        stop: Callable[[], bool],
    ) -> None:
        self.keeper, self.stretch, self.border = keeper, stretch, border
        self.console, self.stop = console, stop
        self.keeping, self.device = keeper.keeping, keeper.device
        self.passing = keeper.passing
        self.hashes = fingerprint(keeper.network.state_dict(), border.entries)
        self.probes = {one: self._probe(one) for one in {self.keeping.precision, "fp32"}}
        self.channels_last = self.probes["fp32"][0]

    def shortcut(self) -> Shortcut | None:
        keeper = self.keeper
        count = len(self.passing.loader.dataset.images)
        views = self.stretch.views(self.keeping.views)
        wants = [self._wanted("train", view, count) for view in views]
        if self.passing.holdout is not None:
            wants.append(self._wanted("val", 0, len(self.passing.holdout.images)))
        keeper.processes.leads(lambda: self._make_room(wants))
        found = []
        for place, want in enumerate(wants):
            produce = self._view(views[place]) if place < len(views) else self._validation
            kept = keep(want, produce, self.console, self.stop, keeper.processes)
            if kept is None:
                return None
            found.append(kept)
        places = [*[self.passing.train] * len(views), self.passing.val]
        held = [
            Held(kept, channels_last=self.channels_last, device=self.device, places=own)
            for kept, own in zip(self._in_memory(found), places, strict=False)
        ]
        return Shortcut(
            self.border,
            dict(zip(views, held, strict=False)),
            held[-1] if keeper.holdout is not None else None,
            count=self.keeping.views,
            loader=keeper.loader,
            holdout=keeper.holdout,
            hashes=self.hashes,
        )

    def _make_room(self, wants: list[Wanted]) -> None:
        needed = sum(want.rows * want.row_bytes for want in wants if not want.folder.is_dir())
        removed = make_room(self.keeping.disk, needed, spared=[w.key for w in wants])
        if removed:
            self.console.say(f"Removed {len(removed)} older sets of kept features for room.")
        check_room(needed)

    def _in_memory(self, found: list[Kept]) -> list[Kept]:
        limit = self.keeping.memory
        if self.device.type == "cuda":
            limit = torch.cuda.mem_get_info(self.device)[0] // 4
        if sum(kept.nbytes for kept in found) > limit:
            return found
        return [kept.held(self.device) for kept in found]

    def _wanted(self, part: str, view: int, rows: int) -> Wanted:
        precision = self.keeping.precision if part == "train" else "fp32"
        _, shape, dtype = self.probes[precision]
        batch = self._pass_size() if part == "train" else held_out.BATCH
        about = {
            **self.keeping.about,
            "format": FORMAT,
            "torch": torch.__version__,
            "device": self.device.type,
            "precision": precision,
            "border": self.border.name,
            "text": self.border.text,
            "weights": self.hashes,
            "channels_last": self.channels_last,
            "part": part,
            "view": view,
            "images": self.keeping.train() if part == "train" else self.keeping.val(),
            "batch": batch,
        }
        if part == "val":
            about |= {"augment": None, "seed": None, "shrunk": None}  # nothing random, read whole
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:40]
        name = f"view {view}" if part == "train" else "validation"
        return Wanted(key, rows, shape, dtype, batch, f"{self.border.name}, {name}")

    def _pass_size(self) -> int:
        pixels = PASS_PIXELS.get(self.device.type, PASS_PIXELS_DEVICE)
        return min(PASS_MOST, max(16, pixels // self.keeping.side**2))

    def _probe(self, precision: str) -> tuple[bool, tuple[int, ...], torch.dtype]:
        """(are the channels last in memory, shape of one image's row on disk, type)."""
        blank = torch.zeros(2, self.keeping.side, self.keeping.side, 3, dtype=torch.uint8)
        found = self._features(blank, precision)
        last = found.dim() == 4 and found.is_contiguous(memory_format=torch.channels_last)
        last = last and not found.is_contiguous()
        shape = found.permute(0, 2, 3, 1).shape if last else found.shape
        return last, tuple(shape[1:]), found.dtype

    def _features(self, images: Tensor, precision: str) -> Tensor:
        with torch.inference_mode(), autocast(self.device, precision):
            prepared = self.keeping.prepare(images.to(self.device, non_blocking=True))
            return self.border.before(prepared)

    def _rows(self, images: Tensor, precision: str) -> Tensor:
        found = self._features(images, precision)
        return (found.permute(0, 2, 3, 1) if self.channels_last else found).contiguous().cpu()

    def _view(self, view: int) -> Callable[[int], Iterator[Tensor]]:
        def produce(start: int) -> Iterator[Tensor]:
            places = np.arange(start, len(self.passing.loader.dataset.images))
            size = self._pass_size()
            batches = [places[at : at + size] for at in range(0, len(places), size)]
            for batch in _ahead(self.passing.loader.these(batches, view)):
                yield self._rows(batch.views[0], self.keeping.precision)

        return produce

    def _validation(self, start: int) -> Iterator[Tensor]:
        if self.passing.holdout is not None:
            for batch in self.passing.holdout.batches(start):
                yield self._rows(batch, "fp32")


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The same, each prepared by a thread while the one before is in use."""
    nothing = object()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, nothing)
        while (item := coming.result()) is not nothing:
            coming = pool.submit(next, items, nothing)
            yield item  # type: ignore[misc]  # never `nothing`
