"""`show`: an HTML page about a dataset."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unfreeze.api.keywords import python_call
from unfreeze.api.lookout import intensity, lookout
from unfreeze.data.census import Census, census
from unfreeze.data.clinic import attend
from unfreeze.data.dataset import FileLost, ImageDataset
from unfreeze.data.dataset_warnings import dataset_warnings
from unfreeze.data.decode import shrink
from unfreeze.data.examined import Examined
from unfreeze.data.index import TRAIN, Index, build_index
from unfreeze.data.preprocess import Pixels
from unfreeze.data.sample import looked_at, sampled
from unfreeze.data.scan import Problem, to_check
from unfreeze.data.sources.open import PREFIX, open_source
from unfreeze.data.splits import subset
from unfreeze.reports.dataset import Seen, Strip, dataset
from unfreeze.reports.page import number
from unfreeze.reports.results_data import show_lead, shown
from unfreeze.runtime.atomic import write_text
from unfreeze.runtime.console import Console, told
from unfreeze.runtime.display import Display, Displayed
from unfreeze.runtime.isolation import isolated
from unfreeze.runtime.notebook import python_console
from unfreeze.runtime.outputs import is_our_page, output_file
from unfreeze.settings.build import layered
from unfreeze.settings.knob import inputs_of
from unfreeze.settings.shared import Data, said_of, spoken
from unfreeze.settings.use import ShowSettings

THUMBNAIL = 144  # pixels of the shorter side, at most
STRIPS = 40  # classes with samples on the page
UNLABELLED = 24  # samples where there are no classes
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
        layered(ShowSettings, {"data": data, **at, **settings}), python_console(progress)
    )


@isolated()
def run_show(settings: ShowSettings, console: Console) -> ShowResult:
    """The same from a settings object."""
    s = settings
    out = s.out or f"{_name(s.data)}.html"
    # check before the work, not after
    path = output_file(out, ours=is_our_page, inputs=inputs_of(s))
    source = open_source(s.data, data_root=s.data_root, console=console)
    index = build_index(
        source,
        strange_classes=True,
        **said_of(s),
    )
    rule = intensity(s)
    source.intensity, why = looked_at(index, np.arange(len(index)), rule).intensity(rule)
    checked = _checked(s, index, console)
    counted = census(index)
    doubts = [message for _, message in dataset_warnings(index)]
    notes = [*doubts, *index.notes, *counted.notes()]
    notes += [f"Range {source.intensity}: {why}."] if why else []
    result = _result(spoken(s.data), out, index, checked, counted, notes)
    write_text(path, dataset(_page_data(s, checked, counted, result)))
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
    problems: list[Problem]
    checked: int


def _checked(s: ShowSettings, index: Index, console: Console) -> _Checked:
    # if all files are known from an earlier scan, a full scan costs nothing
    all_known = bool(Examined(index.source).table["known"][index.rows].all())
    mode: Any = "full" if all_known and s.scan == "sample" else s.scan
    positions = to_check(len(index), mode, s.seed)
    clinic = attend(index.take(positions), workers=s.workers, console=console)
    usable = np.ones(len(index), bool)
    usable[positions] = False
    usable[positions[clinic.usable]] = True
    shorter = clinic.sizes[clinic.usable].min(axis=1).astype(np.int64)
    return _Checked(index, np.flatnonzero(usable), shorter, clinic.problems, len(positions))


def _result(
    data: str, out: str, index: Index, checked: _Checked, counted: Census, notes: list[str]
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
            {**problem._asdict(), "path": told(problem.path), "detail": told(problem.detail)}
            for problem in checked.problems
        ],
        notes=[told(note) for note in notes],
    )


def _sizes(sides: npt.NDArray[np.int64]) -> dict[str, float] | None:
    if not len(sides):
        return None
    low, low_tail, median, high_tail, high = np.percentile(sides, [0, 5, 50, 95, 100]).tolist()
    return {"min": low, "5 %": low_tail, "median": median, "95 %": high_tail, "max": high}


def _page_data(s: ShowSettings, checked: _Checked, counted: Census, result: ShowResult) -> Seen:
    index = checked.index
    samples = _Sampler(s, checked)
    views, note = _views(s, index, samples)
    sized = f"of {len(checked.shorter):,} images that were decoded"
    coverage = (
        "Every image was decoded."
        if result.checked >= len(index)
        else (f"{result.checked:,} of {len(index):,} images were decoded; --scan full decodes all.")
    )
    return Seen(
        name=told(spoken(s.data)),
        lead=show_lead(result),
        figures=_figures(counted, result),
        notes=result.notes,
        splits=list(counted.splits),
        counts={told(name): row for name, row in counted.counts.items()},
        samples=samples.strips(),
        shorter=checked.shorter,
        sized=sized,
        views=views,
        views_note=note,
        problems=result.problems,
        problems_note=coverage if result.problems else f"None found. {coverage}",
    )


def _figures(counted: Census, result: ShowResult) -> list[tuple[str, str]]:
    shown = [("images", number(result.images)), ("other files", number(result.other))]
    if counted.classes:
        shown.append(("classes", number(counted.classes)))
    if len(counted.splits) > 1 or "all" not in counted.splits:
        shown += [(name, number(count)) for name, count in counted.splits.items()]
    if counted.imbalance is not None:
        shown.append(("largest : smallest class", f"{counted.imbalance:.3g} : 1"))
    if result.sizes is not None:
        shown.append(("shorter side, median", f"{result.sizes['median']:.0f} px"))
    left_out = sum(problem["left_out"] for problem in result.problems)
    return [*shown, ("left out", number(left_out)), ("problems", number(len(result.problems)))]


class _Sampler:
    """Seeded samples of the usable images: of train if there is one, some of each class."""

    def __init__(self, s: ShowSettings, checked: _Checked) -> None:
        self.s, self.index = s, checked.index
        self.images = ImageDataset(checked.index)
        train = checked.usable[self.index.splits[checked.usable] == TRAIN]
        self.usable: Positions = train if len(train) else checked.usable

    def strips(self) -> list[Strip]:
        """A strip for each of the first classes; a single one without classes."""
        if not self.index.classes:
            return [self._strip("", self._drawn(self.usable, UNLABELLED))]
        strips = []
        for label, name in enumerate(self.index.classes[:STRIPS]):
            of_class = self.usable[self.index.labels[self.usable] == label]
            strips.append(self._strip(told(name), self._drawn(of_class, self.s.samples)))
        return [strip for strip in strips if strip.images]

    def few(self) -> tuple[Positions, list[Pixels]]:
        """Positions and pixels of the images shown with augmented views."""
        chosen = self._drawn(self.usable, VIEWED)
        images = {int(position): self._read(int(position)) for position in chosen}
        readable = {position: image for position, image in images.items() if image is not None}
        return np.array(list(readable), np.int64), list(readable.values())

    def _drawn(self, positions: Positions, count: int) -> Positions:
        return subset(self.index.labels, positions, limit=count, seed=self.s.seed)

    def _strip(self, name: str, positions: Positions) -> Strip:
        images = [(int(position), self._read(int(position))) for position in positions]
        shown = [
            ("" if name else _file(self.index.paths[position]), shrink(image, THUMBNAIL))
            for position, image in images
            if image is not None
        ]
        return Strip(name, shown)

    def _read(self, position: int) -> Pixels | None:
        try:
            return self.images[position]
        except FileLost:
            return None  # not checked by this call


def _views(s: ShowSettings, index: Index, samples: _Sampler) -> tuple[list[Strip], str]:
    positions, images = samples.few()
    if not images:
        return [], ""
    # as in a run: by the images it trains on
    views = lookout(s, sampled(index, samples.usable).side, len(samples.usable))
    rows = views.rows(images, positions)
    strips = [
        Strip(told(index.paths[position]), [("original", shrink(image, THUMBNAIL)), *row])
        for position, image, row in zip(positions.tolist(), images, rows, strict=True)
    ]
    return strips, views.note


def _file(path: str) -> str:
    return told(path.rpartition("/")[2])


def _name(data: Sequence[str]) -> str:
    """The name of the page: that of the data, the first of several."""
    first = data if isinstance(data, str) else data[0]
    more = 0 if isinstance(data, str) else len(data) - 1
    name = Path(first.removeprefix(PREFIX).rstrip("/\\")).resolve().name
    for ending in (".tar.gz", ".tgz", ".tar", ".zip", ".csv"):
        name = name.removesuffix(ending)
    return (name or "images") + (f"-and-{more}-more" if more else "")
