"""Images of an evaluation that a report shows: the worst mistakes, the least sure, the surest."""

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
ARRAYS = ("kind", "path", "label", "predicted", "probability", "image", "bytes")  # in it
WRONG, UNSURE, RIGHT = "wrong", "unsure", "right"
MOST = {WRONG: 20, UNSURE: 10, RIGHT: 10}
SIDE = 480  # pixels of the longer side, at most
SMALL = 48  # pixels; smaller images are kept exactly and enlarged in blocks
QUALITY = 82
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Example:
    """An image as it was predicted; `image`: a JPEG, or a PNG where it is small."""

    kind: str
    path: str
    label: str
    predicted: str
    probability: float
    image: bytes


def chosen(
    predicted: Sequence[str], labels: Sequence[str], probabilities: Sequence[float]
) -> list[tuple[str, int]]:
    """(kind, place) of the images that are worth being looked at.

    The most certain of what is wrong; of the others the least certain; of what is right the most
    certain, the classes in turn.
    """
    right = [one == label for one, label in zip(predicted, labels, strict=True)]
    sure = sorted(range(len(labels)), key=lambda place: (-probabilities[place], place))
    wrong = [place for place in sure if not right[place]][: MOST[WRONG]]
    left = [place for place in reversed(sure) if place not in set(wrong)]
    unsure = left[: min(MOST[UNSURE], len(left) // 2)]
    turns: dict[str, int] = {}
    best = []
    for place in sure:
        if right[place] and place not in set(unsure):
            turn = turns[labels[place]] = turns.get(labels[place], 0) + 1
            best.append((turn, place))
    certain = [place for _, place in sorted(best, key=lambda one: one[0])[: MOST[RIGHT]]]
    kinds = ((WRONG, wrong), (UNSURE, unsure), (RIGHT, certain))
    return [(kind, place) for kind, places in kinds for place in places]


def encoded(pixels: Pixels) -> bytes:
    """An image for a page: at most `SIDE` pixels as JPEG, small ones exactly as PNG."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    held = io.BytesIO()
    if max(image.size) <= SMALL:
        image.save(held, "PNG")
        return held.getvalue()
    image.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    image.save(held, "JPEG", quality=QUALITY)
    return held.getvalue()


def save_examples(path: Path, examples: Sequence[Example]) -> None:
    """Write them as one .npz file, whole or not at all."""
    images = [np.frombuffer(one.image, np.uint8) for one in examples]
    table: dict[str, Any] = {
        name: np.array([getattr(one, name) for one in examples], np.str_)
        for name in ("kind", "path", "label", "predicted")
    }
    table["probability"] = np.array([one.probability for one in examples], np.float64)
    table["image"] = np.concatenate([*images, np.zeros(0, np.uint8)])
    table["bytes"] = np.array([len(image) for image in images], np.int64)
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **table)


def read_examples(path: Path) -> list[Example]:
    """The reverse of `save_examples`."""
    with np.load(path, allow_pickle=False) as held:
        images = np.split(held["image"], np.cumsum(held["bytes"])[:-1]) if len(held["kind"]) else []
        columns = (held[name].tolist() for name in ("kind", "path", "label", "predicted"))
        rows = zip(*columns, held["probability"].tolist(), images, strict=True)
        return [Example(k, path, y, p, chance, i.tobytes()) for k, path, y, p, chance, i in rows]
