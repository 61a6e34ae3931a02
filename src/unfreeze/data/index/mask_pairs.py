"""Finds images and their masks by name: `images/a.jpg` with `masks/a.png`, and other layouts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unfreeze.data.index.index import NONE, TRAIN, VAL, Index
from unfreeze.data.index.rows import image_rows
from unfreeze.data.index.split_names import split_name
from unfreeze.data.sources.concat import ConcatSource
from unfreeze.data.sources.source import Source
from unfreeze.errors import DataError
from unfreeze.runtime.console import pluralised


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


IMAGE_FOLDERS = _words(
    "image images img imgs jpegimages leftimg8bit img_dir imgdir rgb input inputs"
)
MASK_FOLDERS = _words(
    "mask masks label labels annotation annotations annot ann ann_dir segmentationclass gtfine gt "
    "groundtruth ground_truth seg segmentation segmentations"
)
# endings of a folder's name, as in trainannot and train_masks
MASK_ENDINGS = ("annot", "annotations", "masks", "mask", "labels", "label")
IMAGE_ENDINGS = ("images", "image", "imgs", "img")
# endings of a mask's name, the preferred first
MASK_STEMS = (
    *("_labeltrainids", "_labelids", "_masks", "_mask", "_gt", "_labels", "_label", "_seg"),
    *("_segmentation", "_annotation", "_l"),
)
OTHER_STEMS = ("_color", "_colors", "_instanceids", "_polygons")  # Cityscapes' other files
IMAGE_STEMS = ("_leftimg8bit", "_image", "_img")
VOC_LISTS = "ImageSets/Segmentation/"  # train.txt, val.txt: names without suffix
Key = tuple[tuple[str, ...], str]


@dataclass(frozen=True)
class Pairs:
    """Rows of images and names of their masks. `alone`: images without a mask."""

    rows: list[int]
    masks: list[str]
    splits: list[int]
    alone: int


def has_masks(source: Source) -> bool:
    """Whether masks lie beside the images: at least half of the mask files belong to an image.

    A table must have a column `mask` whose first entry is a file.
    """
    if source.listed:
        cells = source.column("mask") or []
        first = next((cell.strip() for cell in cells if cell.strip()), "")
        return bool(first) and (Path(source.where).parent / first).is_file()
    joined = "\n".join(source.names).lower()  # one search for all names: fast for a million files
    if not any(f"{word}/" in joined for word in (*MASK_FOLDERS, *MASK_ENDINGS)):
        return False
    files = _files(source)
    found = {row for image in files.images.values() for row in files.masks_of(image)}
    return bool(files.masks) and 2 * len(found) >= len(files.masks)


def mask_rows(source: Source) -> list[int]:
    """Rows of the files of a source that are masks; none of a table, which lists them by name."""
    if source.listed:
        return []
    files = _files(source)
    return files.masks + files.unused


def index_of_pairs(source: Source, masks: Source | None = None) -> Index:
    """The index of all images with a mask; labels are the names of the masks.

    `masks`: another source with the masks, under the names of the images. DataError if there are
    none.
    """
    pairs = _listed(source) if source.listed else _from_folders(source, masks)
    if not pairs.rows:
        where = "" if masks is None else f" in {masks.where}"
        tables = isinstance(source, ConcatSource) and any(part.listed for part in source.parts)
        remedy = (
            "Put them into images/ and masks/ under the same names, list them in a CSV with the "
            "columns path and mask, or give the folder of the masks with --masks."
        )
        raise DataError(
            f"{source.where}: no image has a mask of its name{where}.",
            "Give one table alone." if tables else remedy,
        )
    subject = pluralised(pairs.alone, "image has", "images have")
    notes = (f"{subject} no mask: not used.",) if pairs.alone else ()
    inside = not source.listed and masks is None
    order = np.argsort([source.names[row] for row in pairs.rows], kind="stable")
    count = len(order)
    taken = order.tolist()
    groups = source.groups
    return Index(
        source=source,
        rows=np.array(pairs.rows, np.int64)[order],
        paths=[source.names[pairs.rows[i]] for i in taken],
        labels=np.arange(count, dtype=np.int32),
        splits=np.array(pairs.splits, np.int8)[order],
        classes=tuple(pairs.masks[i] for i in taken),
        other=len(source) - count * (2 if inside else 1),
        layout="splits" if any(pairs.splits) else "classes",
        groups=None if groups is None else [groups[pairs.rows[i]] for i in taken],
        notes=(*source.notes, *notes),
    )


def _listed(source: Source) -> Pairs:
    masks = source.column("mask")
    if masks is None:
        raise DataError(
            f"{source.where} has no column `mask`.", "Add it: the path of each image's mask."
        )
    rows = [row for row, mask in enumerate(masks) if mask.strip()]
    splits = source.splits or [""] * len(source)
    return Pairs(
        rows,
        [masks[row].strip() for row in rows],
        [_split_of(splits[row], source.where) for row in rows],
        len(source) - len(rows),
    )


def _split_of(word: str, where: str) -> int:
    known = split_name(word) if word else None
    if word and known is None:
        raise DataError(f"{where}: unknown split {word!r}.", "Use train, val or test.")
    return known.split if known else NONE


def _from_folders(source: Source, other: Source | None) -> Pairs:
    files = _files(source) if other is None else _images_alone(source, other)
    lookup, names = files, source.names
    if other is not None:
        lookup, names = _masks_elsewhere(other), other.names
    rows, chosen, splits, alone = list[int](), list[str](), list[int](), 0
    used = dict[int, str]()
    lists = _voc_lists(source)
    for image in files.images.values():
        found = lookup.masks_of(image)
        if not found and other is not None:
            found = lookup.masks_of(image._replace(folders=()))  # one flat folder of masks
        if not found:
            alone += 1
            continue
        mask, path = _best(found, names), source.names[image.row]
        if image.row in files.doubles:
            raise DataError(
                f"{path} and {source.names[files.doubles[image.row]]} would have the same mask.",
                "Rename or remove one of them.",
            )
        if mask in used:
            raise DataError(
                f"{used[mask]} and {path} both have the mask {names[mask]}.",
                "Give each image a mask of its own, in folders of the same names.",
            )
        used[mask] = path
        rows.append(image.row)
        chosen.append(names[mask])
        splits.append(lists.get(image.stem, _split_of_folders(image.folders)))
    if lists:  # of PASCAL VOC: images in no list are not used
        kept = [i for i, split in enumerate(splits) if split != NONE]
        alone += len(splits) - len(kept)
        rows, chosen = [rows[i] for i in kept], [chosen[i] for i in kept]
        splits = [splits[i] for i in kept]
    elif any(splits):  # such as test/ beside images/
        splits = [split if split != NONE else TRAIN for split in splits]
    return Pairs(rows, chosen, splits, alone)


def _images_alone(source: Source, other: Source) -> "_Files":
    """The images of a source whose masks are in another one, which may lie inside of it."""
    inside, folder = Path(other.where).resolve(), Path(source.where).resolve()
    files = _Files()
    for row in image_rows(source):
        if source.kind == "folder" and (folder / source.names[row]).is_relative_to(inside):
            continue
        folders, stem = _parts(source.names[row])
        kept, role = _without_role(folders)
        if role != "mask":
            files.add_image(_Image(row, kept, stem))
    return files


def _best(rows: Sequence[int], names: Sequence[str]) -> int:
    """The one mask of an image; DataError if two have the same right to be it."""
    if len(rows) == 1:
        return rows[0]
    ranks = sorted((_rank(names[row]), row) for row in rows)
    if ranks[0][0] == ranks[1][0]:
        first, second = (names[row] for _, row in ranks[:2])
        raise DataError(
            f"{first} and {second} are masks of the same image.",
            "Keep one of them, or use --masks.",
        )
    return ranks[0][1]


def _rank(name: str) -> int:
    stem = name.rpartition("/")[2].rpartition(".")[0].lower()
    return next((i for i, end in enumerate(MASK_STEMS) if stem.endswith(end)), len(MASK_STEMS))


def _split_of_folders(folders: tuple[str, ...]) -> int:
    known = (split_name(folder) for folder in folders)
    return next((entry.split for entry in known if entry is not None and entry.pure), NONE)


class _Image(NamedTuple):
    """An image: its row, its folders without the words for images and masks, and its stem."""

    row: int
    folders: tuple[str, ...]
    stem: str


class _Files:
    """The images and masks of a source.

    `exact`, `cut`: rows of masks by folders and stem, as it is and without an ending such as
    `_mask`. A mask with the stem of an image is that image's alone. `unused`: other files of the
    folders of masks. `doubles`: rows of images with the name of another one, and that one's.
    """

    def __init__(self) -> None:
        self.images = dict[Key, _Image]()
        self.masks = list[int]()
        self.exact, self.cut = dict[Key, list[int]](), dict[Key, list[int]]()
        self.keys = dict[int, Key]()  # of masks
        self.unused, self.doubles = list[int](), dict[int, int]()

    def add_image(self, image: _Image) -> None:
        """Add an image."""
        first = self.images.setdefault((image.folders, image.stem), image)
        if first is not image:
            self.doubles[first.row] = image.row

    def add_mask(self, row: int, folders: tuple[str, ...], stem: str) -> None:
        """Add a mask."""
        self.masks.append(row)
        self.keys[row] = (folders, stem)
        self.exact.setdefault((folders, stem), []).append(row)
        if (shorter := _cut(stem, MASK_STEMS)) != stem:
            self.cut.setdefault((folders, shorter), []).append(row)

    def masks_of(self, image: _Image) -> list[int]:
        """Rows of the masks of an image: those of its own name first."""
        stems = dict.fromkeys((image.stem, _cut(image.stem, IMAGE_STEMS)))
        for table in (self.exact, self.cut):
            for stem in stems:
                rows = table.get((image.folders, stem), [])
                if table is self.cut:
                    rows = [row for row in rows if self.keys[row] not in self.images]
                if rows:
                    return rows
        return []


def _files(source: Source) -> _Files:
    """Images and masks of a source, by the names of folders and files."""
    files, flat = _Files(), list[_Image]()
    for row in image_rows(source):
        folders, stem = _parts(source.names[row])
        kept, role = _without_role(folders)
        image = _Image(row, kept, stem)
        if role == "mask":
            if stem.lower().endswith(OTHER_STEMS):
                files.unused.append(row)
            else:
                files.add_mask(row, kept, stem)
        elif role == "" and _cut(stem, MASK_STEMS) != stem:
            flat.append(image)
        else:
            files.add_image(image)
    for image in flat:  # a_mask.png beside a.jpg, unless it has a mask of its own
        shorter = (image.folders, _cut(image.stem, MASK_STEMS))
        if shorter in files.images and (image.folders, image.stem) not in files.exact:
            files.add_mask(*image)
        else:
            files.add_image(image)
    return files


def _masks_elsewhere(source: Source) -> _Files:
    files = _Files()
    for row in image_rows(source):
        folders, stem = _parts(source.names[row])
        kept, _ = _without_role(folders)
        files.add_mask(row, kept, stem)
    return files


def _parts(name: str) -> tuple[tuple[str, ...], str]:
    *folders, file = name.split("/")
    return tuple(folders), file.rpartition(".")[0] or file


def _cut(stem: str, endings: Sequence[str]) -> str:
    ending = next(
        (end for end in endings if stem.lower().endswith(end) and stem.lower() != end), ""
    )
    return stem[: len(stem) - len(ending)] if ending else stem


def _without_role(folders: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """Folders without the words for images and masks, and `mask`, `image` or ""."""
    kept, role = list[str](), ""
    for folder in folders:
        word, rest = _role(folder)
        role = word or role
        kept += [rest] if rest else []
    return tuple(kept), role


def _role(folder: str) -> tuple[str, str]:
    """(`mask`, `image` or "", what is left of the folder's name)."""
    lower = folder.lower()
    if lower in MASK_FOLDERS:
        return "mask", ""
    if lower in IMAGE_FOLDERS:
        return "image", ""
    for role, endings in (("mask", MASK_ENDINGS), ("image", IMAGE_ENDINGS)):
        for ending in endings:
            rest = folder[: -len(ending)].rstrip("_- ")
            if lower.endswith(ending) and split_name(rest) is not None:
                return role, rest
    return "", folder


def _voc_lists(source: Source) -> dict[str, int]:
    """Split of each image that a list of PASCAL VOC names; {} without lists."""
    splits = dict[str, int]()
    for row, name in enumerate(source.names):
        folder, _, file = name.rpartition("/")
        if not f"{folder}/".endswith(VOC_LISTS) or file not in ("train.txt", "val.txt"):
            continue
        data = source.read(row)
        words = data.decode("utf-8", "replace").split() if isinstance(data, bytes) else []
        splits |= dict.fromkeys(words, TRAIN if file == "train.txt" else VAL)
    return splits


def mask_reader(source: Source, masks: Source | None) -> Callable[[str], bytes]:
    """A function that reads a mask by the name that `index_of_pairs` gives it."""
    return _MaskFiles(masks or source)


class _MaskFiles:
    """Reads files of a source by name, or files beside the table of a listed source."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.rows = {name: row for row, name in enumerate(source.names)}

    def __call__(self, name: str) -> bytes:
        if self.source.listed:
            path = Path(self.source.where).parent / name
            try:
                return path.read_bytes()
            except (OSError, ValueError) as error:
                raise DataError(
                    f"{self.source.where}: the mask {name} cannot be read: {error}.",
                    "Paths of masks are relative to the folder of the table.",
                ) from error
        data = self.source.read(self.rows[name])
        return data if isinstance(data, bytes) else b""


def class_tables(source: Source, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Name and content of the files of these names, those in the highest folder first.

    Of a table they are those beside it.
    """
    if source.listed:
        for name in names:
            path = Path(source.where).parent / name
            if path.is_file() and path.name != Path(source.where).name:
                yield str(path), path.read_bytes()
        return
    rows = [row for row, name in enumerate(source.names) if name.rpartition("/")[2] in names]
    for row in sorted(rows, key=lambda row: (source.names[row].count("/"), source.names[row])):
        data = source.read(row)
        if isinstance(data, bytes):
            yield source.names[row], data
