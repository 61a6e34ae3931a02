"""The features that a teacher computes of the training images, from the feature cache."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from unfreeze.config.finetune import FinetuneSettings
from unfreeze.data.cache.chunk_store import cache_key, evict
from unfreeze.data.cache.folder import FEATURE_CACHE, RESERVED_BYTES
from unfreeze.data.images.decode import DECODER
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.data.index.index import Index
from unfreeze.data.loading.dataset import ImageDataset
from unfreeze.data.validate.duplicates import HEAD, content_keys
from unfreeze.errors import Interrupted, ResourceError, WeightsError
from unfreeze.models.layer_costs import ComputeDevice, network_cost, network_flops_per_second
from unfreeze.runs.pretraining.teacher import Teacher
from unfreeze.runtime.console import Console
from unfreeze.runtime.distributed import Distributed
from unfreeze.runtime.time_limit import TimeLimit, rough_duration
from unfreeze.tasks.base import TeacherFeatures
from unfreeze.transfer.feature_cache.store import (
    CacheKey,
    cache_features,
    feature_cache_folder,
    free_bytes,
)
from unfreeze.transfer.predictor import InferenceNetwork

PASS_PIXELS = {"cpu": 2**20}  # pixels of a forward pass, roughly; on other devices:
PASS_PIXELS_DEVICE = 2**23
CHUNK = 2**23  # bytes about: an interrupted pass loses at most one
CACHE_BYTES = int(FinetuneSettings.cache_budget * 2**30)


def teacher_features(
    teacher: Teacher,
    index: Index,
    device: torch.device,
    processes: Distributed,
    console: Console,
    deadline: TimeLimit | None = None,
) -> TeacherFeatures:
    """The features of all images of an index, those of `embed`: cached, or computed now.

    An interrupted pass continues after its last chunk. Interrupted at the deadline, ResourceError
    if the disk is full, FileLost for a file that can no longer be read, WeightsError for features
    that are NaN or infinite. Collective.
    """
    network, source, intensity = teacher.network.to(device), index.source, index.source.intensity
    if teacher.preprocess.intensity != "auto":
        source.intensity = teacher.preprocess.intensity
    try:
        wanted = _key(teacher, index, device)
        processes.on_rank_zero(lambda: _make_room(wanted, console))
        produce = _producer(network, ImageDataset(index), wanted.batch)
        stop = _deadline_check(deadline or TimeLimit())
        cached = cache_features(wanted, produce, console, stop, processes)
    finally:
        source.intensity = intensity
        network.to("cpu")
    if cached is None:
        raise Interrupted(
            f"Stopped by --time-limit while {teacher.name} computed features.",
            "The same command continues after those that are cached.",
        )
    _check_finite(cached.parts, index, teacher.name)
    return TeacherFeatures(cached.parts, teacher.sha256)


def _deadline_check(deadline: TimeLimit) -> Callable[[], bool]:
    """Called after each batch: whether the deadline leaves no time for another one."""
    before = time.monotonic()

    def reached() -> bool:
        nonlocal before
        now = time.monotonic()
        seconds, before = now - before, now
        return deadline.reached(seconds)

    return reached


def teacher_reasons(teacher: Teacher, images: int, device: torch.device) -> dict[str, str]:
    """Lines for the plan: where the teacher comes from, and what its features cost."""
    rows, columns = teacher.preprocess.shape
    size = 4 * teacher.width * images / 2**20
    cost = f"each image once, at {rows}x{columns}; {teacher.width:,} features"
    cost += f", {size:,.1f} MiB in the feature cache"
    seconds = pass_seconds(teacher, images, device)
    if seconds is not None:
        cost += f"; {rough_duration(seconds)} unless they are cached"
    licence = teacher.licence or "unknown: see where its weights come from"
    return {
        "teacher": teacher.source,
        "teacher_features": cost,
        "teacher_licence": licence,
    }


def pass_seconds(teacher: Teacher, images: int, device: torch.device) -> float | None:
    """Seconds of the pass over all images, at a speed measured for a second; None if unknown."""
    network, side = teacher.network.network, max(teacher.preprocess.shape)
    every = [name for name, _ in network.named_parameters()]
    work = network_cost(network, every, side)
    if work is None:
        return None
    speed = network_flops_per_second(
        network,
        every,
        side,
        rows=_pass_size(teacher.preprocess, device),
        machine=ComputeDevice(device, "fp32"),
        training=False,
    )
    return images * work.forward / speed if speed else None


def _pass_size(preprocess: Preprocess, device: torch.device) -> int:
    height, width = preprocess.shape
    pixels = PASS_PIXELS.get(device.type, PASS_PIXELS_DEVICE)
    return max(1, min(256, pixels // (height * width)))


def _key(teacher: Teacher, index: Index, device: torch.device) -> CacheKey:
    """The entry of these features: its name depends on everything that they depend on."""
    batch = _pass_size(teacher.preprocess, device)
    images = hashlib.sha256(content_keys(index).tobytes())
    if (index.source.sizes[index.rows] > HEAD).any():  # keys hash the first bytes of a file alone
        images.update(index.source.fingerprint().encode())
    about = {
        "teacher": teacher.sha256,
        "images": images.hexdigest(),
        "intensity": str(index.source.intensity),
        "torch": torch.__version__,
        "decoder": DECODER,
        "device": device.type,
        "batch": batch,
    }
    key = cache_key(json.dumps(about, sort_keys=True).encode())
    shape, name = (teacher.width,), "the teacher's features"
    return CacheKey(key, len(index), shape, torch.float32, batch, name, CHUNK)


def _make_room(wanted: CacheKey, console: Console) -> None:
    needed = wanted.store.missing_bytes(wanted.rows * wanted.row_bytes)
    removed = evict(FEATURE_CACHE, CACHE_BYTES, needed, spared=[wanted.key])
    if removed:
        console.say(f"Removed {len(removed)} older feature caches to free disk space.")
    free = free_bytes()
    if needed and needed + RESERVED_BYTES > free:
        raise ResourceError(
            f"The teacher's features need {needed / 2**30:.1f} GiB in {feature_cache_folder()}, "
            f"but only {free / 2**30:.1f} GiB are free.",
            "Free disk space, or set UNFREEZE_CACHE to a folder on a larger disk.",
        )


def _producer(
    network: InferenceNetwork, images: ImageDataset, batch: int
) -> Callable[[int], Iterator[Tensor]]:
    """A function that yields the features of batches of images from a position on."""

    def produce(start: int) -> Iterator[Tensor]:
        reads = (partial(images.__getitem__, i) for i in range(start, len(images)))
        return network.outputs(reads, batch_size=batch)

    return produce


def _check_finite(parts: list[Tensor], index: Index, name: str) -> None:
    position = 0
    for part in parts:
        bad = torch.nonzero(~torch.isfinite(part).all(dim=1)).flatten().tolist()
        if bad:
            raise WeightsError(
                f"The features of the teacher {name} are NaN or infinite, first for "
                f"{index.paths[position + bad[0]]}.",
                "Give another teacher.",
            )
        position += len(part)
