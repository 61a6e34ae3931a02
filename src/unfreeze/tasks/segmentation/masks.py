"""Reads masks: files in which every pixel holds a class, by value or by colour."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from unfreeze.data.images.errors import pillow_silenced
from unfreeze.data.sources.delimited import read_delimited
from unfreeze.errors import DataError

ClassIds = npt.NDArray[np.uint8]
Values = npt.NDArray[np.int64]
IGNORED = 255  # class id of pixels that count neither in the loss nor in a metric
MOST_CLASSES = 254
LARGEST_VALUE = 0xFFFF
COLOUR = 1 << 24  # added to the colours of `read_mask` where values were expected
MOST_UNNAMED = 64  # values without a table; more are probably an image, not a mask
IGNORED_NAMES = frozenset(("void", "ignore", "ignored", "unlabeled", "unlabelled", "unknown"))
BACKGROUNDS = frozenset(("background", "bg", "ground", "none", "other", "0"))
TABLE_NAMES = ("classes.csv", "class_dict.csv")
_ORIENTATION = 0x0112  # EXIF tag


@dataclass(frozen=True)
class MaskClasses:
    """The classes of masks in the order of the network's outputs.

    `values`: the pixel value of each class, or its colour as 0xRRGGBB if `colours`. `ignored`:
    values that are in no class. `where`: the file that names the classes, "" for none.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    ignored: tuple[int, ...] = ()
    colours: bool = False
    where: str = ""

    def ids(self, values: Values, path: str) -> ClassIds:
        """Class ids [H, W], IGNORED where ignored; DataError for a value without a class."""
        known = np.array([*self.values, *self.ignored], np.int64)
        ids = np.array([*range(len(self.values)), *([IGNORED] * len(self.ignored))], np.uint8)
        order = np.argsort(known)
        place = np.minimum(np.searchsorted(known[order], values), len(known) - 1)
        wrong = known[order][place] != values
        if wrong.any():
            value = int(values[wrong][0])
            count = int((values == value).sum())
            table = f"is not in {self.where}" if self.where else "occurs in no training mask"
            raise DataError(
                f"{path}: the {self.title} {self.text(value)} ({count:,} pixels) {table}.",
                "Add it to the table of classes (--mask-classes), or name it with --ignore-index.",
            )
        return ids[order][place]

    @property
    def title(self) -> str:
        """`colour` or `value`."""
        return "colour" if self.colours else "value"

    def text(self, value: int) -> str:
        """A value for people."""
        if self.colours or value >= COLOUR:
            return f"{value >> 16 & 255},{value >> 8 & 255},{value & 255}"
        return str(value)

    def to_values(self, ids: ClassIds) -> ClassIds:
        """Pixel values of class ids, for a mask file; the ids if values are colours or large."""
        if self.colours or max(self.values) > 255:
            return ids
        values = np.arange(256, dtype=np.uint8)  # ignored pixels keep 255
        values[: len(self.values)] = self.values
        return values[ids]

    def palette(self) -> list[int]:
        """256 colours as a flat list R, G, B for an indexed PNG of `to_values`."""
        # black is a colour of backgrounds alone
        shift = 0 if self.names[0].lower() in BACKGROUNDS else 1
        colours = [_colour((number + shift) % 256) for number in range(256)]
        if self.colours:
            for number, value in enumerate(self.values):
                colours[number] = (value >> 16, value >> 8 & 255, value & 255)
        return [part for colour in colours for part in colour]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "names": list(self.names),
            "values": list(self.values),
            "ignored": list(self.ignored),
            "colours": self.colours,
            "where": self.where,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "MaskClasses":
        """The inverse of `as_dict`."""
        lists = {key: tuple(values[key]) for key in ("names", "values", "ignored")}
        return cls(**lists, colours=bool(values["colours"]), where=str(values["where"]))


def _colour(number: int) -> tuple[int, int, int]:
    """Colour of an index in the palette of PASCAL VOC: its bits, spread over the channels."""
    red = green = blue = 0
    for bit in range(8):
        red |= (number >> 3 * bit & 1) << 7 - bit
        green |= (number >> 3 * bit + 1 & 1) << 7 - bit
        blue |= (number >> 3 * bit + 2 & 1) << 7 - bit
    return red, green, blue


def read_mask(data: bytes, path: str, *, colours: bool = False) -> Values:
    """Pixel values [H, W] of a mask file: indices of a palette, grey values, or 0xRRGGBB.

    `colours`: always colours, also for a mask with a palette or in grey. Otherwise an RGB mask has
    colours only if its channels differ, and these are larger than any value (by COLOUR). DataError
    for a file that is no mask, such as a JPEG, whose compression changes values.
    """
    try:
        with pillow_silenced(), Image.open(io.BytesIO(data)) as image:
            if image.format == "JPEG":
                raise DataError(
                    f"{path} is a JPEG: its compression changes the values of a mask.",
                    "Save masks as PNG.",
                )
            if image.mode == "F":
                raise DataError(
                    f"{path} holds floating-point numbers, which are no classes.",
                    "Save masks as PNG with whole numbers.",
                )
            if colours and image.mode not in ("RGB", "RGBA"):
                return _packed(np.asarray(image.convert("RGB")))
            pixels = np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"The mask {path} cannot be read: {error}.", "Replace it.") from error
    if pixels.ndim == 2:
        return pixels.astype(np.int64)
    if pixels.shape[2] == 2:  # grey with transparency
        return pixels[..., 0].astype(np.int64)
    rgb = pixels[..., :3]
    grey = bool((rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 0] == rgb[..., 2]).all())
    if grey and not colours:
        return rgb[..., 0].astype(np.int64)
    return _packed(rgb) if colours else _packed(rgb) | COLOUR


def _packed(rgb: npt.NDArray[Any]) -> Values:
    red, green, blue = (rgb[..., channel].astype(np.int64) for channel in range(3))
    return red << 16 | green << 8 | blue


def is_coloured(values: Sequence[int]) -> bool:
    """Whether values of `read_mask` are colours."""
    return any(value >= COLOUR for value in values)


def orientation(data: bytes) -> int:
    """The EXIF orientation of an image: 1 upright, 5 to 8 turned by a quarter."""
    try:
        with pillow_silenced(), Image.open(io.BytesIO(data)) as image:
            number = image.getexif().get(_ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 1  # the check of the images reports it
    return number if number in range(2, 9) else 1


def read_class_table(
    data: bytes, where: str, ignore_index: int | None, *, coloured: bool | None = None
) -> MaskClasses:
    """Classes of a CSV with columns `id,name`, or `r,g,b,name`; DataError if it has neither.

    `coloured`: whether the masks have colours, which decides for a table with both. Negative ids
    (as in Cityscapes) are left out.
    """
    table = read_delimited(Path(where), data=data)
    columns = {name.strip().lower(): cells for name, cells in table.columns.items()}
    names = next((columns[key] for key in ("name", "class", "label") if key in columns), None)
    ids = next((columns[key] for key in ("id", "value", "index") if key in columns), None)
    colours = all(channel in columns for channel in "rgb")
    if colours and ids is not None and coloured is False:
        colours = False
    if names is None or (ids is None and not colours):
        raise DataError(
            f"{where} has the columns {', '.join(columns)}.",
            "A table of classes has the columns id,name or r,g,b,name.",
        )
    try:
        if colours:
            parts = zip(*(map(int, columns[channel]) for channel in "rgb"), strict=True)
            values = [red << 16 | green << 8 | blue for red, green, blue in parts]
        else:
            values = [int(text) for text in ids or ()]
    except ValueError as error:
        raise DataError(f"{where}: {error}.", "Ids and colours are whole numbers.") from error
    titles = [name.strip() for name in names]
    if colours and ignore_index is not None:
        raise DataError(
            f"{where} has colours, so --ignore-index {ignore_index} names no class.",
            "Call the class void in the table.",
        )
    limit = 0xFFFFFF if colours else LARGEST_VALUE
    parts_ok = not colours or all(
        0 <= int(text) <= 255 for channel in "rgb" for text in columns[channel]
    )
    if not parts_ok or any(value > limit for value in values):
        raise DataError(
            f"{where} has a colour outside of 0 to 255 or an id above {LARGEST_VALUE}.",
            "Correct the table.",
        )
    kept = [(value, title) for value, title in zip(values, titles, strict=True) if value >= 0]
    values, titles = [value for value, _ in kept], [title for _, title in kept]
    if not all(titles):
        raise DataError(f"{where} has a class without a name.", "Name every class.")
    twice = {value for value in values if values.count(value) > 1}
    if twice or len(set(titles)) < len(titles):
        raise DataError(f"{where} lists a class twice.", "Give each class one line.")
    return _table(titles, values, colours=colours, where=where, ignore_index=ignore_index)


def _table(
    names: Sequence[str],
    values: Sequence[int],
    *,
    colours: bool,
    where: str,
    ignore_index: int | None,
) -> MaskClasses:
    """Classes in the order of their values; those called `void` or the like are ignored."""
    entries = (
        sorted(zip(values, names, strict=True))
        if not colours
        else list(zip(values, names, strict=True))
    )
    out = [value for value, name in entries if name.lower() in IGNORED_NAMES]
    if ignore_index is not None:
        out = [ignore_index, *(value for value in out if value != ignore_index)]
    elif not colours and 255 not in values:
        out.append(255)
    kept = [(value, name) for value, name in entries if value not in out]
    if not 2 <= len(kept) <= MOST_CLASSES:
        raise DataError(
            f"{where or 'The masks'}: {len(kept)} classes besides ignored ones.",
            f"Segmentation needs 2 to {MOST_CLASSES} classes.",
        )
    return MaskClasses(
        tuple(name for _, name in kept), tuple(value for value, _ in kept), tuple(out), colours,
        where,
    )  # fmt: skip


def classes_of_values(values: Sequence[int], ignore_index: int | None) -> MaskClasses:
    """Classes of masks without a table: each value that occurs is one, named by its number.

    0 and 255 (or 0 and 1) alone are background and foreground; otherwise 255 is ignored.
    """
    distinct = sorted(set(values) - {ignore_index})
    if is_coloured(distinct):
        shown = ", ".join(f"{v >> 16 & 255},{v >> 8 & 255},{v & 255}" for v in distinct[:8])
        raise DataError(
            f"The masks have {len(distinct):,} colours ({shown}{', ...' * (len(distinct) > 8)}).",
            "Name them in a CSV with the columns r,g,b,name and give it with --mask-classes.",
        )
    if set(distinct) in ({0, 255}, {0, 1}):
        ignored = () if ignore_index is None else (ignore_index,)
        return MaskClasses(("background", "foreground"), tuple(distinct), ignored)
    if len(distinct) > MOST_UNNAMED:
        raise DataError(
            f"The masks have {len(distinct):,} different values: they look like images.",
            "Check which folder holds the masks, or name the classes with --mask-classes.",
        )
    names = [str(value) for value in distinct if value != 255 or ignore_index is not None]
    kept = [int(name) for name in names]
    return _table(names, kept, colours=False, where="", ignore_index=ignore_index)
