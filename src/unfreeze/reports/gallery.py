"""Contact sheets: the images nearest to each prototype, and rows of crops."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from unfreeze.reports.findings import Pixels, Prototypes
from unfreeze.runtime.outputs import GENERATOR

GAP = 2  # pixels between images of a row, before upscaling
SIDE = 56  # pixels of an image on a sheet, at least
CAPTION = 110  # pixels for the captions on the left of a sheet


def strip(images: Sequence[Pixels] | Pixels) -> bytes:
    """PNG of uint8 images `[M, S, S, 3]` in a row, separated by transparent gaps."""
    return _png(_row(images))


def _row(images: Sequence[Pixels] | Pixels) -> Image.Image:
    side = images[0].shape[0]
    row = Image.new("RGBA", (len(images) * (side + GAP) - GAP, side), (0, 0, 0, 0))
    for index, image in enumerate(images):
        row.paste(Image.fromarray(np.ascontiguousarray(image)), (index * (side + GAP), 0))
    return row


def sheet(prototypes: Prototypes, *, limit: int = 24) -> bytes:
    """PNG of the most used prototypes, a row each: number, share, nearest images."""
    shown = min(limit, len(prototypes.number))
    side = prototypes.images.shape[2]
    scale = max(1, -(-SIDE // side))
    rows = [_upscaled(_row(prototypes.images[p]), scale) for p in range(shown)]
    height = side * scale + 3 * GAP
    canvas = Image.new("RGB", (CAPTION + rows[0].width + 8, shown * height + 8), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for p, row in enumerate(rows):
        top = 4 + p * height
        canvas.paste(row, (CAPTION, top), row)
        caption = f"no. {prototypes.number[p]}\n{prototypes.share[p]:.1%}"
        draw.multiline_text((10, top + height / 2), caption, fill="#444", font=font, anchor="lm")
    return _png(canvas)


def _upscaled(image: Image.Image, scale: int) -> Image.Image:
    size = (image.width * scale, image.height * scale)
    return image.resize(size, Image.Resampling.NEAREST)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    metadata = PngInfo()
    metadata.add_text("Software", GENERATOR)
    image.save(buffer, "PNG", pnginfo=metadata)
    return buffer.getvalue()
