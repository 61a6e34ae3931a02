"""The model that travels: `model.safetensors` with plain names, `model.json` with all else."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from unfreeze import __version__
from unfreeze.checkpoints.integrity import digest
from unfreeze.errors import WeightsError
from unfreeze.runtime.atomic import replacing, write_json
from unfreeze.text import clean_all

FORMAT_VERSION = 1
TENSORS = "model.safetensors"
CARD = "model.json"
DIGEST = "unfreeze_sha256"  # in the header of our safetensors files
_COPY = "Copy the whole model/ folder again."
SEEN = "seen_images.npz"  # what tells the images of the training from others


@dataclass(frozen=True)
class ModelCard:
    """What the tensors are: enough to build the network and to use it.

    `kind`: "backbone" or "classifier"; `arch`, `stem`: for `backbones.build`; `head`: how the head
    was made ("replace"), "none" for a backbone; `classes`: names in the order of the scores;
    `preprocess`: as `Preprocess.as_dict()` writes it; `temperature`: what scores are divided by
    before they become probabilities; `provenance`: where the weights come from; `sha256`: digests
    of the tensors that the card is for (two while a model is being replaced; none in a checkpoint).
    """

    kind: str
    arch: str
    stem: str = "imagenet"
    head: str = "none"
    classes: tuple[str, ...] = ()
    preprocess: dict[str, Any] = field(default_factory=dict)
    temperature: float = 1.0
    provenance: dict[str, Any] = field(default_factory=dict)
    sha256: tuple[str, ...] = ()
    unfreeze: str = __version__
    format_version: int = FORMAT_VERSION

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"classes": list(self.classes), "sha256": list(self.sha256)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelCard":
        """The reverse of `as_dict`; WeightsError where the format or a field is not ours."""
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


def save_model(folder: str | Path, tensors: Mapping[str, torch.Tensor], card: ModelCard) -> None:
    """Write both files into `folder`, each whole or not at all; the card last.

    WeightsError for names with a wrapper's `module.` in front: other tools would not find them.
    """
    wrapped = next((name for name in tensors if name.startswith("module.")), None)
    if wrapped is not None:
        raise WeightsError(
            f"'{wrapped}' carries the prefix of a wrapper.", "Save the wrapped network's own state."
        )
    place, whole = Path(folder), _own_memory(tensors)
    new = digest(whole)
    old = _digests(place) - {new}
    if old:  # a crash between the two writes leaves a pair that fits
        write_card(place, replace(card, sha256=(new, *sorted(old))))
    with replacing(place / TENSORS) as temporary:
        _save(whole, temporary, new)
    write_card(place, replace(card, sha256=(new,)))


def write_card(folder: str | Path, card: ModelCard) -> None:
    """Write `model.json` with a checksum over all that stands in it."""
    values = clean_all(json.loads(json.dumps(card.as_dict())))  # as a reader will see them
    write_json(Path(folder) / CARD, {**values, "checksum": _checksum(values)})


def save_tensors(path: str | Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """A safetensors file with a digest of its tensors in the header; whole or not at all."""
    whole = _own_memory(tensors)
    with replacing(path) as temporary:
        _save(whole, temporary, digest(whole))


def load_model(path: str | Path) -> tuple[dict[str, torch.Tensor], ModelCard]:
    """Tensors (on the CPU) and card of a run's folder, its `model/` folder, or a file in that."""
    folder = model_folder(path)
    if folder is None:
        raise _no_model(path)
    card, path = _read_card(folder / CARD), folder / TENSORS
    try:
        tensors = load_file(path)
    except FileNotFoundError as error:
        raise WeightsError(f"{folder} has a {CARD} but no {TENSORS}.", _COPY) from error
    except SafetensorError as error:
        raise WeightsError(f"{path} is damaged: {error}.", _COPY) from error
    if digest(tensors) not in card.sha256:
        raise WeightsError(
            f"{path} is damaged, or not the file that {CARD} beside it was written with: its "
            "tensors have another checksum.",
            _COPY,
        )
    return tensors, card


def model_folder(path: str | Path) -> Path | None:
    """The folder with model.json that a path means; None where there is none."""
    place = Path(path)
    if place.name in (CARD, TENSORS):
        place = place.parent
    return next((inner for inner in (place, place / "model") if (inner / CARD).is_file()), None)


def card_of(path: str | Path) -> ModelCard:
    """The card of a run's folder or its `model/` folder, without reading the tensors."""
    folder = model_folder(path)
    if folder is None:
        raise _no_model(path)
    return _read_card(folder / CARD)


def _no_model(path: str | Path) -> WeightsError:
    return WeightsError(
        f"There is no model in {path}: no {CARD} there or in its model/ folder.",
        "Give the folder of a finished run, or its model/ folder.",
    )


def _save(tensors: dict[str, torch.Tensor], path: Path, sha256: str) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt", DIGEST: sha256})
    except SafetensorError as error:
        # the library wraps what the system said, a full disk too
        said = re.search(r"os error (\d+)", str(error))
        if said is None:
            raise
        raise OSError(int(said[1]), os.strerror(int(said[1])), str(path)) from error


def _read_card(path: Path) -> ModelCard:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} is not readable JSON: {error}.") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path} is not a model card.")
    written = values.pop("checksum", "")
    card = ModelCard.from_dict(values)
    # null: somebody edited the file by hand and says so
    if written is not None and written != _checksum(values):
        raise WeightsError(
            f"{path} was damaged or edited after it was written: its checksum does not match.",
            'Restore an intact copy; if you edited it yourself, set "checksum": null in it.',
        )
    return card


def _checksum(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _digests(folder: Path) -> set[str]:
    """Of the tensors that the card in a folder is for; none where there is no sound card."""
    try:
        return set(_read_card(folder / CARD).sha256)
    except (OSError, WeightsError):
        return set()


def _own_memory(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same values on the CPU, contiguous, no two in one memory (tied weights are doubled)."""
    seen: set[int] = set()
    whole: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        memory = value.untyped_storage()
        if memory.data_ptr() in seen or memory.nbytes() != value.nbytes:
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        whole[name] = value
    return whole
