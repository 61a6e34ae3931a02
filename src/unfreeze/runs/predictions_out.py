"""What `predict` writes: the table of predictions, and images sorted into folders by class."""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from unfreeze.errors import ResourceError, UsageError
from unfreeze.runtime.atomic import write_bytes, write_text
from unfreeze.runtime.output_files import Ours, check_writable, is_csv_with
from unfreeze.runtime.text_layout import write_csv
from unfreeze.text import as_text, clean_all
from unfreeze.transfer.predictor import Prediction

COLUMNS = ("path", "label", "probability")
Copy = Callable[[], bytes]  # reads the bytes of an image file
NO_LABEL = "unknown"  # folder of images that the model does not answer
LONGEST = 120  # bytes of a file's name that are kept


def prediction_columns(
    classes: Sequence[str], top: int = 1, *, probabilities: bool = False, unknown: bool = False
) -> tuple[str, ...]:
    """Columns of the table: `label_2, probability_2 ...`, `probability:CLASS`, `set, ood`."""
    ranks = range(2, min(top, len(classes)) + 1)
    ranked = [name for k in ranks for name in (f"label_{k}", f"probability_{k}")]
    every = [f"probability:{name}" for name in classes] if probabilities else []
    return (*COLUMNS, *ranked, *every, *(("set", "ood") if unknown else ()))


def prediction_row(prediction: Prediction, digits: int = 6) -> list[str]:
    """The values of `prediction_columns`; the labels of a set are separated by `|`."""
    row = [prediction.path, prediction.label or "", f"{prediction.probability:.{digits}f}"]
    for entry in (prediction.top or ())[1:]:
        row += [str(entry["label"]), f"{entry['probability']:.{digits}f}"]
    row += [f"{value:.{digits}f}" for value in (prediction.probabilities or {}).values()]
    if prediction.set is not None and prediction.ood is not None:
        row += ["|".join(prediction.set), f"{prediction.ood:.{digits}f}"]
    return row


def format_of(name: str | None, out: str | None) -> str:
    """The format of the file `out`: csv, jsonl or label-studio; UsageError without a file."""
    if name is not None and out is None:
        raise UsageError("--format is that of a file.", "Add --out FILE.")
    jsonl = out is not None and Path(out).suffix.lower() == ".jsonl"
    return name or ("jsonl" if jsonl else "csv")


def is_our_output(form: str, columns: Sequence[str]) -> Ours:
    """A check whether a file is one that `write_predictions_as` wrote in this format."""
    if form == "csv":
        return is_csv_with(columns)
    start = b'{"path": ' if form == "jsonl" else b'[{"data": {'
    return lambda path: path.read_bytes().startswith(start)


def write_predictions_as(
    form: str, path: Path, columns: Sequence[str], predictions: Sequence[Prediction], model: str
) -> None:
    """Write the file atomically. `model`: its name in pre-annotations."""
    if form == "csv":
        write_csv(path, columns, map(prediction_row, predictions))
    elif form == "jsonl":
        write_json_lines(path, [dict(prediction) for prediction in predictions])
    else:
        tasks = [_label_studio_task(prediction, model) for prediction in predictions]
        write_text(path, json.dumps(clean_all(tasks), ensure_ascii=False) + "\n")


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object in each line."""
    lines = (json.dumps(clean_all(row), ensure_ascii=False) + "\n" for row in rows)
    write_text(path, "".join(lines))


def _label_studio_task(prediction: Prediction, model: str) -> dict[str, Any]:
    """A task of Label Studio with the prediction as pre-annotation; none where not answered.

    For a labelling interface with `<Image name="image">` and `<Choices name="label"
    toName="image">`; the image is served from LOCAL_FILES_DOCUMENT_ROOT, the current folder.
    """
    result = {
        "type": "choices",
        "from_name": "label",
        "to_name": "image",
        "value": {"choices": [prediction.label]},
    }
    made = {"model_version": model, "score": prediction.probability, "result": [result]}
    image = f"/data/local-files/?d={quote(prediction.path.removeprefix('/'))}"
    return {"data": {"image": image}, "predictions": [made] if prediction.label else []}


def check_new_folder(name: str, path: str, inputs: Iterable[str]) -> Path:
    """The folder of the flag `name`; UsageError if it is not new or empty, or inside an input."""
    folder = Path(path)
    check_writable(name, folder)
    for given_name in inputs:
        given = os.path.realpath(given_name)
        if Path(given).is_dir() and os.path.commonpath([given, os.path.realpath(folder)]) == given:
            raise UsageError(
                f"{name} {folder} lies in {given_name}, so its images would be predicted the next "
                "time.",
                "Name a folder elsewhere.",
            )
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(
            f"{name} {folder} exists and is not an empty folder.", "Name a new folder."
        )
    return folder


def refuse_without_files(copies: Sequence[Copy | None]) -> None:
    """UsageError for images that are no files, such as arrays and built-in data."""
    if None in copies:
        raise UsageError("--sort-into copies files; arrays have none.", "Give paths of images.")


def sort_into(
    folder: Path, paths: Sequence[str], copies: Sequence[Copy | None], labels: Sequence[str | None]
) -> None:
    """Copy each image to `folder/LABEL/NAME`, NO_LABEL without one; equal names get a number."""
    refuse_without_files(copies)
    files = (copy() for copy in copies if copy is not None)
    write_sorted(folder, paths, labels, files)


def write_sorted(
    folder: Path,
    paths: Sequence[str],
    labels: Sequence[str | None],
    files: Iterable[bytes],
    suffix: str | None = None,
) -> None:
    """Write each file to `folder/LABEL/NAME`, named as in `sort_into`; `suffix`: of all names."""
    named = [NO_LABEL if label is None else label for label in labels]
    taken, folders = set[str](), dict[str, str]()
    for path, data, label in zip(paths, files, named, strict=True):
        if label not in folders:
            folders[label] = _new_name(_file_name(label), "", taken)
        name = PurePosixPath(path)
        stem = f"{folders[label]}/{_file_name(name.stem)}"
        ending = _file_name(name.suffix) if suffix is None else suffix
        place = folder / _new_name(stem, ending, taken)
        try:
            write_bytes(place, data)
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
