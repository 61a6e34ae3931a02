"""Training crops of images with their masks, cut, flipped and resized by the same random draw."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unfreeze.data.augment import color, random_resized_crop
from unfreeze.data.augment.config import CropSpec
from unfreeze.data.augment.parameters import DRAWS, uniforms
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.tasks.segmentation.masks import ClassIds

Pixels = npt.NDArray[np.uint8]
LARGEST_SCALE = 1.5  # of a training tile


class MaskedCrops:
    """The transform of a loader: images and masks to ([uint8 [B, h, w, 3]], int64 [B, h, w]).

    `mask_of(position)` gives the class ids [H, W] of an image's mask. Without `spec`, images are
    prepared as for validation (a random tile, if images are cut into tiles). Colours change in the
    image alone; masks are never interpolated. All draws depend on (seed, epoch, image) only.
    """

    def __init__(
        self,
        mask_of: Callable[[int], ClassIds],
        spec: CropSpec | None,
        preprocess: Preprocess,
        seed: int,
    ) -> None:
        self.mask_of, self.preprocess, self.seed = mask_of, preprocess, seed
        height, width = preprocess.shape
        if spec is not None:  # boxes of about the network's aspect ratio
            low, high = spec.ratio
            spec = replace(spec, ratio=(low * width / height, high * width / height))
        self.scale = 1.0 if spec is None else LARGEST_SCALE
        if spec is None and preprocess.fit == "tile":
            spec = CropSpec(flip=0.0, jitter=0.0, grey=0.0, blur=0.0)
        self.spec = spec

    def __call__(
        self, images: Sequence[Pixels], ids: npt.NDArray[np.int64], epoch: int
    ) -> tuple[list[Tensor], Tensor]:
        """Views and targets of a batch."""
        masks = [self.mask_of(position) for position in ids.tolist()]
        shape, spec = self.preprocess.shape, self.spec
        views = np.empty((len(images), *shape, 3), np.uint8)
        targets = np.empty((len(images), *shape), np.int64)
        if spec is None:
            for b, image in enumerate(images):
                views[b], targets[b] = self.preprocess.pixels(image), resized_mask(masks[b], shape)
            return [torch.from_numpy(views)], torch.from_numpy(targets)
        if self.preprocess.fit == "tile":  # as in evaluation
            images = [mirrored(image, shape) for image in images]
            masks = [mirrored(mask, shape) for mask in masks]
        sides = np.array([image.shape[:2] for image in images], np.int64).reshape(-1, 2)
        draws = uniforms(self.seed, epoch, ids, 0, DRAWS)
        if self.preprocess.fit == "tile":
            boxes = random_tiles(sides, draws, shape, self.scale)
        else:
            boxes = random_resized_crop.random_boxes(sides, draws, spec)
        for b, image in enumerate(images):
            flip, _, *colours = draws[b, random_resized_crop.DRAWS :]
            view = random_resized_crop.resized_crop(image, boxes[b], shape)
            target = cropped_mask(masks[b], boxes[b], sides[b], shape)
            if flip < spec.flip:
                view, target = cv2.flip(view, 1), target[:, ::-1]  # type: ignore[assignment]
            views[b], targets[b] = color.augment_colour(view, np.array(colours), spec), target
        return [torch.from_numpy(views)], torch.from_numpy(targets)


def mirrored(pixels: Pixels, shape: tuple[int, int]) -> Pixels:
    """An image or mask [H, W, ...], mirrored at its right and lower border up to `shape`."""
    missing = [max(0, wanted - side) for wanted, side in zip(shape, pixels.shape[:2], strict=True)]
    if not any(missing):
        return pixels
    return np.pad(pixels, [(0, m) for m in missing] + [(0, 0)] * (pixels.ndim - 2), "symmetric")


def random_tiles(
    sides: npt.NDArray[np.int64],
    draws: npt.NDArray[np.float64],
    shape: tuple[int, int],
    largest: float,
) -> npt.NDArray[np.int64]:
    """Boxes `[B, 4]` (top, left, height, width) of 1 / largest to `largest` times `shape`."""
    scale = np.exp((2 * draws[:, :1] - 1) * np.log(largest))
    size = np.minimum(np.rint(np.array(shape) * scale).astype(np.int64), sides)
    places = draws[:, 2 * random_resized_crop.TRIES : random_resized_crop.DRAWS]
    corner = np.floor(places * (sides - size + 1))
    return np.concatenate([corner.astype(np.int64), size], axis=1)


def cropped_mask(
    mask: ClassIds,
    box: npt.NDArray[np.int64],
    sides: npt.NDArray[np.int64],
    shape: tuple[int, int],
) -> ClassIds:
    """The nearest pixel of `mask` [H, W] at each position of the crop: class ids [h, w].

    `box` (top, left, height, width) counts in pixels of the image of `sides`, which may be smaller
    than the mask (the pixel cache holds reduced images).
    """
    scale = np.array(mask.shape) / sides
    rows, columns = (
        np.minimum(
            ((box[axis] + (np.arange(shape[axis]) + 0.5) * box[axis + 2] / shape[axis])
             * scale[axis]).astype(np.int64),
            mask.shape[axis] - 1,
        )
        for axis in (0, 1)
    )  # fmt: skip
    cropped: ClassIds = mask[rows[:, None], columns[None]]
    return cropped


def resized_mask(mask: ClassIds, shape: tuple[int, int]) -> ClassIds:
    """Class ids at another size, by the nearest pixel."""
    sides = np.array(mask.shape, np.int64)
    return cropped_mask(mask, np.array([0, 0, *sides]), sides, shape)
