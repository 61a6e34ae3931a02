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
ARRAYS = ("kind", "path", "label", "predicted", "probability", "image", "bytes")  # of the .npz
WRONG, LOW_CONFIDENCE, CORRECT = "wrong", "unsure", "right"
WORST_MAPS, MEDIAN_MAPS, BEST_MAPS = "worst", "median", "best"  # of segmentation
LIMITS = {WRONG: 20, LOW_CONFIDENCE: 10, CORRECT: 10}
SIDE = 480  # pixels of the longer side, at most
SMALL = 48  # pixels; up to this size images are stored losslessly and upscaled by nearest neighbour
QUALITY = 82
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Example:
    """An image with its label and prediction; `image`: encoded as JPEG, or PNG if it is small."""

    kind: str
    path: str
    label: str
    predicted: str
    probability: float
    image: bytes


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


def encode_image(pixels: Pixels) -> bytes:
    """An image encoded for a page: JPEG of at most `SIDE` pixels, small ones as lossless PNG."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    buffer = io.BytesIO()
    if max(image.size) <= SMALL:
        image.save(buffer, "PNG")
        return buffer.getvalue()
    image.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def save_examples(path: Path, examples: Sequence[Example]) -> None:
    """Write them atomically as one .npz file."""
    images = [np.frombuffer(example.image, np.uint8) for example in examples]
    table: dict[str, Any] = {
        name: np.array([getattr(example, name) for example in examples], np.str_)
        for name in ("kind", "path", "label", "predicted")
    }
    table["probability"] = np.array([example.probability for example in examples], np.float64)
    table["image"] = np.concatenate([*images, np.zeros(0, np.uint8)])
    table["bytes"] = np.array([len(image) for image in images], np.int64)
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **table)


def read_examples(path: Path) -> list[Example]:
    """The reverse of `save_examples`."""
    with np.load(path, allow_pickle=False) as arrays:
        images = (
            np.split(arrays["image"], np.cumsum(arrays["bytes"])[:-1])
            if len(arrays["kind"])
            else []
        )
        columns = (arrays[name].tolist() for name in ("kind", "path", "label", "predicted"))
        rows = zip(*columns, arrays["probability"].tolist(), images, strict=True)
        return [Example(k, path, y, p, chance, i.tobytes()) for k, path, y, p, chance, i in rows]
