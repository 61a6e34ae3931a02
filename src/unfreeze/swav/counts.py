"""Number of prototypes and queue length, from dataset size and batch size."""

from typing import NamedTuple

MOST = 3_000  # prototypes, as published for 1.28 million images
# up to this many prototypes per image of a batch no queue is needed; on 10,000 images a queue
# cost 2 points of k-NN accuracy (docs/LOG.md)
PROTOTYPES_PER_IMAGE = 4


class Counted(NamedTuple):
    """A value and its reason."""

    value: int
    why: str


def longest_queue(images: int, batch: int) -> int:
    """Maximum queue length: at most 15 batches and a quarter of the images, in full batches."""
    return min(15 * batch, images // 4) // batch * batch


def fillable(batch: int, queue: int) -> int:
    """Number of prototypes that the codes of such a batch and queue can fill."""
    return max(PROTOTYPES_PER_IMAGE * batch, batch + queue)


def prototypes(images: int, batch: int | None, queue: int | None) -> Counted:
    """Number of prototypes K. `batch` None: not limited by it; `queue` None: the longest one."""
    by_images = 8 * round(100 * (images / 10_000) ** 0.7 / 8)
    K = min(MOST, max(64, by_images), max(2, images // 8))
    why = f"grows with the {images:,} images (3,000 for a million)"
    if batch is None:
        return Counted(K, why)
    length = longest_queue(images, batch) if queue is None else queue
    limit = fillable(batch, length)
    if limit < K:
        queued = f" and {length} queued features" if limit == batch + length else ""
        return Counted(limit, f"as many as a batch of {batch}{queued} can fill")
    return Counted(K, why)


def queue(images: int, batch: int, K: int) -> Counted:
    """Queue length, 0 where the batch needs no queue."""
    if PROTOTYPES_PER_IMAGE * batch >= K:
        return Counted(0, f"a batch of {batch} is enough for {K:,} prototypes")
    length = longest_queue(images, batch)
    if not length:
        return Counted(0, f"{images:,} images are too few for a queue")
    return Counted(length, f"at most a quarter of the {images:,} images and 15 batches")
