"""What a random view may do to a image, and the presets behind `--augment`.

`photo` is the published SwAV recipe (arXiv 2006.09882, appendix A.1; colour distortion of SimCLR,
arXiv 2002.05709, at strength 1). The others say in `preset` how they differ.
"""

from dataclasses import dataclass, replace

from unfreeze.errors import UsageError


@dataclass(frozen=True)
class ViewSpec:
    """One kind of view: geometry in shares of the image, colour as torchvision's ColorJitter."""

    size: int = 224
    scale: tuple[float, float] = (0.14, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    degrees: float = 0.0
    jitter: float = 0.8  # chance that colours change at all
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    grey: float = 0.2
    blur: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)  # pixels, Pillow's `radius`


_PHOTO = ViewSpec()
PRESETS = {
    "photo": _PHOTO,
    # images of some 32 pixels: half the colour strength, no blur (a blur of 2 erases them)
    "small": replace(_PHOTO, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur=0.0),
    # grey images: nothing that only moves colour
    "mono": replace(_PHOTO, saturation=0.0, hue=0.0, grey=0.0),
    # written signs: turned a little; mirrored they would be other signs
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


def preset(name: str, size: int, scale: tuple[float, float]) -> ViewSpec:
    """The preset `name` at `size` pixels with `scale`; UsageError for an unknown name."""
    if name not in PRESETS:
        raise UsageError(f"There is no --augment {name}.", f"Choose one of: {', '.join(PRESETS)}.")
    return replace(PRESETS[name], size=size, scale=scale)
