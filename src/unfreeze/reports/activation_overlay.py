"""Draws a class-activation map over its image."""

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Map = npt.NDArray[np.float32]
Region = tuple[float, float, float, float]
OPACITY = 0.7  # of the colour where the map is 1; 0 where it is 0
UNSEEN = 0.35  # brightness that is left outside of what the network sees
GAP = 8  # pixels between the two images


def overlay_map(image: Pixels, values: Map, region: Region) -> Pixels:
    """The image [H, W, 3] with the map [h, w] over it, dark violet (0) to yellow (1).

    `region`: (top, left, height, width) in pixels that the map covers, see `Preprocess.region`;
    what lies outside was not seen by the network, and is dark.
    """
    top, left, height, width = region
    rows, inside_rows = _weights(image.shape[0], values.shape[0], top, height)
    columns, inside_columns = _weights(image.shape[1], values.shape[1], left, width)
    shares = np.clip(rows @ values.astype(np.float64) @ columns.T, 0, 1)
    levels = np.rint(255 * shares).astype(np.uint8)
    colours = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[..., ::-1].astype(np.float64)
    opacity = OPACITY * shares[..., None]
    mixed = (1 - opacity) * image + opacity * colours
    seen = inside_rows[:, None] & inside_columns[None, :]
    drawn: Pixels = np.rint(np.where(seen[..., None], mixed, UNSEEN * image)).astype(np.uint8)
    return drawn


def _weights(
    pixels: int, cells: int, start: float, length: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Bilinear weights [pixels, cells], and whether each pixel lies inside the map."""
    place = (np.arange(pixels) + 0.5 - start) / length * cells - 0.5
    weights = np.stack([np.interp(place, np.arange(cells), one) for one in np.eye(cells)], axis=1)
    return weights, (place > -0.5) & (place < cells - 0.5)


def shown_size(image: Pixels, low: int, high: int) -> tuple[Pixels, float]:
    """(the image with its longer side in `low`..`high` pixels, its scale)."""
    longer = max(image.shape[:2])
    scale = min(max(longer, low), high) / longer
    if scale == 1:
        return image, 1.0
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    sampling = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    return np.asarray(Image.fromarray(image).resize(size, sampling)), scale


def beside(images: list[Pixels]) -> Pixels:
    """Images of one height in a row, with white between them."""
    white = np.full((images[0].shape[0], GAP, 3), 255, np.uint8)
    parts = [part for image in images for part in (white, image)]
    return np.concatenate(parts[1:], axis=1)
