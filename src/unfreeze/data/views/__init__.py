"""Random views of images; every choice depends on (seed, epoch, image, view) alone."""

from unfreeze.data.views.multicrop import multicrop, normalise
from unfreeze.data.views.spec import ViewSpec, preset

__all__ = ["ViewSpec", "multicrop", "normalise", "preset"]
