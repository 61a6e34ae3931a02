"""Files beside the exported weights: `export.json`, `README.md`, `prepare.py`."""

import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Any

import PIL

from unfreeze import __version__
from unfreeze.checkpoints.model_file import licence_text
from unfreeze.data.texts.preprocess import TOKENIZER
from unfreeze.exports.exported_model import ExportedModel
from unfreeze.exports.format import ExportFormat
from unfreeze.exports.model_card import CardEvaluation, facts_of_model, front_matter
from unfreeze.exports.verify import ExportVerification
from unfreeze.exports.write import ABOUT, PREPARE, README
from unfreeze.runtime.atomic import write_json, write_text


def write_prepare(folder: Path) -> None:
    """Write prepare.py, the preprocessing of images without unfreeze: a copy of standalone.py."""
    source = files(__package__).joinpath("standalone.py").read_text(encoding="utf-8")
    write_text(folder / PREPARE, source)


def write_about(
    folder: Path,
    subject: ExportedModel,
    to: str,
    agreement: ExportVerification,
    compared_on: str,
    int8: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write and return export.json: the model, its provenance and how it was verified.

    `to`: the format; `compared_on`: the images of the verification, in words; `int8`: what was
    measured of the quantised file.
    """
    card = subject.card
    about = {
        "to": to,
        "unfreeze": __version__,
        "arch": card.arch,
        "stem": card.stem,
        "kind": card.kind,
        "gives": subject.gives,
        "classes": list(card.classes),
        "temperature": card.temperature,
        "with_preprocessing": subject.with_preprocessing,
        **({"thresholds": subject.thresholds} if subject.thresholds is not None else {}),
        "preprocess": subject.preprocess.as_dict(),
        "provenance": {"run": subject.run, **card.provenance},
        "matched": agreement.matched,
        "max_difference": agreement.max_difference,
        "tolerance": agreement.tolerance,
        "compared_on": compared_on,
        "int8": int8,
        "files": {path.name: _digest(path) for path in sorted(folder.iterdir())},
    }
    write_json(folder / ABOUT, about)
    return about


def write_readme(
    folder: Path,
    subject: ExportedModel,
    target: ExportFormat,
    agreement: ExportVerification,
    compared_on: str,
    int8: dict[str, Any] | None = None,
    evaluation: CardEvaluation | None = None,
    library: str = "unfreeze",
) -> None:
    """Write README.md: how to load the model, what it is, and the front matter of a model card.

    `evaluation`: of the run; `library`: what loads the files, for the Hub.
    """
    card = subject.card
    code = [] if subject.gives == "features" else ["import json, pathlib"]
    code += target.snippet(subject)
    licence = licence_text(card.terms)
    lines = [
        front_matter(card, subject.run, evaluation, library),
        "",
        f"# {card.arch}, from {subject.run}",
        "",
        _what(subject),
        f"Exported by unfreeze {__version__}. Verified by loading these files and comparing "
        f"{'outputs' if subject.gives != 'probabilities' else 'probabilities'} on {compared_on}: "
        f"they differ by {agreement.max_difference:.2g} at most "
        f"(tolerance {agreement.tolerance:.2g}).",
        *(["", f"**{licence}**"] if licence else []),
        "",
        "```python",
        *code,
        "```",
        "",
        _input_of(subject),
        "",
        *(_int8_lines(int8) if int8 else ()),
        *facts_of_model(card, evaluation),
        "## Files",
        "",
        f"`{ABOUT}` contains classes, preprocessing, the origin of the weights, and a SHA-256 of "
        "each file.",
    ]
    write_text(folder / README, "\n".join(lines) + "\n")


def _input_of(subject: ExportedModel) -> str:
    if subject.texts:
        return (
            f"`{TOKENIZER}` is read by the package tokenizers and cuts texts after "
            f"{subject.preprocess.image_size} tokens, as in training."
        )
    if subject.with_preprocessing:
        return _input_with_preprocessing(subject)
    return (
        f"`{PREPARE}` needs only numpy and Pillow and preprocesses an image as `unfreeze predict` "
        "does: EXIF rotation applied, transparent parts white, 16-bit greyscale scaled by the "
        "range used in training. It refuses 16-bit colour and selected channels."
    )


def _input_with_preprocessing(subject: ExportedModel) -> str:
    result = "features" if subject.missing else "the probabilities of `unfreeze predict`"
    return (
        "The file takes one image as uint8 [height, width, 3] of any size, resizes it exactly as "
        f"Pillow {PIL.__version__} does, normalises it and gives {result}. Yours is what comes "
        "before: decoding, EXIF rotation and conversion to RGB, the line with `exif_transpose` "
        "above. That line makes transparent parts opaque and clips greyscale of more than 8 bits; "
        f"`from prepare import open_image` and `open_image(path, {subject.preprocess.intensity!r})"
        f"` read such files as in training ({PREPARE} needs only numpy and Pillow, and refuses "
        "16-bit colour and selected channels). Run the file in float32: what computes in bfloat16 "
        "or TF32 by default (OpenVINO on some CPUs: set INFERENCE_PRECISION_HINT to f32) resizes "
        "otherwise."
    )


def _int8_lines(q: dict[str, Any]) -> list[str]:
    """A section about the quantised file."""
    rows = [
        "| {} | {:.1%} ({:.1%} to {:.1%}) | {:.1f} ms | {:.2f} MB |".format(
            name,
            q[f"{of}accuracy"],
            *q[f"{of}interval"],
            q[f"{of}milliseconds"],
            q[f"{of}megabytes"],
        )
        for name, of in (("float", "float_"), (f"int8, `{q['file']}`", ""))
    ]
    return [
        f"`{q['file']}` takes and gives the same in int8. On {q['n']:,} images (split "
        f"{q['split']}) both give the same class for {q['agreement']:.1%}; the ranges of its "
        f"activations are from {q['calibrated_on']:,} other images:",
        "",
        "| file | accuracy (95 %) | one image, on the exporting machine | size |",
        "|---|---|---|---|",
        *rows,
        "",
    ]


def _what(subject: ExportedModel) -> str:
    if subject.gives == "features":
        return "A backbone without a head: it outputs features."
    if subject.gives == "maps":
        tiles = (
            " It was trained on tiles of that size: cut larger images into overlapping tiles, as "
            "`unfreeze predict` does; prepare() shrinks the whole image."
        )
        height, width = subject.preprocess.shape
        return (
            f"A segmentation network with {len(subject.card.classes)} classes: "
            f"{', '.join(subject.card.classes)}. It maps images of {height}x{width} pixels to the "
            f"scores of each pixel.{tiles * (subject.preprocess.fit == 'tile')}"
        )
    if subject.thresholds is not None:
        return (
            f"A network with {len(subject.card.classes)} classes, of which an image may have "
            f"several: {', '.join(subject.card.classes)}. A label is predicted from the threshold "
            f"of its class on, which is in `{ABOUT}`."
        )
    return (
        f"A classifier{' of texts' * subject.texts} with {len(subject.card.classes)} classes: "
        f"{', '.join(subject.card.classes)}."
    )


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
