"""The dataset: decoded images (or texts) by position, from the pixel cache if there is one."""

import time

import numpy as np
import numpy.typing as npt

from unfreeze.data.cache.memory_map import MappedPixelCache
from unfreeze.data.cache.policy import MemoryPixelCache
from unfreeze.data.images.decode import resize_shorter_side
from unfreeze.data.images.errors import Undecodable
from unfreeze.data.index.index import Index
from unfreeze.errors import DataError

_PAUSES = (0.1, 0.5)  # seconds before the second and the third attempt


class FileLost(DataError):
    """An image that could not be read in three attempts; it passed the check or was not checked."""

    def __init__(self, path: str, detail: str) -> None:
        super().__init__(
            f"{path} could not be read in three attempts: {detail}.",
            "Restore the file and continue with --resume, or remove it and start a new run (--scan "
            "full finds such files before the first step).",
        )
        self.path, self.detail = path, detail

    def __reduce__(self) -> tuple[type["FileLost"], tuple[str, str]]:
        return FileLost, (self.path, self.detail)


class ImageDataset:
    """`images[i]` is uint8 [H, W, 3] of position i of `index`; safe in threads and after fork.

    `resize_to`: the largest length of the shorter side in pixels; a pixel cache (`store`) has its
    own. Reading is retried twice; then FileLost is raised.
    """

    def __init__(
        self,
        index: Index,
        store: MemoryPixelCache | MappedPixelCache | None = None,
        *,
        resize_to: int | None = None,
    ) -> None:
        self.index, self.store = index, store
        self.resize_to = resize_to if store is None else store.resize_to

    @property
    def held(self) -> str:
        """Where the pixel cache is: memory, disk or none."""
        if self.store is None:
            return "none"
        return "memory" if isinstance(self.store, MemoryPixelCache) else "disk"

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, position: int) -> npt.NDArray[np.uint8]:
        row = int(self.index.rows[position])
        if self.store is not None and row in self.store:
            return self.store[row]
        for pause in _PAUSES:
            try:
                return self._decode(row)
            except (OSError, Undecodable):
                time.sleep(pause)
        try:
            return self._decode(row)
        except (OSError, Undecodable) as error:
            detail = error.detail if isinstance(error, Undecodable) else str(error)
            raise FileLost(self.index.source.names[row], detail) from error

    def _decode(self, row: int) -> npt.NDArray[np.uint8]:
        return resize_shorter_side(self.index.source.sample(row), self.resize_to)
