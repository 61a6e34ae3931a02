"""The output folder of an export, written atomically."""

import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from unfreeze.data.images.preprocess import Preprocess
from unfreeze.errors import UsageError
from unfreeze.exports.exported_model import ExportedModel
from unfreeze.runtime.output_files import check_writable, is_json_with, refuse_inputs, refuse_inside

ABOUT, README = "export.json", "README.md"


def check_output_folder(path: str | None, *, overwrite: bool, inputs: Sequence[str] = ()) -> Path:
    """The output folder `path`; UsageError if an export may not be written there.

    `overwrite` requires a folder that contains only an earlier export, and none of `inputs`.
    Nothing is changed.
    """
    if not path:
        raise UsageError("export needs an output folder.", "Add --out DIR.")
    folder = Path(path)
    check_writable("--out", folder)
    refuse_inputs("--out", folder, inputs)
    if not folder.is_dir() or not any(folder.iterdir()):
        return folder
    if not overwrite:
        raise UsageError(f"--out {folder} is not empty.", "Name a new folder, or add --overwrite.")
    foreign = _foreign_entry(folder)
    if foreign:
        raise UsageError(
            f"--overwrite: {folder} holds {foreign}, which was not written by an export, so "
            "nothing was deleted.",
            "Name another folder, or empty this one yourself.",
        )
    refuse_inside("--overwrite", folder, inputs)
    return folder


def _foreign_entry(folder: Path) -> str:
    """The first entry of the folder that was not written by an export; "" if there is none."""
    names = sorted(entry.name for entry in folder.iterdir())
    about = folder / ABOUT
    if not about.is_file() or not is_json_with("to", "unfreeze", "files")(about):
        return names[0]
    written = {ABOUT, README, *json.loads(about.read_bytes())["files"]}
    return next((name for name in names if name not in written), "")


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that replaces `folder` when the block succeeds.

    If the block fails it is removed and `folder` is unchanged.
    """
    target = folder.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name[:40]}."
    temporary = Path(tempfile.mkdtemp(prefix=prefix, suffix=".tmp", dir=target.parent))
    try:
        new_folder = temporary / "new"
        new_folder.mkdir()
        yield new_folder
        if target.exists():
            target.rename(temporary / "old")
        new_folder.replace(target)
    finally:
        if (temporary / "old").exists() and not target.exists():
            (temporary / "old").rename(target)
        shutil.rmtree(temporary, ignore_errors=True)


PREPARE, IMAGE = "prepare.py", "image.jpg"
# the maps at the image's own size, and the class of each pixel
_MASK_LINES = (
    "import PIL.Image",
    "from prepare import open_image",
    f'size = open_image("{IMAGE}").size',
    "wide = [PIL.Image.fromarray(one).resize(size, PIL.Image.BILINEAR) for one in maps[0]]",
    "ids = numpy.stack(wide).argmax(axis=0)",
    f'classes = json.loads(pathlib.Path("{ABOUT}").read_text(encoding="utf-8"))["classes"]',
    "print({name: float((ids == number).mean()) for number, name in enumerate(classes)})",
)
# the labels of an image, each from its threshold on
_LABEL_LINES = (
    f'about = json.loads(pathlib.Path("{ABOUT}").read_text(encoding="utf-8"))',
    'named = zip(about["classes"], probabilities, about["thresholds"])',
    "print({name: float(p) for name, p, threshold in named if p >= threshold})",
)
_IMPORT = ("from prepare import prepare  # prepare.py in this folder",)


def torch_lines(subject: ExportedModel) -> list[str]:
    """Python lines that print the output of `model`, a PyTorch module, for one image."""
    call = f'model(torch.from_numpy(prepare("{IMAGE}")[None]))'
    lines = [*_IMPORT, "with torch.inference_mode():", f"    {subject.gives} = {call}"]
    if subject.gives == "features":
        return [*lines, "print(features.shape)"]
    if subject.gives == "maps":
        return ["import numpy", *lines, "maps = maps.numpy()", *_MASK_LINES]
    if subject.thresholds is not None:
        return [*lines, "probabilities = scores.sigmoid()[0].numpy()", *_LABEL_LINES]
    return [
        *lines,
        f"probabilities = {_scaled_scores(subject)}.softmax(dim=1)[0].numpy()",
        *_print_lines(),
    ]


def numpy_lines(subject: ExportedModel) -> list[str]:
    """Python lines that print the result of `outputs`, a NumPy function, for one image."""
    lines = [*_IMPORT, f'{subject.gives} = outputs(prepare("{IMAGE}")[None])']
    if subject.gives == "features":
        return [*lines, "print(features.shape)"]
    if subject.gives == "maps":
        return [*lines, *_MASK_LINES]
    return [*lines, *probability_lines(subject)]


def probability_lines(subject: ExportedModel) -> list[str]:
    """Python lines that print the most likely class of `scores`, a NumPy array [1, C].

    For several labels: those from their threshold on.
    """
    if subject.thresholds is not None:
        return ["probabilities = 1 / (1 + numpy.exp(-scores))[0]", *_LABEL_LINES]
    return [
        f"powers = numpy.exp({_scaled_scores(subject, 'scores - scores.max()')})[0]",
        "probabilities = powers / powers.sum()",
        *_print_lines(),
    ]


# opens `image`, which a program with preprocessing takes as an array
PILLOW_LINE = "from PIL import Image, ImageOps"
UPRIGHT_LINE = f'image = ImageOps.exif_transpose(Image.open("{IMAGE}")).convert("RGB")'


def result_lines(subject: ExportedModel) -> list[str]:
    """Python lines that print the result of a program with preprocessing."""
    if subject.gives == "features":
        return ["print(features.shape)"]
    return list(_LABEL_LINES) if subject.thresholds is not None else _print_lines()


def _scaled_scores(subject: ExportedModel, scores: str = "scores") -> str:
    """The expression of scores divided by the calibration temperature."""
    temperature = subject.card.temperature
    return scores if temperature == 1 else f"(({scores}) / {temperature!r})"


def _print_lines() -> list[str]:
    return [
        f'classes = json.loads(pathlib.Path("{ABOUT}").read_text(encoding="utf-8"))["classes"]',
        "print(classes[probabilities.argmax()], float(probabilities.max()))",
    ]


def shorter(preprocess: Preprocess) -> int:
    """Pixels of the shorter side after resizing, before the centre crop."""
    return max(preprocess.resize, preprocess.image_size)


def timm_crop_pct(preprocess: Preprocess) -> float:
    """The `crop_pct` of timm, chosen so that timm resizes the shorter side to the same pixels.

    timm truncates `image_size / crop_pct` to an integer; a rounded share can be off by one.
    """
    size, shorter_side = preprocess.image_size, shorter(preprocess)
    share = size / shorter_side
    while math.floor(size / share) < shorter_side:
        share = math.nextafter(share, 0)
    return share
