"""Data sets that come with a dependency, or through one: `digits` and `cifar10`."""

import contextlib
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unfreeze.data.sources.source import Source, digest
from unfreeze.data.splits import stratified
from unfreeze.errors import DataError

_DIGITS_TEST = 360  # of 1,797
_DIGITS_SEED = 0


class ArraySource(Source):
    """Images held as pixels [N, H, W, 3] uint8."""

    listed = True

    def __init__(
        self, kind: str, pixels: npt.NDArray[np.uint8], labels: list[str], splits: list[str]
    ) -> None:
        self.kind = self.where = kind
        self._pixels = pixels
        self.labels, self.splits = labels, splits
        width = len(str(len(pixels) - 1))
        self.names = [
            f"{split}/{label}/{row:0{width}}.png"
            for row, (split, label) in enumerate(zip(splits, labels, strict=True))
        ]
        self.sizes = np.full(len(pixels), pixels[0].nbytes, np.int64)

    def read(self, row: int) -> npt.NDArray[np.uint8]:
        """Pixels [H, W, 3]."""
        image: npt.NDArray[np.uint8] = self._pixels[row]
        return image

    def head(self, row: int, count: int) -> bytes:
        """None: there are no encoded bytes."""
        del row, count
        return b""

    def fingerprint(self) -> str:
        """Names and pixels."""
        return digest(self.names, self._pixels)


def digits() -> ArraySource:
    """Scikit-learn's handwritten digits: 8x8, 1,437 train and 360 test by a fixed seed.

    The source's grey levels 0..16 become 0..255; the number in a name is the row in scikit-learn.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    labels = np.asarray(bunch.target, np.int32)
    everything = np.arange(len(labels))
    _, test = stratified(labels, everything, fraction=_DIGITS_TEST / len(labels), seed=_DIGITS_SEED)
    splits = np.full(len(labels), "train", dtype=object)
    splits[test] = "test"
    pixels = np.ascontiguousarray(np.repeat(grey[..., None], 3, axis=3))
    return ArraySource("digits", pixels, [str(label) for label in labels], splits.tolist())


def cifar10(data_root: str, *, fetch: bool = True) -> ArraySource:
    """CIFAR-10 through torchvision; with `fetch` it comes into `data_root` if it is not there."""
    from torchvision.datasets import CIFAR10

    try:
        # torchvision prints; stdout is for results
        with contextlib.redirect_stdout(io.StringIO()):
            parts = [CIFAR10(data_root, train=train, download=fetch) for train in (True, False)]
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise DataError(
            f"CIFAR-10 is not in {Path(data_root)} and "
            + (f"could not be fetched: {error}." if fetch else "a dry run fetches nothing."),
            "Unpack cifar-10-python.tar.gz there by hand (or name its place with --data-root), "
            "or give your own copy as a folder or zip.",
        ) from error
    pixels = np.concatenate([part.data for part in parts])
    labels = [part.classes[target] for part in parts for target in part.targets]
    splits = ["train"] * len(parts[0]) + ["test"] * len(parts[1])
    return ArraySource("cifar10", pixels, labels, splits)
