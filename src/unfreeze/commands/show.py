"""`show`: an HTML page about a dataset."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from unfreeze.checkpoints.model_file import read_card
from unfreeze.config.commands import ShowSettings
from unfreeze.config.field import inputs_of
from unfreeze.config.finetune import FinetuneSettings
from unfreeze.config.layering import build, load_settings, read_run_config
from unfreeze.config.pretrain import PretrainSettings
from unfreeze.config.shared import Data, data_name, label_arguments
from unfreeze.data.augment.multicrop import MEAN, STD, MultiCropTransform, normalize
from unfreeze.data.images.decode import resize_shorter_side
from unfreeze.data.images.intensity import format_intensity
from unfreeze.data.images.preprocess import Pixels, Preprocess
from unfreeze.data.index.class_stats import ClassCounts, class_counts
from unfreeze.data.index.index import TRAIN, Index, build_index
from unfreeze.data.index.mask_pairs import has_masks
from unfreeze.data.index.splits import subset
from unfreeze.data.loading.dataset import FileLost, ImageDataset
from unfreeze.data.loading.sample import sample_dataset, sample_images
from unfreeze.data.sources.open import BUILTIN_PREFIX, open_source
from unfreeze.data.validate.check_cache import CheckCache
from unfreeze.data.validate.precheck import ImageProblem, positions_to_check
from unfreeze.data.validate.report import check_dataset
from unfreeze.data.validate.warnings import dataset_warnings
from unfreeze.reports.dataset import DatasetPage, ImageRow, dataset_page
from unfreeze.reports.page import format_number
from unfreeze.reports.results_data import show_lead, shown
from unfreeze.runs.python_call import python_call
from unfreeze.runs.test_set_usage import run_folder
from unfreeze.runtime.atomic import write_text
from unfreeze.runtime.console import Console, printable
from unfreeze.runtime.device import pick_device
from unfreeze.runtime.display import Display, Displayed
from unfreeze.runtime.isolation import isolated
from unfreeze.runtime.notebook import python_console
from unfreeze.runtime.output_files import check_output_file, is_our_page
from unfreeze.swav.auto_recipe import plan, view_specs
from unfreeze.swav.dataset_stats import DatasetStats, evaluation_preprocess
from unfreeze.tasks.segmentation.checks import (
    MaskedImages,
    class_notes,
    images_with_masks,
    mask_of_row,
    mask_problems,
)
from unfreeze.tasks.segmentation.overlay import overlay
from unfreeze.transfer.augment import view_maker_of

RANDOM = 3  # epochs of augmented views shown for a fine-tuning run
ENOUGH = 1_000  # images to plan with at least: fewer than a batch would be refused

Cutter = Callable[[Sequence[Pixels], np.ndarray, int], list[torch.Tensor]]


@dataclass(frozen=True)
class ViewMaker:
    """How images enter a network: the input without augmentation, and the augmented views.

    `note`: a sentence for the page; `cut`: makes the views, None if only the input is known.
    """

    note: str
    cut: Cutter | None
    epochs: int  # number of epochs whose views are shown
    mean: Sequence[float]
    std: Sequence[float]
    preprocess: Preprocess

    def rows(self, images: Sequence[Pixels], ids: np.ndarray) -> list[list[tuple[str, Pixels]]]:
        """For each image a list of (caption, uint8 [S, S, 3]): the input, then the views."""
        shown = [[(self._word("input", pixels), pixels)] for pixels in map(self._input, images)]
        for epoch in range(self.epochs if self.cut else 0):
            for number, views in enumerate(self.cut(images, ids, epoch) if self.cut else []):
                kind = f"view {number + 1}" if self.epochs == 1 else f"epoch {epoch + 1}"
                view_pixels = _to_uint8(normalize(views, self.mean, self.std), self.mean, self.std)
                for row, pixels in zip(shown, view_pixels, strict=True):
                    row.append((self._word(kind, pixels), pixels))
        return shown

    def _input(self, image: Pixels) -> Pixels:
        preprocess = self.preprocess
        pixels: Pixels = _to_uint8(preprocess.apply(image)[None], preprocess.mean, preprocess.std)[
            0
        ]
        return pixels

    @staticmethod
    def _word(kind: str, pixels: Pixels) -> str:
        return f"{kind}, {pixels.shape[0]} px"


def view_maker(s: ShowSettings, side: int, images: int) -> ViewMaker:
    """The views of the run in `s`, else of a new pretraining run on such images."""
    if s.run is not None:
        return _views_of_run(s.run)
    values: dict[str, Any] = {"augment": s.augment, "image_size": s.image_size, "seed": s.seed}
    values |= {"range": s.range, "channels": s.channels}
    settings = build(PretrainSettings, values)
    facts = DatasetStats(max(images, ENOUGH), side, pick_device("auto").type)
    return _views_of_pretraining(plan(settings, facts).settings, "as in a new pretraining run")


def intensity_rule(s: ShowSettings) -> str:
    """The intensity rule to decode with (range and channels): as in `s`, else the run's."""
    of_run = Preprocess.from_dict(read_card(s.run).preprocess).intensity if s.run else "auto"
    return format_intensity(s.range, s.channels, of_run)


def _views_of_run(run: str) -> ViewMaker:
    card, folder = read_card(run), run_folder(run)
    preprocess = Preprocess.from_dict(card.preprocess)
    values = read_run_config(folder / "config.toml") if folder else {}
    if "nmb_crops" in values:
        return _views_of_pretraining(build(PretrainSettings, values), f"as in {run}")
    if "freeze" in values:
        s = build(FinetuneSettings, values)
        augment = view_maker_of(s.augment, preprocess, s.seed)
        note = (
            f"First the network input of {run}, then the augmented views of its first epochs "
            f"(--augment {s.augment})."
        )
        return ViewMaker(note, augment, RANDOM, preprocess.mean, preprocess.std, preprocess)
    note = f"The network input of {run}; its augmented views need the run folder."
    return ViewMaker(note, None, 0, preprocess.mean, preprocess.std, preprocess)


def _views_of_pretraining(s: PretrainSettings, source: str) -> ViewMaker:
    note = (
        f"First the input without augmentation, then the crops of the first epoch, {source} "
        f"(--augment {s.augment})."
    )
    return ViewMaker(
        note, MultiCropTransform(s.seed, view_specs(s)), 1, MEAN, STD, evaluation_preprocess(s)
    )


def _to_uint8(planes: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> Pixels:
    """uint8 [B, S, S, 3] from normalised input, float32 [B, 3, S, S]."""
    shift, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
    pixels = ((planes * scale + shift) * 255).round().clamp(0, 255)
    result: Pixels = pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return result


THUMBNAIL = 144  # pixels of the shorter side, at most
STRIPS = 40  # classes with samples on the page
UNLABELLED = 24  # samples where there are no classes
MASKED = 12  # samples of segmentation, each with its mask
VIEWED = 4  # images shown with their augmented views

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, repr=False)
class ShowResult(Displayed):
    """The page, and its figures.

    `counts`: images by class and split (`all` without splits). `imbalance`: size of the largest
    class over the smallest. `sizes`: percentiles of the known shorter sides in pixels, None if none
    is known. `checked`: images decoded now or before; `problems`: those of `scan` among them.
    """

    data: str
    out: str
    files: int
    images: int
    other: int
    checked: int
    classes: list[str]
    splits: dict[str, int]
    counts: dict[str, dict[str, int]]
    unlabelled: dict[str, int]
    imbalance: float | None
    unknown: dict[str, list[str]]
    missing: dict[str, list[str]]
    sizes: dict[str, float] | None
    problems: list[dict[str, Any]]
    notes: list[str]

    def display(self) -> Display:
        """The content to display on a console or in a notebook."""
        return shown(self)

    def rows(self) -> list[dict[str, Any]]:
        """One row per class: its images by split."""
        return [{"class": name, **row} for name, row in self.counts.items()]


@python_call(ShowSettings)
def show(
    data: Data, out: str | None = None, *, progress: bool | None = None, **settings: Any
) -> ShowResult:
    """Write a self-contained HTML page about `data`."""
    at = {"out": out} if out else {}  # else it may come from a settings file
    return run_show(
        load_settings(ShowSettings, {"data": data, **at, **settings}), python_console(progress)
    )


@isolated()
def run_show(settings: ShowSettings, console: Console) -> ShowResult:
    """The same from a settings object."""
    s = settings
    out = s.out or f"{_name(s.data)}.html"
    # check before the work, not after
    path = check_output_file(out, ours=is_our_page, inputs=inputs_of(s))
    source = open_source(s.data, data_root=s.data_root, console=console)
    masked = images_with_masks(source) if has_masks(source) else None
    index = (
        build_index(source, strange_classes=True, **label_arguments(s))
        if masked is None
        else masked.index
    )
    rule = intensity_rule(s)
    source.intensity, why = sample_images(index, np.arange(len(index)), rule).intensity(rule)
    checked = _checked(s, index, console)
    counted = class_counts(index)
    doubts = [message for _, message in dataset_warnings(index)]
    notes = [*doubts, *index.notes, *counted.notes()]
    notes += [f"Range {source.intensity}: {why}."] if why else []
    notes += [] if masked is None else class_notes(masked)
    if masked is not None:
        checked = replace(checked, problems=[*checked.problems, *mask_problems(masked)])
    result = _result(data_name(s.data), out, index, checked, counted, notes)
    if masked is not None and masked.task is not None:
        result = replace(result, classes=list(masked.task.classes))
    write_text(path, dataset_page(_page_data(s, checked, counted, result, masked)))
    return result


@dataclass(frozen=True, eq=False)
class _Checked:
    """The problems of the `checked` images of an index, as in `scan`.

    `usable`: positions of all images not known to be broken. `shorter`: known shorter sides,
    pixels.
    """

    index: Index
    usable: Positions
    shorter: Positions
    problems: list[ImageProblem]
    checked: int


def _checked(s: ShowSettings, index: Index, console: Console) -> _Checked:
    # if all files are known from an earlier scan, a full scan costs nothing
    all_known = bool(CheckCache(index.source).table["known"][index.rows].all())
    mode: Any = "full" if all_known and s.scan == "sample" else s.scan
    positions = positions_to_check(len(index), mode, s.seed)
    clinic = check_dataset(index.take(positions), workers=s.workers, console=console)
    usable = np.ones(len(index), bool)
    usable[positions] = False
    usable[positions[clinic.usable]] = True
    shorter = clinic.sizes[clinic.usable].min(axis=1).astype(np.int64)
    return _Checked(index, np.flatnonzero(usable), shorter, clinic.problems, len(positions))


def _result(
    data: str, out: str, index: Index, checked: _Checked, counted: ClassCounts, notes: list[str]
) -> ShowResult:
    return ShowResult(
        data=data,
        out=out,
        files=len(index.source) + index.source.skipped,
        images=len(index),
        other=index.other,
        checked=checked.checked,
        classes=list(index.classes),
        **asdict(counted),
        sizes=_sizes(checked.shorter),
        problems=[
            {
                **problem._asdict(),
                "path": printable(problem.path),
                "detail": printable(problem.detail),
            }
            for problem in checked.problems
        ],
        notes=[printable(note) for note in notes],
    )


def _sizes(sides: npt.NDArray[np.int64]) -> dict[str, float] | None:
    if not len(sides):
        return None
    low, low_tail, median, high_tail, high = np.percentile(sides, [0, 5, 50, 95, 100]).tolist()
    return {"min": low, "5 %": low_tail, "median": median, "95 %": high_tail, "max": high}


def _page_data(
    s: ShowSettings,
    checked: _Checked,
    counted: ClassCounts,
    result: ShowResult,
    masked: MaskedImages | None,
) -> DatasetPage:
    index = checked.index
    samples = _Sampler(s, checked, masked)
    views, note = _views(s, index, samples)
    sized = f"of {len(checked.shorter):,} images that were decoded"
    coverage = (
        "Every image was decoded."
        if result.checked >= len(index)
        else (f"{result.checked:,} of {len(index):,} images were decoded; --scan full decodes all.")
    )
    return DatasetPage(
        name=printable(data_name(s.data)),
        lead=show_lead(result),
        figures=_figures(counted, result),
        notes=result.notes,
        splits=list(counted.splits),
        counts={printable(name): row for name, row in counted.counts.items()},
        samples=samples.strips(),
        shorter=checked.shorter,
        sized=sized,
        views=views,
        views_note=note,
        problems=result.problems,
        problems_note=coverage if result.problems else f"None found. {coverage}",
    )


def _figures(counted: ClassCounts, result: ShowResult) -> list[tuple[str, str]]:
    shown = [("images", format_number(result.images)), ("other files", format_number(result.other))]
    if counted.classes:
        shown.append(("classes", format_number(counted.classes)))
    if len(counted.splits) > 1 or "all" not in counted.splits:
        shown += [(name, format_number(count)) for name, count in counted.splits.items()]
    if counted.imbalance is not None:
        shown.append(("largest : smallest class", f"{counted.imbalance:.3g} : 1"))
    if result.sizes is not None:
        shown.append(("shorter side, median", f"{result.sizes['median']:.0f} px"))
    left_out = sum(problem["left_out"] for problem in result.problems)
    return [
        *shown,
        ("left out", format_number(left_out)),
        ("problems", format_number(len(result.problems))),
    ]


class _Sampler:
    """Seeded samples of the usable images: of train if there is one, some of each class."""

    def __init__(self, s: ShowSettings, checked: _Checked, masked: MaskedImages | None) -> None:
        self.masked = masked
        self.s, self.index = s, checked.index
        self.images = ImageDataset(checked.index)
        train = checked.usable[self.index.splits[checked.usable] == TRAIN]
        self.usable: Positions = train if len(train) else checked.usable

    def strips(self) -> list[ImageRow]:
        """A strip for each of the first classes; a single one without classes."""
        if self.masked is not None:
            pairs = [self._pair(int(p)) for p in self._drawn(self.usable, MASKED)]
            return [ImageRow("", [shown for pair in pairs for shown in pair])]
        if not self.index.classes:
            return [self._strip("", self._drawn(self.usable, UNLABELLED))]
        strips = []
        for label, name in enumerate(self.index.classes[:STRIPS]):
            of_class = self.usable[self.index.labels[self.usable] == label]
            strips.append(self._strip(printable(name), self._drawn(of_class, self.s.samples)))
        return [strip for strip in strips if strip.images]

    def few(self) -> tuple[Positions, list[Pixels]]:
        """Positions and pixels of the images shown with augmented views."""
        chosen = self._drawn(self.usable, VIEWED)
        images = {int(position): self._read(int(position)) for position in chosen}
        readable = {position: image for position, image in images.items() if image is not None}
        return np.array(list(readable), np.int64), list(readable.values())

    def _drawn(self, positions: Positions, count: int) -> Positions:
        return subset(self.index.labels, positions, limit=count, seed=self.s.seed)

    def _strip(self, name: str, positions: Positions) -> ImageRow:
        images = [(int(position), self._read(int(position))) for position in positions]
        shown = [
            (
                "" if name else _file(self.index.paths[position]),
                resize_shorter_side(image, THUMBNAIL),
            )
            for position, image in images
            if image is not None
        ]
        return ImageRow(name, shown)

    def _pair(self, position: int) -> list[tuple[str, Pixels]]:
        """The image and its mask in colour, each with its caption."""
        image, masked, name = self._read(position), self.masked, _file(self.index.paths[position])
        shown = [] if image is None else [(name, resize_shorter_side(image, THUMBNAIL))]
        ids = None if masked is None else mask_of_row(masked, int(self.index.rows[position]))
        if image is not None and ids is not None and ids.shape == image.shape[:2]:
            colours = overlay(image, ids, masked.task.known_classes)  # type: ignore[union-attr]
            shown.append(("mask", resize_shorter_side(colours, THUMBNAIL)))
        return shown

    def _read(self, position: int) -> Pixels | None:
        try:
            return self.images[position]
        except FileLost:
            return None  # not checked by this call


def _views(s: ShowSettings, index: Index, samples: _Sampler) -> tuple[list[ImageRow], str]:
    positions, images = samples.few()
    if not images:
        return [], ""
    # as in a run: by the images it trains on
    views = view_maker(s, sample_dataset(index, samples.usable).side, len(samples.usable))
    rows = views.rows(images, positions)
    strips = [
        ImageRow(
            printable(index.paths[position]),
            [("original", resize_shorter_side(image, THUMBNAIL)), *row],
        )
        for position, image, row in zip(positions.tolist(), images, rows, strict=True)
    ]
    return strips, views.note


def _file(path: str) -> str:
    return printable(path.rpartition("/")[2])


def _name(data: Sequence[str]) -> str:
    """The name of the page: that of the data, the first of several."""
    first = data if isinstance(data, str) else data[0]
    more = 0 if isinstance(data, str) else len(data) - 1
    name = Path(first.removeprefix(BUILTIN_PREFIX).rstrip("/\\")).resolve().name
    for ending in (".tar.gz", ".tgz", ".tar", ".zip", ".csv"):
        name = name.removesuffix(ending)
    return (name or "images") + (f"-and-{more}-more" if more else "")
