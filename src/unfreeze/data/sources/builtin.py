"""Built-in datasets: `digits` (scikit-learn) and `cifar10` (torchvision)."""

import contextlib
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unfreeze.data.index.splits import stratified_split
from unfreeze.data.sources.source import Source, hash_names
from unfreeze.errors import DataError

_DIGITS_TEST = 360  # of 1,797
_DIGITS_SEED = 0


class ArraySource(Source):
    """Images in memory, uint8 [N, H, W, 3]."""

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
        """Empty: there are no encoded bytes."""
        del row, count
        return b""

    def fingerprint(self) -> str:
        """Names and pixels."""
        return hash_names(self.names, self._pixels)


def load_digits_dataset() -> ArraySource:
    """Scikit-learn's handwritten digits: 8x8, 1,437 train and 360 test with a fixed seed.

    Grey levels 0..16 are scaled to 0..255. The number in each name is the row in scikit-learn.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    labels = np.asarray(bunch.target, np.int32)
    positions = np.arange(len(labels))
    _, test = stratified_split(
        labels, positions, fraction=_DIGITS_TEST / len(labels), seed=_DIGITS_SEED
    )
    splits = np.full(len(labels), "train", dtype=object)
    splits[test] = "test"
    pixels = np.ascontiguousarray(np.repeat(grey[..., None], 3, axis=3))
    return ArraySource("digits", pixels, [str(label) for label in labels], splits.tolist())


def load_cifar10(data_root: str, *, fetch: bool = True) -> ArraySource:
    """CIFAR-10 through torchvision; `fetch` downloads it to `data_root` if it is missing."""
    from torchvision.datasets import CIFAR10

    try:
        # torchvision prints; stdout is for results
        with contextlib.redirect_stdout(io.StringIO()):
            parts = [CIFAR10(data_root, train=train, download=fetch) for train in (True, False)]
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise DataError(
            f"CIFAR-10 is not in {Path(data_root)} and "
            + (f"cannot be downloaded: {error}." if fetch else "a dry run downloads nothing."),
            "Extract cifar-10-python.tar.gz there (or give its folder with --data-root), "
            "or give a copy as a folder or zip.",
        ) from error
    pixels = np.concatenate([part.data for part in parts])
    labels = [part.classes[target] for part in parts for target in part.targets]
    splits = ["train"] * len(parts[0]) + ["test"] * len(parts[1])
    return ArraySource("cifar10", pixels, labels, splits)
