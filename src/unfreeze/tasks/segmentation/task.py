"""The segmentation task: masks as labels, losses of pixels, mIoU over a whole data set."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unfreeze.config.finetune import FinetuneSettings
from unfreeze.data.augment.config import CropSpec
from unfreeze.data.images.decode import header_size
from unfreeze.data.images.errors import Undecodable
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.data.index.index import Index, with_splits_of
from unfreeze.data.index.mask_pairs import class_tables, index_of_pairs, mask_reader
from unfreeze.data.sources.open import open_source
from unfreeze.data.sources.source import Source
from unfreeze.errors import DataError, UsageError
from unfreeze.tasks.segmentation.crops import MaskedCrops, resized_mask
from unfreeze.tasks.segmentation.losses import DEFAULT, loss_of_images
from unfreeze.tasks.segmentation.masks import (
    TABLE_NAMES,
    ClassIds,
    MaskClasses,
    classes_of_values,
    is_coloured,
    orientation,
    read_class_table,
    read_mask,
)
from unfreeze.tasks.segmentation.metrics import (
    pixel_confusion,
    pixel_metrics,
    predicted_ids,
    segmentation_details,
)
from unfreeze.tasks.segmentation.overlay import colour_names
from unfreeze.tasks.supervised import SupervisedTask

THREADS = 4  # Pillow releases the GIL
LOSS_PIXELS = 1 << 18  # of an image's validation loss, at most
HELD = 1 << 29  # bytes of decoded masks that each process keeps in memory
HEAD = 1 << 16  # bytes that usually hold an image's size and orientation
LEAST = 10  # images whose rarest class is the same, to be a stratum of their own


class SizeProblem(NamedTuple):
    """Why an image and its mask do not lie on each other."""

    rotated: bool  # the image by its EXIF orientation
    detail: str


class MaskFacts(NamedTuple):
    """One mask: its size (height, width), and the number of pixels of each value."""

    size: tuple[int, int]
    counts: dict[int, int]


class SegmentationTask(SupervisedTask):
    """A label is the name of an image's mask; its target is a row of `names`."""

    metric = "miou"
    limits = (0.0, 1.0)
    dense = True
    supports: ClassVar[frozenset[str]] = frozenset({"class_weights"})

    def __init__(self) -> None:
        self.masks_folder: str | None = None
        self.table_file: str | None = None
        self.ignore_index: int | None = None
        self.loss_name, self.class_weights = DEFAULT, "none"
        self.table: MaskClasses | None = None
        self.weights: list[float] = []
        self.names: list[str] = []  # of masks, by row
        self._rows: dict[str, int] = {}
        self._held: dict[int, ClassIds] = {}
        self._bytes = 0
        self._facts: dict[str, MaskFacts] = {}
        self._pixel_loss: Any = None

    # -------------------------------------------------------------------------------------- data

    def configure(self, settings: Any) -> None:
        """Take `--masks`, `--mask-classes`, `--ignore-index`, `--loss` and `--class-weights`."""
        self.masks_folder = getattr(settings, "masks", None)
        if not isinstance(settings, FinetuneSettings):
            return  # a trained model has the rest
        self.table_file, self.ignore_index = settings.mask_classes, settings.ignore_index
        self.loss_name, self.class_weights = settings.loss or DEFAULT, settings.class_weights
        loss_of_images(self.loss_name)  # refuse an unknown name before anything is read

    def index(self, source: Source, **arguments: Any) -> Index:
        """All images with a mask; their labels are the names of the masks."""
        for name in ("labels", "label_column"):
            if arguments.get(name) is not None:
                raise UsageError(
                    f"--{name.replace('_', '-')} names class labels; segmentation learns masks.",
                    "Use --masks DIR, or a CSV with the columns path and mask.",
                )
        masks = None if self.masks_folder is None else open_source(self.masks_folder)
        index = index_of_pairs(source, masks)
        if (split_from := arguments.get("split_from")) is not None:
            index = with_splits_of(index, split_from)
        self._read = mask_reader(source, masks)
        if self.table is None:
            self.table = self._named_classes(source, masks, index.classes[0])
        return index

    def _coloured(self, name: str) -> bool:
        """Whether the mask of this name has colours."""
        return is_coloured([int(read_mask(self._read(name), name).max())])

    def _named_classes(
        self, source: Source, masks: Source | None, first: str
    ) -> MaskClasses | None:
        """The classes of `--mask-classes`, or of a table beside the data; None without any.

        `first`: the name of a mask.
        """
        if self.table_file is not None:
            try:
                with open(self.table_file, "rb") as stream:  # noqa: PTH123  (a name of the user)
                    data = stream.read()
            except OSError as error:
                raise DataError(
                    f"--mask-classes {self.table_file}: {error.strerror}.", "Give a CSV file."
                ) from error
            return read_class_table(
                data, self.table_file, self.ignore_index, coloured=self._coloured(first)
            )
        for part in (source, masks):
            if part is not None:
                for name, data in class_tables(part, TABLE_NAMES):
                    return read_class_table(
                        data, name, self.ignore_index, coloured=self._coloured(first)
                    )
        return None

    def fit(self, labels: Sequence[str]) -> None:
        """Find the classes of the masks if no table names them, and their weights."""
        facts = self.facts(labels)
        total = Counter[int]()
        for fact in facts:
            total.update(fact.counts)
        if self.table is None:
            self.table = classes_of_values(list(total), self.ignore_index)
        self.classes = self.table.names
        self.outputs = len(self.classes)
        counts = np.array([total[value] for value in self.table.values], np.float64)
        self.weights = _weights(counts, self.class_weights)

    def fingerprint(self, index: Index) -> str:
        """Hex digest of the pairs and of the masks: their sizes and pixels of each value."""
        names = [index.classes[label] for label in index.labels.tolist()]
        facts = [[fact.size, sorted(fact.counts.items())] for fact in self.facts(names)]
        text = json.dumps([index.paths, names, facts])
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]

    def check(self, index: Index) -> None:
        """DataError for a mask with an unknown value, or of another size than its image."""
        names = [index.classes[label] for label in index.labels.tolist()]
        table = self.known_classes
        known = {*table.values, *table.ignored}
        for name, facts in zip(names, self.facts(names), strict=True):
            if set(facts.counts) - known:
                table.ids(read_mask(self._read(name), name, colours=table.colours), name)
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda pair: self._check_size(index, *pair), enumerate(names)))

    def _check_size(self, index: Index, position: int, name: str) -> None:
        problem = self.size_problem(index, position, name)
        if problem is not None:
            remedy = (
                "Save the image with its pixels turned, so that they match the mask."
                if problem.rotated
                else "Save both at the same size."
            )
            raise DataError(f"{index.paths[position]} {problem.detail}.", remedy)

    def size_problem(self, index: Index, position: int, name: str) -> SizeProblem | None:
        """Why the image and its mask of this name do not fit; None if they do."""
        try:
            data, size = _header(index.source, int(index.rows[position]))
        except (OSError, Undecodable):
            return None  # the check of the images reports it
        mask_size, turned = self.facts([name])[0].size, orientation(data)
        if turned >= 5:  # by a quarter: shown with width and height exchanged
            size = size[::-1]
        if turned > 1 and (size[0] == size[1] or turned < 5 or size[::-1] == mask_size):
            detail = (
                f"is turned by its EXIF orientation; its mask {name} is not"
                if size[0] != size[1] and turned >= 5
                else f"is turned by its EXIF orientation; whether its mask {name} is turned as "
                "well cannot be seen"
            )
            return SizeProblem(True, detail)
        if size != mask_size:
            detail = (
                f"has {size[1]}x{size[0]} pixels, its mask {name} {mask_size[1]}x{mask_size[0]}"
            )
            return SizeProblem(False, detail)
        return None

    def facts(self, names: Sequence[str]) -> list[MaskFacts]:
        """Size and values of masks, each read once."""
        missing = [name for name in dict.fromkeys(names) if name not in self._facts]
        with ThreadPoolExecutor(THREADS) as pool:
            self._facts |= zip(missing, pool.map(self._fact, missing), strict=True)
        return [self._facts[name] for name in names]

    def _fact(self, name: str) -> MaskFacts:
        colours = self.table is not None and self.table.colours
        values = read_mask(self._read(name), name, colours=colours)
        different, counts = np.unique(values, return_counts=True)
        size = (values.shape[0], values.shape[1])
        return MaskFacts(size, dict(zip(different.tolist(), counts.tolist(), strict=True)))

    @property
    def known_classes(self) -> MaskClasses:
        """The classes, which `fit` has found."""
        if self.table is None:
            raise RuntimeError("fit() was not called")
        return self.table

    def mask(self, row: int) -> ClassIds:
        """Class ids uint8 [H, W] of a mask by its row."""
        held = self._held.get(row)
        if held is not None:
            return held
        name, table = self.names[row], self.known_classes
        ids = table.ids(read_mask(self._read(name), name, colours=table.colours), name)
        if self._bytes + ids.nbytes <= HELD:
            self._held[row], self._bytes = ids, self._bytes + ids.nbytes
        return ids

    # ---------------------------------------------------------------------------------- training

    def targets(self, labels: Sequence[str]) -> Tensor:
        """Rows [N] of masks, for `mask`."""
        for label in labels:
            if label not in self._rows:
                self._rows[label] = len(self.names)
                self.names.append(label)
        return torch.tensor([self._rows[label] for label in labels], dtype=torch.long)

    def view_maker(
        self, targets: Tensor, spec: CropSpec | None, preprocess: Preprocess, seed: int
    ) -> MaskedCrops:
        """Crops of images with their masks."""
        return MaskedCrops(_MasksOf(self, targets.tolist()), spec, preprocess, seed)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss [B] of logits [B, C, h, w] and class ids [B, h, w]."""
        if self._pixel_loss is None:
            weights = torch.tensor(self.weights) if self.weights else None
            self._pixel_loss = loss_of_images(self.loss_name, weights)
        losses: Tensor = self._pixel_loss(outputs, targets)
        return losses

    # -------------------------------------------------------------------------------- evaluation

    def summarize(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Confusion matrix of each image's pixels at its own size, then its loss: [B, C * C + 1].

        float64; `targets`: rows of masks.
        """
        masks = [self.mask(row) for row in targets.tolist()]
        # the loss of a large image in tiles: at every second, third ... position
        step = max(1, math.ceil(math.sqrt(outputs[0, 0].numel() / LOSS_PIXELS)))
        some = outputs[:, :, ::step, ::step].float()
        shape = (outputs.shape[2], outputs.shape[3])
        small = torch.from_numpy(
            np.stack([resized_mask(mask, shape)[::step, ::step] for mask in masks])
        )
        losses = self.loss(some, small.long().to(outputs.device)).double().cpu()
        tables = [
            pixel_confusion(predicted_ids(logits, (mask.shape[0], mask.shape[1])), mask,
                            self.outputs).ravel()
            for logits, mask in zip(outputs, masks, strict=True)
        ]  # fmt: skip
        return torch.cat([torch.from_numpy(np.stack(tables)).double(), losses[:, None]], dim=1)

    def mean_loss(self, outputs: Tensor, targets: Tensor) -> float:
        """The mean of the images' losses."""
        return float(outputs[:, -1].mean())

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """`miou`, `dice` and `pixel_accuracy` over all pixels of the images."""
        return pixel_metrics(self._confusion(outputs))

    def resampled(self, outputs: Tensor, counts: Tensor) -> Tensor:
        """The summed confusion matrices of resamples, as outputs of one image each."""
        return counts.to(outputs.dtype) @ outputs

    def details(self, outputs: Tensor, targets: Tensor) -> dict[str, Any]:
        """IoU by class and the confusion matrix."""
        details = segmentation_details(self._confusion(outputs), self.classes)
        return {**details, "colours": colour_names(self.known_classes)}

    def _confusion(self, outputs: Tensor) -> npt.NDArray[np.int64]:
        total = outputs[:, :-1].sum(dim=0).round().to(torch.int64)
        return total.reshape(self.outputs, self.outputs).numpy()

    def predict(self, outputs: Tensor) -> list[dict[str, Any]]:
        """Each image's own mIoU and pixel accuracy."""
        rows = (self.metrics(outputs[i : i + 1], torch.empty(0)) for i in range(len(outputs)))
        return [{name: row[name] for name in ("miou", "pixel_accuracy")} for row in rows]

    def example_outputs(self) -> Tensor:
        """A confusion matrix of one pixel."""
        outputs = torch.zeros(1, self.outputs**2 + 1)
        outputs[0, 0] = 1
        return outputs

    def strata(self, targets: Tensor) -> npt.NDArray[np.int32]:
        """The rarest class in each mask, so that validation gets a share of the rare ones.

        Classes that are the rarest of fewer than LEAST images form one stratum.
        """
        table = self.known_classes
        facts = self.facts([self.names[row] for row in targets.tolist()])
        images = Counter(value for fact in facts for value in fact.counts)
        rarest = [
            min((value for value in fact.counts if value in table.values),
                key=lambda value: (images[value], value), default=-1)
            for fact in facts
        ]  # fmt: skip
        counts = Counter(rarest)
        numbers = {v: i for i, v in enumerate(sorted(v for v in counts if counts[v] >= LEAST), 1)}
        return np.array([numbers.get(value, 0) for value in rarest], np.int32)

    # ------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """The classes, and what the loss needs."""
        return {
            "table": self.known_classes.as_dict(),
            "loss": self.loss_name,
            "weights": self.weights,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`."""
        self.table = MaskClasses.from_dict(state["table"])
        self.classes = self.table.names
        self.loss_name, self.weights = str(state["loss"]), [float(w) for w in state["weights"]]
        self._pixel_loss = None
        self._held, self._bytes = {}, 0


def _header(source: Source, row: int) -> tuple[bytes, tuple[int, int]]:
    """(bytes, (height, width)) of an image, from its first bytes if they are enough."""
    data = source.head(row, HEAD)
    try:
        return data, header_size(data)
    except Undecodable:
        whole = source.read(row)
        if not isinstance(whole, bytes):
            return b"", (whole.shape[0], whole.shape[1])
        return whole, header_size(whole)


class _MasksOf:
    """The mask of a position in a data set with these rows; picklable for worker processes."""

    def __init__(self, task: SegmentationTask, rows: list[int]) -> None:
        self.task, self.rows = task, rows

    def __call__(self, position: int) -> ClassIds:
        return self.task.mask(self.rows[position])


def _weights(pixels: npt.NDArray[np.float64], kind: str) -> list[float]:
    """Weight of each class by its number of pixels; the mean weight of a pixel is 1."""
    if kind == "none":
        return []
    frequency = pixels / max(pixels.sum(), 1.0)
    weights = 1 / np.maximum(frequency, 1e-6)
    if kind == "sqrt":
        weights = np.sqrt(weights)
    weights /= max(float((weights * frequency).sum()), 1e-12)
    return [float(weight) for weight in weights]
