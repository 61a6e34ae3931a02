"""Random crops of images, determined by (seed, epoch, image, crop) only."""

from unfreeze.data.views.multicrop import multicrop, normalise
from unfreeze.data.views.spec import ViewSpec, preset

__all__ = ["ViewSpec", "multicrop", "normalise", "preset"]
