"""Random crops of images, determined by (seed, epoch, image, crop) only."""

from unfreeze.data.augment.config import CropSpec, preset
from unfreeze.data.augment.multicrop import multicrop, normalize

__all__ = ["CropSpec", "multicrop", "normalize", "preset"]
