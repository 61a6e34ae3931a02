"""Reads the files of a run folder; each of them is optional."""

import io
import json
import tomllib
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from unfreeze.errors import DataError, UsageError
from unfreeze.evaluation.warnings import RunWarning, merge_latest
from unfreeze.reports.examples import FILE as EXAMPLES
from unfreeze.reports.examples import Example, read_examples
from unfreeze.runtime.output_files import GENERATOR
from unfreeze.runtime.run_folder import RESULT, read_metrics
from unfreeze.runtime.text_layout import read_records

T = TypeVar("T")
Pixels = NDArray[np.uint8]
# a run folder has at least one of these
MARKS = ("config.toml", "metrics.jsonl", "demo.json", "compare.json")
PRETRAINING = "pretrain"  # the pretraining run inside the folder of a demo


@dataclass(frozen=True)
class PrototypeImages:
    """Nearest images and usage of each prototype, most used first."""

    images: Pixels  # [P, M, S, S, 3]: the images nearest to each prototype
    number: NDArray[np.int64]  # [P]
    share: NDArray[np.float64]  # [P], share of all images


@dataclass(frozen=True)
class RunData:
    """Contents of a run folder; missing files are empty or None."""

    folder: Path
    settings: dict[str, Any]
    reasons: dict[str, str]
    facts: dict[str, Any]
    metrics: list[dict[str, Any]]
    problems: list[dict[str, str]]
    evaluation: dict[str, Any] | None
    examples: list[Example]  # images of the evaluation
    demo: dict[str, Any] | None
    comparison: dict[str, Any] | None
    repeated: dict[str, Any] | None
    prototypes: PrototypeImages | None
    views: Pixels | None  # [n, v, S, S, 3]
    warned: list[dict[str, str]]  # warnings.json
    result: dict[str, Any] | None  # result.json, None while the run is unfinished

    @property
    def warnings(self) -> list[RunWarning]:
        """Warnings of the run, of its latest evaluation and of a comparison.

        Of each code only the latest, which is about the images evaluated last.
        """
        evaluated = (self.evaluation or {}).get("warnings", ())
        compared = (self.comparison or {}).get("warnings", ())
        sources = (self.warned, evaluated, compared)
        return merge_latest(*([RunWarning(**fields) for fields in source] for source in sources))

    @property
    def kind(self) -> str:
        """`demo`, `compare`, `pretrain`, `finetune` or `run`."""
        if self.comparison is not None:
            return "compare"
        if self.demo is not None:
            return "demo"
        if "size_crops" in self.settings:
            return "pretrain"
        return "finetune" if "freeze" in self.settings else "run"

    @property
    def unfinished(self) -> bool:
        """Whether a pretraining or fine-tuning run has started but not finished."""
        if self.kind not in ("pretrain", "finetune") or self.result is not None:
            return False
        done = self.metrics[-1].get("step") if self.metrics else None
        saved = (self.folder / "model" / "model.json").is_file()
        return not (saved and done == self.facts.get("steps"))


def read_run(run: str | Path) -> RunData:
    """Read a run folder; UsageError if it is not one, DataError for an unreadable file.

    The folder of a demo has its table; other files are read from its pretraining run.
    """
    folder = Path(run)
    if not any((folder / mark).is_file() for mark in MARKS):
        raise UsageError(
            f"{folder} is not a run folder: it has none of {', '.join(MARKS)}.",
            "Pass the folder that a command wrote with --out.",
        )
    folders = [folder, folder / PRETRAINING] if (folder / "demo.json").is_file() else [folder]

    def find(name: str, read: Callable[[Path], T]) -> T | None:
        path = next((parent / name for parent in folders if (parent / name).is_file()), None)
        return None if path is None else _read(path, read)

    config = find("config.toml", _toml) or {}
    return RunData(
        folder=folder,
        settings={k: v for k, v in config.items() if not isinstance(v, dict)},
        reasons=config.get("reasons", {}),
        facts=config.get("facts", {}),
        metrics=find("metrics.jsonl", lambda path: read_metrics(path.parent)) or [],
        problems=find("problems.csv", _rows) or [],
        evaluation=find("evaluation.json", _json),
        examples=find(EXAMPLES, read_examples) or [],
        demo=find("demo.json", _json),
        comparison=find("compare.json", _json),
        repeated=find("folds.json", _json),
        prototypes=find("prototypes.npz", _prototypes),
        views=find("views.npz", _views),
        warned=find("warnings.json", _warnings) or [],
        result=find(RESULT, _json),
    )


def _read(path: Path, read: Callable[[Path], T]) -> T:
    try:
        return read(path)
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read: {error}.", "Move it away to generate the report without it."
        ) from error


def _warnings(path: Path) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    return rows


def _json(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def _toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _rows(path: Path) -> list[dict[str, str]]:
    return read_records(path)


def _prototypes(path: Path) -> PrototypeImages:
    with np.load(path, allow_pickle=False) as arrays:
        share = np.asarray(arrays["share"], np.float64)
        order = np.argsort(-share, kind="stable")
        return PrototypeImages(arrays["images"][order], arrays["prototype"][order], share[order])


def _views(path: Path) -> Pixels:
    with np.load(path, allow_pickle=False) as arrays:
        return np.asarray(arrays["views"], np.uint8)


GAP = 2  # pixels between images of a row, before upscaling
SIDE = 56  # pixels of an image on a sheet, at least
CAPTION = 110  # pixels for the captions on the left of a sheet


def image_row_png(images: Sequence[Pixels] | Pixels) -> bytes:
    """PNG of uint8 images `[M, S, S, 3]` in a row, separated by transparent gaps."""
    return _png(_row(images))


def _row(images: Sequence[Pixels] | Pixels) -> Image.Image:
    side = images[0].shape[0]
    row = Image.new("RGBA", (len(images) * (side + GAP) - GAP, side), (0, 0, 0, 0))
    for index, image in enumerate(images):
        row.paste(Image.fromarray(np.ascontiguousarray(image)), (index * (side + GAP), 0))
    return row


def contact_sheet(prototypes: PrototypeImages, *, limit: int = 24) -> bytes:
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
