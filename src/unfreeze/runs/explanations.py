"""What a prediction comes from: maps over the image, and the training images nearest to it."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from unfreeze.data.images.errors import Undecodable
from unfreeze.data.images.preprocess import Pixels
from unfreeze.data.index.index import TEST, VAL
from unfreeze.errors import DataError, UsageError
from unfreeze.models.activation_maps import activation_maps
from unfreeze.reports.activation_overlay import beside, overlay_map, shown_size
from unfreeze.reports.examples import NearImage, encode_image
from unfreeze.runs.eval_split import EvaluationSet, Positions
from unfreeze.runs.inference import reader_of_row
from unfreeze.runtime.console import Console, printable
from unfreeze.transfer.known_images import KnownImages, LogitsAndFeatures
from unfreeze.transfer.predictor import Classifier, InferenceNetwork, Read

BATCH = 8  # images per backward pass
SMALLEST, LARGEST = 224, 640  # pixels of an image's longer side in a file of `predict --explain`
IN_REPORT = 320  # the same in a report
NEAREST, THUMBNAIL = 3, 112  # training images beside a mistake, and pixels of their longer side


@dataclass(frozen=True)
class Explanation:
    """An encoded image with its map (b"": none), and the training images nearest to it."""

    map: bytes = b""
    nearest: tuple[NearImage, ...] = ()


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
    network: InferenceNetwork,
    names: Sequence[str],
    reads: Sequence[Read],
    classes: Tensor,
    console: Console,
) -> Iterator[bytes]:
    """A PNG for each image: the image beside the same with the map of its class.

    DataError for a file that was predicted and can no longer be read.
    """
    with console.progress("explained", len(reads)) as advance:
        for start in range(0, len(reads), BATCH):
            part, some = slice(start, start + BATCH), classes[start : start + BATCH]
            images = [_again(*one) for one in zip(names[part], reads[part], strict=True)]
            for pair in overlays(network, images, some, SMALLEST, LARGEST):
                stream = io.BytesIO()
                Image.fromarray(beside(list(pair))).save(stream, "PNG")
                yield stream.getvalue()
                advance(1)


def _again(name: str, read: Read) -> Pixels:
    """The pixels of an image that was read before."""
    try:
        return read()
    except (OSError, Undecodable) as error:
        raise DataError(
            f"{name} was predicted, and can no longer be read: {error}.",
            "The images before it are explained. Run it again with another --explain.",
        ) from error


def explain_mistakes(
    network: Classifier,
    known: KnownImages | str,
    eval_set: EvaluationSet,
    kept: Positions,
    reads: Sequence[Read],
    predicted: Sequence[str],
    console: Console,
) -> list[Explanation]:
    """An explanation for each of some images that the network classified as `predicted`.

    `kept` [N]: their positions among the images evaluated; `reads`: functions that read them. The
    nearest training images are those of `known` that are in the evaluated data, too; () if there
    are none. A network without feature maps: no maps, and a warning.
    """
    number = {name: position for position, name in enumerate(network.classes)}
    classes = torch.tensor([number[name] for name in predicted])
    images = [read() for read in reads]
    maps = [b""] * len(images)
    try:
        for start in range(0, len(images), BATCH):
            some = slice(start, start + BATCH)
            drawn = overlays(network, images[some], classes[some], SMALLEST, IN_REPORT)
            maps[some] = [encode_image(overlaid, IN_REPORT) for _, overlaid in drawn]
    except UsageError as error:
        console.warn(f"The report has no class-activation maps: {error.sentence}")
    near: list[tuple[NearImage, ...]] = [()] * len(images)
    if isinstance(known, KnownImages) and images:
        near = _nearest(network, known, eval_set, kept, reads)
    return [Explanation(*both) for both in zip(maps, near, strict=True)]


def _nearest(
    network: Classifier,
    known: KnownImages,
    eval_set: EvaluationSet,
    kept: Positions,
    reads: Sequence[Read],
) -> list[tuple[NearImage, ...]]:
    """The training images nearest in feature space, other than the image itself."""
    both = LogitsAndFeatures(network.network, network.head)
    outputs = InferenceNetwork(both, network.card, network.preprocess).outputs(reads)
    features = torch.cat(list(outputs))[:, known.classes :]
    # of copies the one that the data gives for training: another may have another label
    held_out = np.isin(eval_set.index.splits, (VAL, TEST))
    order = np.lexsort((held_out, eval_set.keys))
    places = order[
        np.searchsorted(eval_set.keys, known.keys, sorter=order).clip(max=len(order) - 1)
    ]
    here = eval_set.keys[places] == known.keys
    own = eval_set.keys[eval_set.positions[kept]]
    nearest = known.nearest(features, here & (known.keys != own[:, None]), NEAREST)
    shown: dict[int, NearImage | None] = {}
    for row in {row for rows in nearest for row in rows}:
        shown[row] = _near_image(eval_set, int(places[row]))
    return [tuple(near for row in rows if (near := shown[row]) is not None) for rows in nearest]


def _near_image(eval_set: EvaluationSet, place: int) -> NearImage | None:
    """A thumbnail; None if the file was readable in training and no longer is."""
    index = eval_set.index
    try:
        pixels = reader_of_row(index.source, int(index.rows[place]))()
    except (OSError, Undecodable):
        return None
    label = index.classes[int(index.labels[place])]
    path = printable(index.paths[place])
    return NearImage(path, printable(label), encode_image(pixels, THUMBNAIL))
