"""The in-memory pixel cache: decoded images in one flat buffer, by row of the source."""

import numpy as np
import numpy.typing as npt

_GROWTH = 1.25


class PixelStore:
    """uint8 pixels [H, W, 3] by row of a source; forked workers share its one buffer.

    `resize_to`: the largest shorter side (None: not resized). `offsets`: -1 for rows that are not
    cached. The pixels equal those of decoding and resizing the image.
    """

    def __init__(self, rows: int, *, capacity: int, resize_to: int | None) -> None:
        self.resize_to = resize_to
        self.buffer: npt.NDArray[np.uint8] = np.empty(capacity, np.uint8)
        self.offsets: npt.NDArray[np.int64] = np.full(rows, -1, np.int64)
        self.shapes: npt.NDArray[np.int32] = np.zeros((rows, 2), np.int32)
        self.used = 0

    def add(self, row: int, pixels: npt.NDArray[np.uint8]) -> None:
        """Adds an image; the buffer grows if necessary."""
        end = self.used + pixels.size
        if end > len(self.buffer):
            larger = np.empty(max(end, int(len(self.buffer) * _GROWTH)), np.uint8)
            larger[: self.used] = self.buffer[: self.used]
            self.buffer = larger
        self.buffer[self.used : end] = pixels.reshape(-1)
        self.offsets[row], self.shapes[row], self.used = self.used, pixels.shape[:2], end

    def __contains__(self, row: int) -> bool:
        return bool(self.offsets[row] >= 0)

    def __getitem__(self, row: int) -> npt.NDArray[np.uint8]:
        """A view [H, W, 3], read-only by convention; KeyError if the row is not cached."""
        start = int(self.offsets[row])
        if start < 0:
            raise KeyError(row)
        height, width = (int(side) for side in self.shapes[row])
        return self.buffer[start : start + height * width * 3].reshape(height, width, 3)

    def block(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8] | None:
        """Pixels [N, H, W, 3] of rows of equal shape, else None.

        A view if the rows are adjacent in the buffer, else a copy.
        """
        shapes, offsets = self.shapes[rows], self.offsets[rows]
        if not len(rows) or (offsets < 0).any() or (shapes != shapes[0]).any():
            return None
        height, width = (int(side) for side in shapes[0])
        size = height * width * 3
        if (np.diff(offsets) == size).all():
            flat = self.buffer[offsets[0] : offsets[0] + size * len(rows)]
            return flat.reshape(len(rows), height, width, 3)
        return np.stack([self[int(row)] for row in rows])
