"""How other tools say the preprocessing that the model was trained with."""

import math

from unfreeze.data.preprocess import Preprocess


def torchvision_lines(preprocess: Preprocess) -> list[str]:
    """Python lines that make `prepare`: a Pillow picture to a tensor [3, S, S]."""
    p = preprocess
    return [
        "from torchvision import transforms as T",
        "prepare = T.Compose([",
        f"    T.Resize({shorter(p)}, T.InterpolationMode.{p.interpolation.upper()}),",
        f"    T.CenterCrop({p.image_size}),",
        "    T.ToTensor(),",
        f"    T.Normalize({list(p.mean)}, {list(p.std)}),",
        "])",
    ]


def shorter(preprocess: Preprocess) -> int:
    """Pixels of the shorter side before the centre is cut out."""
    return max(preprocess.resize, preprocess.image_size)


def crop_share(preprocess: Preprocess) -> float:
    """The `crop_pct` of timm: the share for which timm arrives at the same shorter side.

    timm takes the whole part of `image_size / crop_pct`, which a rounded share can miss by one.
    """
    size, wanted = preprocess.image_size, shorter(preprocess)
    share = size / wanted
    while math.floor(size / share) < wanted:
        share = math.nextafter(share, 0)
    return share
