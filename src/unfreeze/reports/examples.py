"""Example images of an evaluation: confident mistakes, low confidence, and high confidence."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from unfreeze.runtime.atomic import replacing

FILE = "examples.npz"
ARRAYS = (
    *("kind", "path", "label", "predicted", "probability", "image", "bytes", "map", "map_bytes"),
    *("near", "near_path", "near_label", "near_image", "near_bytes"),
)  # of the .npz
WRONG, LOW_CONFIDENCE, CORRECT = "wrong", "unsure", "right"
WORST_MAPS, MEDIAN_MAPS, BEST_MAPS = "worst", "median", "best"  # of segmentation
LIMITS = {WRONG: 20, LOW_CONFIDENCE: 10, CORRECT: 10}
SIDE = 480  # pixels of the longer side, at most
SMALL = 48  # pixels; up to this size images are stored losslessly and upscaled by nearest neighbour
QUALITY = 82
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class NearImage:
    """A training image near an example; `image`: encoded as that of `Example`."""

    path: str
    label: str
    image: bytes


@dataclass(frozen=True)
class Example:
    """An image with its label and prediction; `image`: encoded as JPEG, or PNG if it is small.

    `map`: the image with its class-activation map, encoded; b"" without one. `nearest`: the
    training images nearest to it.
    """

    kind: str
    path: str
    label: str
    predicted: str
    probability: float
    image: bytes
    map: bytes = b""
    nearest: tuple[NearImage, ...] = ()


def select_examples(
    predicted: Sequence[str], labels: Sequence[str], probabilities: Sequence[float]
) -> list[tuple[str, int]]:
    """(kind, index) of the images to show.

    The most confident mistakes; of the others the least confident; of the correct ones the most
    confident, round-robin over classes.
    """
    right = [prediction == label for prediction, label in zip(predicted, labels, strict=True)]
    order = sorted(range(len(labels)), key=lambda index: (-probabilities[index], index))
    wrong = [index for index in order if not right[index]][: LIMITS[WRONG]]
    rest = [index for index in reversed(order) if index not in set(wrong)]
    unsure = rest[: min(LIMITS[LOW_CONFIDENCE], len(rest) // 2)]
    rounds: dict[str, int] = {}
    correct = []
    for index in order:
        if right[index] and index not in set(unsure):
            rank = rounds[labels[index]] = rounds.get(labels[index], 0) + 1
            correct.append((rank, index))
    confident = [index for _, index in sorted(correct, key=lambda pair: pair[0])[: LIMITS[CORRECT]]]
    kinds = ((WRONG, wrong), (LOW_CONFIDENCE, unsure), (CORRECT, confident))
    return [(kind, index) for kind, indices in kinds for index in indices]


def encode_image(pixels: Pixels, side: int = SIDE) -> bytes:
    """An image encoded for a page: JPEG of at most `side` pixels, small ones as lossless PNG."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    buffer = io.BytesIO()
    if max(image.size) <= SMALL:
        image.save(buffer, "PNG")
        return buffer.getvalue()
    image.thumbnail((side, side), Image.Resampling.BOX)
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def save_examples(path: Path, examples: Sequence[Example]) -> None:
    """Write them atomically as one .npz file."""
    table: dict[str, Any] = {
        name: np.array([getattr(example, name) for example in examples], np.str_)
        for name in ("kind", "path", "label", "predicted")
    }
    near = [(number, one) for number, e in enumerate(examples) for one in e.nearest]
    table["probability"] = np.array([example.probability for example in examples], np.float64)
    table["image"], table["bytes"] = _joined([example.image for example in examples])
    table["map"], table["map_bytes"] = _joined([example.map for example in examples])
    table["near"] = np.array([number for number, _ in near], np.int64)
    table["near_path"] = np.array([one.path for _, one in near], np.str_)
    table["near_label"] = np.array([one.label for _, one in near], np.str_)
    table["near_image"], table["near_bytes"] = _joined([one.image for _, one in near])
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **table)


def _joined(files: Sequence[bytes]) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """(all bytes in a row, the length of each)."""
    return np.frombuffer(b"".join(files), np.uint8), np.array([len(f) for f in files], np.int64)


def _split(values: Pixels, lengths: npt.NDArray[np.int64]) -> list[bytes]:
    """The inverse of `_joined`."""
    ends = np.cumsum(lengths).tolist()
    pairs = zip([0, *ends], ends, strict=False)
    return [values[start:end].tobytes() for start, end in pairs]


def read_examples(path: Path) -> list[Example]:
    """The reverse of `save_examples`."""
    with np.load(path, allow_pickle=False) as arrays:
        near: dict[int, list[NearImage]] = {}
        near_images = _split(arrays["near_image"], arrays["near_bytes"])
        named = (arrays[name].tolist() for name in ("near", "near_path", "near_label"))
        for number, *values in zip(*named, near_images, strict=True):
            near.setdefault(number, []).append(NearImage(*values))
        columns = (arrays[name].tolist() for name in ("kind", "path", "label", "predicted"))
        images, maps = (
            _split(arrays[name], arrays[lengths])
            for name, lengths in (("image", "bytes"), ("map", "map_bytes"))
        )
        around = [tuple(near.get(number, ())) for number in range(len(images))]
        rows = zip(*columns, arrays["probability"].tolist(), images, maps, around, strict=True)
        return [Example(*row) for row in rows]
