"""What a prediction comes from: maps over the image, and the training images nearest to it."""

import io
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from unfreeze.data.images.preprocess import Pixels
from unfreeze.models.activation_maps import activation_maps
from unfreeze.reports.activation_overlay import beside, overlay_map, shown_size
from unfreeze.runtime.console import Console
from unfreeze.transfer.predictor import InferenceNetwork, Read

BATCH = 16  # images per backward pass
SMALLEST, LARGEST = 224, 640  # pixels of an image's longer side in a file of `predict --explain`


def overlays(
    network: InferenceNetwork, images: Sequence[Pixels], classes: Tensor, low: int, high: int
) -> Iterator[tuple[Pixels, Pixels]]:
    """(image, image with the map of its class) of images [H, W, 3] and int64 `classes` [N].

    Their longer side has `low` to `high` pixels.
    """
    preprocess = network.preprocess
    batch = network.prepare(preprocess.collate([preprocess.pixels(image) for image in images]))
    maps: npt.NDArray[np.float32] = activation_maps(network, batch, classes).cpu().numpy()
    for image, values in zip(images, maps, strict=True):
        shown, scale = shown_size(image, low, high)
        top, left, height, width = (
            scale * value for value in preprocess.region(image.shape[0], image.shape[1])
        )
        yield shown, overlay_map(shown, values, (top, left, height, width))


def explained_images(
    network: InferenceNetwork, reads: Sequence[Read], classes: Tensor, console: Console
) -> Iterator[bytes]:
    """A PNG for each image: the image beside the same with the map of its class."""
    with console.progress("explained", len(reads)) as advance:
        for start in range(0, len(reads), BATCH):
            images = [read() for read in reads[start : start + BATCH]]
            some = classes[start : start + BATCH]
            for pair in overlays(network, images, some, SMALLEST, LARGEST):
                stream = io.BytesIO()
                Image.fromarray(beside(list(pair))).save(stream, "PNG")
                yield stream.getvalue()
                advance(1)
