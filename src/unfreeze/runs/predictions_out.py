"""What `predict` writes: the table of predictions, and images sorted into folders by class."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

from unfreeze.errors import ResourceError, UsageError
from unfreeze.runtime.atomic import write_bytes
from unfreeze.runtime.output_files import check_writable
from unfreeze.text import as_text
from unfreeze.transfer.predictor import Prediction

COLUMNS = ("path", "label", "probability")
Copy = Callable[[], bytes]  # reads the bytes of an image file
LONGEST = 120  # bytes of a file's name that are kept


def prediction_columns(
    classes: Sequence[str], top: int = 1, *, probabilities: bool = False
) -> tuple[str, ...]:
    """Columns of the table: `label_2, probability_2 ...` of `--top`, `probability:CLASS`."""
    ranks = range(2, min(top, len(classes)) + 1)
    ranked = [name for k in ranks for name in (f"label_{k}", f"probability_{k}")]
    every = [f"probability:{name}" for name in classes] if probabilities else []
    return (*COLUMNS, *ranked, *every)


def prediction_row(prediction: Prediction) -> list[str]:
    """The values of `prediction_columns`."""
    row = [prediction.path, prediction.label, f"{prediction.probability:.6f}"]
    for entry in (prediction.top or ())[1:]:
        row += [str(entry["label"]), f"{entry['probability']:.6f}"]
    return row + [f"{value:.6f}" for value in (prediction.probabilities or {}).values()]


def check_sort_folder(path: str, inputs: Iterable[str]) -> Path:
    """The folder of `--sort-into`; UsageError if it is not new or empty, or inside an input."""
    folder = Path(path)
    check_writable("--sort-into", folder)
    for name in inputs:
        given = os.path.realpath(name)
        if Path(given).is_dir() and os.path.commonpath([given, os.path.realpath(folder)]) == given:
            raise UsageError(
                f"--sort-into {folder} lies in {name}, so the copies would be predicted the next "
                "time.",
                "Name a folder elsewhere.",
            )
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(
            f"--sort-into {folder} exists and is not an empty folder.", "Name a new folder."
        )
    return folder


def refuse_without_files(copies: Sequence[Copy | None]) -> None:
    """UsageError for images that are no files, such as arrays and built-in data."""
    if None in copies:
        raise UsageError("--sort-into copies files; arrays have none.", "Give paths of images.")


def sort_into(
    folder: Path, paths: Sequence[str], copies: Sequence[Copy | None], labels: Sequence[str]
) -> None:
    """Copy each image to `folder/LABEL/NAME`; equal names get a number."""
    refuse_without_files(copies)
    taken, folders = set[str](), dict[str, str]()
    for path, copy, label in zip(paths, copies, labels, strict=True):
        if copy is None:
            continue
        if label not in folders:
            folders[label] = _new_name(_file_name(label), "", taken)
        name = PurePosixPath(path)
        stem = f"{folders[label]}/{_file_name(name.stem)}"
        place = folder / _new_name(stem, _file_name(name.suffix), taken)
        try:
            write_bytes(place, copy())
        except ResourceError as error:
            raise ResourceError(
                error.sentence, "Free some space, and name a new folder."
            ) from error


def _new_name(stem: str, suffix: str, taken: set[str]) -> str:
    """The name, with a number if it is taken; some file systems ignore case."""
    name, number = f"{stem}{suffix}", 2
    while name.casefold() in taken:
        name, number = f"{stem}-{number}{suffix}", number + 1
    taken.add(name.casefold())
    return name


def _file_name(text: str) -> str:
    """The text as part of a file's name on any system."""
    name = re.sub(r'[\x00-\x1f<>:"/\\|?*]', "_", as_text(text)).strip()
    name = name.encode("utf-8", "replace")[:LONGEST].decode("utf-8", "ignore")
    return re.sub(r"^\.+$", "_", name)
