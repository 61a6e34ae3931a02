"""The `model/` folder: weights in `model.safetensors`, everything else in `model.json`."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from unfreeze import __version__
from unfreeze.checkpoints.integrity import tensors_sha256
from unfreeze.errors import WeightsError
from unfreeze.runtime.atomic import replacing, write_json
from unfreeze.runtime.utf8_path import utf8_path
from unfreeze.text import clean_all

FORMAT_VERSION = 1
TENSORS = "model.safetensors"
CARD = "model.json"
DIGEST = "unfreeze_sha256"  # in the header of our safetensors files
TERMS = ("licence", "teacher", "teacher_arch", "teacher_sha256", "teacher_licence")
_COPY = "Copy the whole model/ folder again."
TRAINED_IMAGES = "seen_images.npz"  # hashes of the training images, to detect data leakage


@dataclass(frozen=True)
class ModelCard:
    """The contents of `model.json`: what is needed to build and use the network.

    `kind`: "backbone", "classifier" or "predictor" (of another task); `arch`, `stem`: for
    `backbones.build`; `head`: the `--head` option, "none" for a backbone; `classes`: names in the
    order of the scores; `task`: its name; `outputs`: width of the last layer if it is not the
    number of classes; `task_state`: plain values of the task; `preprocess`: from
    `Preprocess.as_dict()`; `temperature`: divisor of the scores before the softmax (calibration);
    `provenance`: where the weights come from; `sha256`: digests of the tensors that belong to the
    card (two while a model is being replaced; none in a checkpoint).
    """

    kind: str
    arch: str
    stem: str = "imagenet"
    head: str = "none"
    classes: tuple[str, ...] = ()
    task: str = "classification"
    outputs: int = 0
    task_state: dict[str, Any] = field(default_factory=dict)
    preprocess: dict[str, Any] = field(default_factory=dict)
    temperature: float = 1.0
    provenance: dict[str, Any] = field(default_factory=dict)
    sha256: tuple[str, ...] = ()
    unfreeze: str = __version__
    format_version: int = FORMAT_VERSION

    @property
    def terms(self) -> dict[str, str]:
        """What models trained from this one keep of `provenance`: licences, and the teacher."""
        return terms_in(self.provenance)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"classes": list(self.classes), "sha256": list(self.sha256)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelCard":
        """The inverse of `as_dict`; WeightsError for another format version or missing fields."""
        version = values.get("format_version")
        if version != FORMAT_VERSION:
            raise WeightsError(
                f"The model file has format version {version!r}; this unfreeze knows "
                f"{FORMAT_VERSION}.",
                "Update unfreeze, or export the model again with the version that wrote it.",
            )
        known = {entry.name for entry in fields(cls)}
        try:
            card = cls(**{name: value for name, value in values.items() if name in known})
        except TypeError as error:
            raise WeightsError(f"{CARD} lacks a field: {error}.") from error
        return replace(card, classes=tuple(card.classes), sha256=tuple(card.sha256))


def licences_in(terms: Mapping[str, str]) -> dict[str, str]:
    """The licence of weights, and that of their teacher, where they are known."""
    return {name: text for name, text in terms.items() if name.endswith("licence")}


def licence_text(terms: Mapping[str, str]) -> str:
    """These licences as one text; "" if none is known."""
    return " ".join(licences_in(terms).values())


def terms_in(values: Mapping[str, Any]) -> dict[str, str]:
    """The entries on licences and the teacher of a provenance or of a file's metadata."""
    return {name: str(values[name]) for name in TERMS if values.get(name)}


def save_model(folder: str | Path, tensors: Mapping[str, torch.Tensor], card: ModelCard) -> None:
    """Write both files into `folder`, each atomically, the card last.

    WeightsError for names with the prefix `module.` of a wrapper, which other tools do not expect.
    """
    wrapped = next((name for name in tensors if name.startswith("module.")), None)
    if wrapped is not None:
        raise WeightsError(
            f"'{wrapped}' has the prefix of a wrapper.",
            "Save the state_dict() of the unwrapped model.",
        )
    target, contiguous = Path(folder), _unshared(tensors)
    new_digest = tensors_sha256(contiguous)
    old_digests = _digests(target) - {new_digest}
    if old_digests:  # so that a crash between the two writes leaves a consistent pair
        write_card(target, replace(card, sha256=(new_digest, *sorted(old_digests))))
    with replacing(target / TENSORS) as temporary:
        _save(contiguous, temporary, new_digest, card.terms)
    write_card(target, replace(card, sha256=(new_digest,)))


def write_card(folder: str | Path, card: ModelCard) -> None:
    """Write `model.json`, with a checksum of its contents."""
    values = clean_all(json.loads(json.dumps(card.as_dict())))  # as they will be read
    write_json(Path(folder) / CARD, {**values, "checksum": _checksum(values)})


def save_tensors(
    path: str | Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file atomically; its header has `metadata` and a digest of tensors."""
    contiguous = _unshared(tensors)
    with replacing(path) as temporary:
        _save(contiguous, temporary, tensors_sha256(contiguous), metadata)


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(tensors, metadata) of a file of `save_tensors`; WeightsError if it is damaged."""
    try:
        with utf8_path(path) as readable, safe_open(readable, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dictionary
    except SafetensorError as error:
        raise WeightsError(f"{path} is damaged: {error}.", _COPY) from error
    if tensors_sha256(tensors) != metadata.get(DIGEST):
        raise WeightsError(f"{path} is damaged: its checksum does not match.", _COPY)
    return tensors, metadata


def load_model(path: str | Path) -> tuple[dict[str, torch.Tensor], ModelCard]:
    """(tensors on the CPU, card) of a run, its `model/` folder, or a file in that.

    WeightsError if there is no model, or its tensors or card are damaged.
    """
    folder = model_folder(path)
    if folder is None:
        raise _no_model_error(path)
    card, path = _read_card(folder / CARD), folder / TENSORS
    try:
        with utf8_path(path) as readable:
            tensors = load_file(readable)
    except FileNotFoundError as error:
        raise WeightsError(f"{folder} has a {CARD} but no {TENSORS}.", _COPY) from error
    except SafetensorError as error:
        raise WeightsError(f"{path} is damaged: {error}.", _COPY) from error
    if tensors_sha256(tensors) not in card.sha256:
        raise WeightsError(
            f"{path} is damaged, or not the file that {CARD} beside it was written with: the "
            "checksum of its tensors does not match.",
            _COPY,
        )
    return tensors, card


def model_folder(path: str | Path) -> Path | None:
    """The folder with model.json of a run, model folder or file in it; None if there is none."""
    folder = Path(path)
    if folder.name in (CARD, TENSORS):
        folder = folder.parent
    return next((inner for inner in (folder, folder / "model") if (inner / CARD).is_file()), None)


def read_card(path: str | Path) -> ModelCard:
    """The model card of a run or its `model/` folder, without reading the tensors."""
    folder = model_folder(path)
    if folder is None:
        raise _no_model_error(path)
    return _read_card(folder / CARD)


def _no_model_error(path: str | Path) -> WeightsError:
    return WeightsError(
        f"There is no model in {path}: no {CARD} there or in its model/ folder.",
        "Give the folder of a finished run, or its model/ folder.",
    )


def _save(
    tensors: dict[str, torch.Tensor],
    path: Path,
    sha256: str,
    metadata: Mapping[str, str] | None = None,
) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt", DIGEST: sha256, **(metadata or {})})
    except SafetensorError as error:
        # safetensors wraps OS errors, such as a full disk
        match = re.search(r"os error (\d+)", str(error))
        if match is None:
            raise
        raise OSError(int(match[1]), os.strerror(int(match[1])), str(path)) from error


def _read_card(path: Path) -> ModelCard:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} is not readable JSON: {error}.") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path} is not a model card.")
    checksum = values.pop("checksum", "")
    card = ModelCard.from_dict(values)
    # null: the user edited the file and disabled the check
    if checksum is not None and checksum != _checksum(values):
        raise WeightsError(
            f"{path} was damaged or edited after it was written: its checksum does not match.",
            'Restore an intact copy; if you edited it yourself, set "checksum": null in it.',
        )
    return card


def _checksum(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _digests(folder: Path) -> set[str]:
    """Digests in the card of a folder; none without a valid card."""
    try:
        return set(_read_card(folder / CARD).sha256)
    except (OSError, WeightsError):
        return set()


def _unshared(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous copies on the CPU that share no memory (tied weights are duplicated)."""
    storages: set[int] = set()
    copies: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        storage = value.untyped_storage()
        if storage.data_ptr() in storages or storage.nbytes() != value.nbytes:
            value = value.clone()
        storages.add(value.untyped_storage().data_ptr())
        copies[name] = value
    return copies
