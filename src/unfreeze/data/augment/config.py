"""Augmentation settings of a crop, and the presets of `--augment`.

`photo` is the published SwAV recipe (arXiv 2006.09882, appendix A.1; colour distortion of SimCLR,
arXiv 2002.05709, at strength 1). The other presets are variants of it.
"""

from dataclasses import dataclass, replace

from unfreeze.errors import UsageError


@dataclass(frozen=True)
class CropSpec:
    """Augmentation of one crop: `size` in pixels, `scale` as fraction of the area, ColorJitter."""

    size: int = 224
    scale: tuple[float, float] = (0.14, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    degrees: float = 0.0
    jitter: float = 0.8  # probability of the colour jitter
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    grey: float = 0.2
    blur: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)  # pixels, Pillow's `radius`


_PHOTO = CropSpec()
PRESETS = {
    "photo": _PHOTO,
    # images of about 32 pixels: half the colour strength, no blur (sigma 2 would erase them)
    "small": replace(_PHOTO, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur=0.0),
    # greyscale images: no saturation, hue or greyscale
    "mono": replace(_PHOTO, saturation=0.0, hue=0.0, grey=0.0),
    # handwritten characters: small rotations, no mirroring
    "digits": replace(
        _PHOTO,
        flip=0.0,
        degrees=15.0,
        brightness=0.4,
        contrast=0.4,
        saturation=0.0,
        hue=0.0,
        grey=0.0,
        blur=0.0,
    ),
}


def preset(name: str, size: int, scale: tuple[float, float]) -> CropSpec:
    """The preset `name` at `size` pixels with `scale`; UsageError for an unknown name."""
    if name not in PRESETS:
        raise UsageError(f"There is no --augment {name}.", f"Choose one of: {', '.join(PRESETS)}.")
    return replace(PRESETS[name], size=size, scale=scale)
