"""Feature cache of a run: computes or loads the features of the frozen layers for each phase.

The cache key covers everything that determines the features: weights and layers before the split,
image files, preprocessing, view and precision.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from unfreeze.data.cache.chunk_store import cache_key, evict
from unfreeze.data.cache.folder import FEATURE_CACHE
from unfreeze.data.loading.loader import Loader
from unfreeze.models.shape_trace import example_input
from unfreeze.runtime.console import Console
from unfreeze.runtime.device import autocast
from unfreeze.runtime.distributed import Distributed
from unfreeze.transfer import validation as held_out
from unfreeze.transfer.feature_cache.loader import CachedLoader, CachedView
from unfreeze.transfer.feature_cache.store import (
    CachedFeatures,
    CacheKey,
    cache_features,
    check_disk_space,
)
from unfreeze.transfer.freezing.freeze import apply_freeze, hash_tensors
from unfreeze.transfer.freezing.schedule import FrozenPhase, is_cached
from unfreeze.transfer.freezing.split_model import NoSplitPoint, SplitPoint, find_split_point
from unfreeze.transfer.head_solver import find_head_input
from unfreeze.transfer.validation import ValidationSet

T = TypeVar("T")
PASS_PIXELS = {"cpu": 2**19}  # pixels per forward pass, roughly; on other devices:
PASS_PIXELS_DEVICE = 2**23
PASS_MOST = 512  # largest batch of a forward pass


@dataclass(frozen=True)
class CacheSource:
    """Datasets whose features are cached, and the rows of them that this run uses (None: all)."""

    loader: Loader
    holdout: ValidationSet | None
    train: Tensor | None = None
    val: Tensor | None = None


@dataclass(frozen=True)
class CacheConfig:
    """Configuration of the cache: `mode` is FEATURES or ACTIVATIONS; `views` per image.

    `prepare`: uint8 [B, side, side, 3] to the network's input. `memory`, `disk`: limits in bytes.
    `about`: plain values for the cache key beyond the network's; `train`, `val`: digests of the
    images.
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
    pass_size: int = 0  # samples in a forward pass; 0: by `side`
    head: tuple[str, ...] = ()  # cache the pooled input of this head; (): split anywhere


class FeatureCache:
    """Provides the cached features of each phase of a run; holds one phase at a time."""

    def __init__(
        self,
        network: nn.Module,
        loader: Loader,
        holdout: ValidationSet | None,
        *,
        config: CacheConfig,
        phases: Sequence[FrozenPhase],
        processes: Distributed | None = None,
        source: CacheSource | None = None,
    ) -> None:
        self.network, self.loader, self.holdout = network, loader, holdout
        self.config, self.phases = config, list(phases)
        self.processes = processes or Distributed()
        self.source = source or CacheSource(loader, holdout)
        self.device = next(network.parameters()).device
        self._held: tuple[FrozenPhase, CachedLoader | None] | None = None

    def at(self, epoch: int, console: Console, stop: Callable[[], bool]) -> CachedLoader | None:
        """Cached features for an epoch; computes those that are missing.

        None if the epoch trains on images, or if `stop` returned true before the end.
        """
        phase = next(s for s in self.phases if s.first <= epoch < s.last)
        if self._held is None or self._held[0] != phase:
            self._held = None  # free the memory of the previous phase first
            cached = self._cached(phase, console, stop)
            if cached is None and self.processes.any([stop()])[0]:
                return None
            self._held = phase, cached
        return self._held[1]

    def _cached(
        self, phase: FrozenPhase, console: Console, stop: Callable[[], bool]
    ) -> CachedLoader | None:
        if not is_cached(self.config.mode, phase):
            return None
        try:
            split_point = self._split_point(phase)
            self.network.eval()  # the trainer sets train mode
        except NoSplitPoint as reason:
            console.say(f"No feature cache from epoch {phase.first} on: {reason}.")
            return None
        return _PhaseCache(self, phase, split_point, console, stop).cached()

    def _split_point(self, phase: FrozenPhase) -> SplitPoint:
        if self.config.head:
            apply_freeze(self.network, phase.frozen)
            return find_head_input(self.network, self.config.head, self.config.side)
        return find_split_point(self.network, phase.frozen, self.config.side)


class _PhaseCache:
    """Computes or loads the features of one phase."""

    def __init__(
        self,
        feature_cache: FeatureCache,
        phase: FrozenPhase,
        split_point: SplitPoint,
        console: Console,
        stop: Callable[[], bool],
    ) -> None:
        self.feature_cache, self.phase, self.split_point = feature_cache, phase, split_point
        self.console, self.stop = console, stop
        self.config, self.device = feature_cache.config, feature_cache.device
        self.source = feature_cache.source
        self.hashes = hash_tensors(feature_cache.network.state_dict(), split_point.entries)
        self.probes = {name: self._probe(name) for name in {self.config.precision, "fp32"}}
        self.channels_last = self.probes["fp32"][0]

    def cached(self) -> CachedLoader | None:
        feature_cache = self.feature_cache
        count = len(self.source.loader.dataset.images)
        views = self.phase.views(self.config.views)
        keys = [self._key("train", view, count) for view in views]
        if self.source.holdout is not None:
            keys.append(self._key("val", 0, len(self.source.holdout.images)))
        feature_cache.processes.on_rank_zero(lambda: self._make_room(keys))
        caches = []
        for index, key in enumerate(keys):
            produce = self._view(views[index]) if index < len(views) else self._validation
            cache = cache_features(key, produce, self.console, self.stop, feature_cache.processes)
            if cache is None:
                return None
            caches.append(cache)
        rows = [*[self.source.train] * len(views), self.source.val]
        features = [
            CachedView(cache, channels_last=self.channels_last, device=self.device, places=places)
            for cache, places in zip(self._in_memory(caches), rows, strict=False)
        ]
        return CachedLoader(
            self.split_point,
            dict(zip(views, features, strict=False)),
            features[-1] if feature_cache.holdout is not None else None,
            count=self.config.views,
            loader=feature_cache.loader,
            holdout=feature_cache.holdout,
            hashes=self.hashes,
        )

    def _make_room(self, keys: list[CacheKey]) -> None:
        needed = sum(key.store.missing_bytes(key.rows * key.row_bytes) for key in keys)
        spared = [key.key for key in keys]
        removed = evict(FEATURE_CACHE, self.config.disk, needed, spared=spared)
        if removed:
            self.console.say(f"Removed {len(removed)} older feature caches to free disk space.")
        check_disk_space(needed)

    def _in_memory(self, caches: list[CachedFeatures]) -> list[CachedFeatures]:
        limit = self.config.memory
        if self.device.type == "cuda":
            limit = torch.cuda.mem_get_info(self.device)[0] // 4
        if sum(cache.nbytes for cache in caches) > limit:
            return caches
        return [cache.held(self.device) for cache in caches]

    def _key(self, part: str, view: int, rows: int) -> CacheKey:
        precision = self.config.precision if part == "train" else "fp32"
        _, shape, dtype = self.probes[precision]
        batch = self._pass_size() if part == "train" else held_out.BATCH
        about = {
            **self.config.about,
            "torch": torch.__version__,
            "device": self.device.type,
            "precision": precision,
            "split_point": self.split_point.name,
            "text": self.split_point.text,
            "weights": self.hashes,
            "channels_last": self.channels_last,
            "part": part,
            "view": view,
            "images": self.config.train() if part == "train" else self.config.val(),
            "batch": batch,
        }
        if part == "val":
            about |= {"augment": None, "seed": None, "shrunk": None}  # not random, full size
        key = cache_key(json.dumps(about, sort_keys=True).encode())
        name = f"view {view}" if part == "train" else "validation"
        return CacheKey(key, rows, shape, dtype, batch, f"{self.split_point.name}, {name}")

    def _pass_size(self) -> int:
        if self.config.pass_size:
            return self.config.pass_size
        pixels = PASS_PIXELS.get(self.device.type, PASS_PIXELS_DEVICE)
        return min(PASS_MOST, max(16, pixels // self.config.side**2))

    def _probe(self, precision: str) -> tuple[bool, tuple[int, ...], torch.dtype]:
        """(whether channels are last in memory, shape of one image's row on disk, dtype)."""
        side, network = self.config.side, self.feature_cache.network
        example = example_input(network, (side, side), 2, device=self.device)
        with torch.inference_mode(), autocast(self.device, precision):
            features = self.split_point.before(example)
        last = features.dim() == 4 and features.is_contiguous(memory_format=torch.channels_last)
        last = last and not features.is_contiguous()
        shape = features.permute(0, 2, 3, 1).shape if last else features.shape
        return last, tuple(shape[1:]), features.dtype

    def _features(self, images: Tensor, precision: str) -> Tensor:
        with torch.inference_mode(), autocast(self.device, precision):
            prepared = self.config.prepare(images.to(self.device, non_blocking=True))
            return self.split_point.before(prepared)

    def _rows(self, images: Tensor, precision: str) -> Tensor:
        features = self._features(images, precision)
        rows = features.permute(0, 2, 3, 1) if self.channels_last else features
        return rows.contiguous().cpu()

    def _view(self, view: int) -> Callable[[int], Iterator[Tensor]]:
        def produce(start: int) -> Iterator[Tensor]:
            positions = np.arange(start, len(self.source.loader.dataset.images))
            size = self._pass_size()
            batches = [positions[first : first + size] for first in range(0, len(positions), size)]
            for batch in _prefetched(self.source.loader.these(batches, view)):
                yield self._rows(batch.views[0], self.config.precision)

        return produce

    def _validation(self, start: int) -> Iterator[Tensor]:
        if self.source.holdout is not None:
            for batch in self.source.holdout.batches(start):
                yield self._rows(batch, "fp32")


def _prefetched(items: Iterator[T]) -> Iterator[T]:
    """Yield the items, preparing the next one in a thread while one is in use."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(next, items, end)
        while (item := pending.result()) is not end:
            pending = pool.submit(next, items, end)
            yield item  # type: ignore[misc]  # never `end`
