"""How many prototypes, and whether a queue: from the images and the batch."""

from typing import NamedTuple

MOST = 3_000  # prototypes, as published for 1.28 million images
# up to this many prototypes for each image of a batch a queue is not needed, and on 10,000
# images it cost 2 points of k-NN (docs/LOG.md)
PROTOTYPES_A_IMAGE = 4


class Counted(NamedTuple):
    """A number and its reason."""

    value: int
    why: str


def longest_queue(images: int, batch: int) -> int:
    """Features that a queue may hold: whole batches, 15 at most, a quarter of the images."""
    return min(15 * batch, images // 4) // batch * batch


def fillable(batch: int, queue: int) -> int:
    """Prototypes that codes of such a batch and queue can be shared out among."""
    return max(PROTOTYPES_A_IMAGE * batch, batch + queue)


def prototypes(images: int, batch: int | None, queue: int | None) -> Counted:
    """K. `batch` None: not limited by it; `queue` None: as long as it may be."""
    grown = 8 * round(100 * (images / 10_000) ** 0.7 / 8)
    K = min(MOST, max(64, grown), max(2, images // 8))
    why = f"grows with the {images:,} images (3,000 for a million)"
    if batch is None:
        return Counted(K, why)
    held = longest_queue(images, batch) if queue is None else queue
    reach = fillable(batch, held)
    if reach < K:
        behind = f" and {held} queued features" if reach == batch + held else ""
        return Counted(reach, f"what a batch of {batch}{behind} can fill")
    return Counted(K, why)


def queue(images: int, batch: int, K: int) -> Counted:
    """Features that are queued, 0 where the batch does without."""
    if PROTOTYPES_A_IMAGE * batch >= K:
        return Counted(0, f"a batch of {batch} is enough for {K:,} prototypes")
    length = longest_queue(images, batch)
    if not length:
        return Counted(0, f"{images:,} images are too few for one")
    return Counted(length, f"at most a quarter of the {images:,} images, and 15 batches")
