"""What goes along with the weights: `export.json` for programs, `README.md` for people."""

import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Any

from unfreeze import __version__
from unfreeze.exports.agreement import Agreement
from unfreeze.exports.folder import ABOUT, README
from unfreeze.exports.preparing import PREPARE
from unfreeze.exports.subject import Subject
from unfreeze.exports.target import Target
from unfreeze.runtime.atomic import write_json, write_text


def write_prepare(folder: Path) -> None:
    """What reads images as in training, for whoever has no unfreeze: our own file, copied."""
    source = files(__package__).joinpath("standalone.py").read_text(encoding="utf-8")
    write_text(folder / PREPARE, source)


def write_about(
    folder: Path, subject: Subject, to: str, found: Agreement, *, compared_on: str
) -> dict[str, Any]:
    """Write and return export.json: what this is, where it is from, how it was proved."""
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
        "preprocess": subject.preprocess.as_dict(),
        "provenance": {"run": subject.run, **card.provenance},
        "matched": found.matched,
        "max_difference": found.max_difference,
        "tolerance": found.tolerance,
        "compared_on": compared_on,
        "files": {path.name: _digest(path) for path in sorted(folder.iterdir())},
    }
    write_json(folder / ABOUT, about)
    return about


def write_readme(
    folder: Path, subject: Subject, target: Target, found: Agreement, *, compared_on: str
) -> None:
    """README.md: the lines that use the model, and what is known of it."""
    card = subject.card
    code = ["import json, pathlib"] if subject.gives == "scores" else []
    code += target.snippet(subject)
    licence = card.provenance.get("licence")
    lines = [
        f"# {card.arch}, from {subject.run}",
        "",
        _what(subject),
        f"Exported by unfreeze {__version__}. Read back from these files and compared on "
        f"{compared_on}: the outputs differ by {found.max_difference:.2g} at most "
        f"(allowed: {found.tolerance:.2g}).",
        *(["", f"**{licence}**"] if licence else []),
        "",
        "```python",
        *code,
        "```",
        "",
        f"`{PREPARE}` needs numpy and Pillow alone and reads an image as `unfreeze predict` does: "
        "turned upright, transparent parts white, grey of 16 bits by the range of the training. "
        "What it cannot read in the same way (colour of 16 bits, chosen channels) it refuses.",
        "",
        f"`{ABOUT}` holds classes, preprocessing, where the weights come from, and a SHA-256 of "
        "each file.",
    ]
    write_text(folder / README, "\n".join(lines) + "\n")


def _what(subject: Subject) -> str:
    if subject.gives == "features":
        return "A backbone without its head: it gives features."
    return (
        f"A classifier of {len(subject.card.classes)} classes: {', '.join(subject.card.classes)}."
    )


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
