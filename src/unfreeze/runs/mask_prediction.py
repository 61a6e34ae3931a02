"""`predict` with a segmentation model: a mask of each image's own size."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from unfreeze.config.commands import PredictSettings
from unfreeze.config.field import inputs_of
from unfreeze.data.images.preprocess import Pixels
from unfreeze.errors import UsageError
from unfreeze.runs.inference import run_inference
from unfreeze.runtime.atomic import replacing, write_bytes
from unfreeze.runtime.console import Console
from unfreeze.runtime.output_files import check_writable, is_csv_with, refuse_inside
from unfreeze.runtime.text_layout import write_csv
from unfreeze.tasks.segmentation.masks import ClassIds, MaskClasses
from unfreeze.tasks.segmentation.metrics import predicted_ids
from unfreeze.tasks.segmentation.overlay import class_shares, mask_png, overlay
from unfreeze.tasks.segmentation.task import SegmentationTask
from unfreeze.transfer.predictor import Read, TaskModel
from unfreeze.transfer.validation import MAPS_BATCH

TABLE = "predictions.csv"
OVERLAYS = "overlays"
_QUALITY = 90  # of an overlay's JPEG


def check_mask_folder(s: PredictSettings, columns: Sequence[str]) -> Path | None:
    """The folder of `--out`, new or written by this command before; None without `--out`."""
    if s.out is None:
        if s.overlay:
            raise UsageError("--overlay needs a folder.", "Add --out DIR.")
        return None
    folder = Path(s.out)
    check_writable("--out", folder.absolute().parent, folder)
    refuse_inside("--out", folder, inputs_of(s))
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder} is a file.", "Masks need a folder.")
    ours = (folder / TABLE).is_file() and is_csv_with(columns)(folder / TABLE)
    if folder.is_dir() and any(folder.iterdir()) and not ours:
        raise UsageError(
            f"--out {folder} is not empty, and its files are not those of an earlier prediction.",
            "Name a new folder.",
        )
    return folder


def mask_columns(task: SegmentationTask) -> tuple[str, ...]:
    """Columns of predictions.csv: path, mask, and the share of each class."""
    return ("path", "mask", *(f"share_{name}" for name in task.classes))


def predict_masks(
    network: TaskModel,
    names: Sequence[str],
    reads: Iterable[Read],
    s: PredictSettings,
    console: Console,
) -> list[dict[str, Any]]:
    """`path, mask, shares` of each image; writes masks, overlays and a table into `--out`.

    A mask is an indexed PNG of the image's own size, with the values of the training masks.
    """
    task = network.task
    if not isinstance(task, SegmentationTask) or task.table is None:
        raise RuntimeError("not a segmentation model")
    columns = mask_columns(task)
    folder = check_mask_folder(s, columns)
    if folder is not None:  # so that a folder is ours although the run is interrupted
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(folder / TABLE, columns, ())
    writer = _MaskWriter(task.table, names, folder, overlays=s.overlay)
    run_inference(
        network,
        names,
        (partial(writer.read, position, read) for position, read in enumerate(reads)),
        batch_size=MAPS_BATCH,
        console=console,
        keep=writer.keep,
    )
    if folder is not None:
        written = (
            (row["path"], row["mask"] or "", *(f"{v:.6f}" for v in row["shares"].values()))
            for row in writer.rows
        )
        write_csv(folder / TABLE, columns, written)
    return writer.rows


class _MaskWriter:
    """Writes the masks of images as their logits come; `folder` None: only counts pixels."""

    def __init__(
        self, classes: MaskClasses, names: Sequence[str], folder: Path | None, *, overlays: bool
    ) -> None:
        self.classes, self.names, self.folder, self.overlays = classes, names, folder, overlays
        self.files = mask_names(names)
        self.rows = list[dict[str, Any]]()
        self._images = dict[int, Pixels]()  # those of the batches under way

    def read(self, position: int, read: Read) -> Pixels:
        """Read an image, and remember it until its logits come."""
        self._images[position] = read()
        return self._images[position]

    def keep(self, outputs: Tensor, positions: list[int]) -> Tensor:
        """Write the masks of a batch; returns nothing to keep, [B, 1]."""
        for logits, position in zip(outputs, positions, strict=True):
            image = self._images.pop(position)
            ids = predicted_ids(logits, (image.shape[0], image.shape[1]))
            mask = None if self.folder is None else self._write(self.folder, position, image, ids)
            shares = class_shares(ids, self.classes)
            self.rows.append({"path": self.names[position], "mask": mask, "shares": shares})
        return torch.zeros(len(outputs), 1)

    def _write(self, folder: Path, position: int, image: Pixels, ids: ClassIds) -> str:
        mask = folder / self.files[position]
        mask.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(mask, mask_png(ids, self.classes))
        if self.overlays:
            shown = folder / OVERLAYS / Path(self.files[position]).with_suffix(".jpg")
            shown.parent.mkdir(parents=True, exist_ok=True)
            with replacing(shown) as path, path.open("wb") as stream:
                drawn = Image.fromarray(overlay(image, ids, self.classes))
                drawn.save(stream, "JPEG", quality=_QUALITY)
        return str(mask)


def mask_names(names: Sequence[str]) -> list[str]:
    """A relative name of each image's mask: below the folder that all images share, `.png`.

    Images that differ in their suffix alone keep it in the name of their mask.
    """
    paths = [PurePosixPath(name.replace("\\", "/")) for name in names]
    parts = [[part for part in path.parts[:-1] if part not in ("/", "..")] for path in paths]
    shared = 0
    while all(len(p) > shared and p[shared] == parts[0][shared] for p in parts):
        shared += 1
    stems = ["/".join([*p[shared:], path.stem]) for p, path in zip(parts, paths, strict=True)]
    count = Counter(stems)
    full = ["/".join([*p[shared:], path.name]) for p, path in zip(parts, paths, strict=True)]
    chosen = [stem if count[stem] == 1 else name for stem, name in zip(stems, full, strict=True)]
    used = set[str]()
    for position, name in enumerate(chosen):
        number, unique = 1, name
        while unique in used:
            number, unique = number + 1, f"{name}-{number + 1}"
        used.add(unique)
        chosen[position] = unique
    return [f"{name}.png" for name in chosen]
