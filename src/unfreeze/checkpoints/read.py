"""Checkpoints of any origin, read without running a line of code from them."""

import argparse
import pickletools
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from unfreeze.checkpoints.keys import is_averaged
from unfreeze.checkpoints.modelfile import load_model, model_folder
from unfreeze.errors import WeightsError

DEEPEST = 5
# The number with which torch.save began its files before they were zip archives.
_LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
_AGAIN = "Download or copy it again."


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    `format`: "safetensors", "torch zip", "torch legacy" or "unfreeze model"; `tensors`: the
    largest set of named tensors inside, on the CPU; `container`: the keys that led there
    ("" at the top, "state_dict", ...); `meta`: plain values beside them (epoch, arch, ...);
    `unsafe`: names of what could run code (always empty: such files are refused).
    """

    format: str
    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any] = field(default_factory=dict)
    unsafe: list[str] = field(default_factory=list)
    container: str = ""


def read_checkpoint(path: str | Path) -> Contents:
    """Named tensors of a checkpoint, a run's folder or a `model/` folder.

    WeightsError for what is no checkpoint (an LFS pointer, a web page, an empty or truncated
    file) and for pickles that hold more than tensors and plain values.
    """
    place = Path(path)
    if place.is_dir():
        if model_folder(place) is None:
            raise WeightsError(
                f"{place} is a folder without a model.", "Give a run, a model/ folder or a file."
            )
        tensors, card = load_model(place)
        return Contents("unfreeze model", tensors, card.as_dict())
    try:
        with place.open("rb") as file:
            start = file.read(512)
    except FileNotFoundError as error:
        raise WeightsError(f"There is no file {place}.", "Check the path.") from error
    return _reader(place, start)(place)


def unsafe_globals(path: str | Path) -> list[str]:
    """Names of functions and classes a pickle refers to beyond tensors and plain values, sorted.

    Found by looking at the pickle's instructions; nothing is run.
    """
    place = Path(path)
    if zipfile.is_zipfile(place):
        with _allowed():
            return sorted(get_unsafe_globals_in_checkpoint(str(place)))
    return sorted(set(_named_in(place)))


def _reader(place: Path, start: bytes) -> Callable[[Path], Contents]:
    """Who reads a file that begins like this; WeightsError that names what it is, if nobody."""
    if not start:
        raise WeightsError(f"{place} is empty.", _AGAIN)
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(
            f"{place} is a Git LFS pointer, not the weights.", "Run `git lfs pull` where it is."
        )
    if start.lstrip()[:1] == b"<":
        raise WeightsError(
            f"{place} is a web page, not weights.", "Download the file behind it, not the page."
        )
    if start.startswith(b"PK\x03\x04"):
        return _read_zip
    if start.startswith(_LEGACY):
        return _read_legacy
    if start[8:9] == b"{" or place.suffix == ".safetensors":
        return _read_safetensors
    if start[257:262] == b"ustar":
        raise WeightsError(
            f"{place} is a tar archive: either an archive with a checkpoint in it or a file of "
            "PyTorch 0.1, which cannot be read safely.",
            "Unpack it, or save the state_dict again with a newer PyTorch.",
        )
    if start.startswith(b"\x80"):
        raise _refused(place, "a plain pickle")
    raise WeightsError(f"{place} is not a checkpoint.", "Give a .safetensors, .pth or .pt file.")


def _read_safetensors(place: Path) -> Contents:
    try:
        with safe_open(place, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Contents("safetensors", tensors, dict(file.metadata() or {}))
    except SafetensorError as error:
        raise WeightsError(f"{place} is truncated or damaged: {error}.", _AGAIN) from error


def _read_zip(place: Path) -> Contents:
    try:
        with zipfile.ZipFile(place) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise WeightsError(f"{place} is truncated: the archive has no end.", _AGAIN) from error
    if not any(name.endswith("data.pkl") for name in names):
        raise WeightsError(
            f"{place} is a zip archive, but no checkpoint.", "Give the file inside it."
        )
    if any(name.endswith("constants.pkl") for name in names):
        raise WeightsError(
            f"{place} is a TorchScript program, not weights.",
            "Save the state_dict of the network it was made from.",
        )
    return _read_torch(place, "torch zip")


def _read_legacy(place: Path) -> Contents:
    return _read_torch(place, "torch legacy")


def _read_torch(place: Path, kind: str) -> Contents:
    try:
        with _allowed():
            loaded = torch.load(place, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the bytes of a damaged file lead to
        if isinstance(error, UnpicklingError) and unsafe_globals(place):
            raise _refused(place, "a pickle") from error
        reason = str(error).partition("\n")[0]
        raise WeightsError(f"{place} is truncated or damaged ({reason}).", _AGAIN) from error
    container, tensors = _largest(loaded)
    if not tensors:
        raise WeightsError(f"{place} holds no named tensors.", "Give a file with a state_dict.")
    return Contents(kind, tensors, _plain(loaded), container=container)


def _refused(place: Path, what: str) -> WeightsError:
    names = unsafe_globals(place)
    listed = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    return WeightsError(
        f"{place} is {what} that could run code on loading ({listed or 'not from torch.save'}).",
        "Where you trust it: load it there and save its state_dict() alone.",
    )


def _largest(loaded: Any) -> tuple[str, dict[str, torch.Tensor]]:
    """Path and content of the mapping with the most named tensors; of equals the averaged one."""
    found = list(_mappings(loaded, ""))
    if not found:
        return "", {}
    return max(found, key=lambda one: (len(one[1]), is_averaged(one[0])))


def _mappings(value: Any, path: str) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    if path.count(".") > DEEPEST:
        return
    if isinstance(value, Mapping):
        items = [(key, inner) for key, inner in value.items() if isinstance(key, str)]
        yield path, {key: inner for key, inner in items if isinstance(inner, torch.Tensor)}
    elif isinstance(value, list | tuple):
        items = [(str(place), inner) for place, inner in enumerate(value)]
    else:
        return
    for key, inner in items:
        # Momentum is as large as the weights and has their names in some tools.
        if not key.startswith("optim") and not isinstance(inner, torch.Tensor):
            yield from _mappings(inner, f"{path}.{key}" if path else key)


def _plain(loaded: Any) -> dict[str, Any]:
    """Numbers and texts at the top, and those of a Namespace there (the arguments of a run)."""
    plain: dict[str, Any] = {}
    for name, value in loaded.items() if isinstance(loaded, Mapping) else ():
        if isinstance(value, argparse.Namespace):
            plain[str(name)] = _plain(vars(value))
        elif isinstance(value, np.generic):
            plain[str(name)] = value.item()
        elif value is None or isinstance(value, bool | int | float | str):
            plain[str(name)] = value
    return plain


def _allowed() -> Any:
    """Beyond what torch allows: argparse.Namespace and numpy scalars, which run nothing."""
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    kinds = {type(np.dtype(code)) for code in "?bhilqBHILQefd"}
    old_name = (scalar, "numpy.core.multiarray.scalar")
    return safe_globals([argparse.Namespace, np.dtype, scalar, old_name, *kinds])


def _named_in(place: Path) -> Iterator[str]:
    """Globals of the pickles a file begins with: a plain pickle is one, a legacy file has four."""
    with place.open("rb") as file:
        for _ in range(4):
            texts: list[str] = []
            try:
                for code, value, _ in pickletools.genops(file):
                    if code.name == "GLOBAL":
                        yield from _unless_harmless(str(value).replace(" ", "."))
                    elif code.name == "STACK_GLOBAL":
                        yield from _unless_harmless(".".join(texts[-2:]))
                    elif isinstance(value, str):
                        texts.append(value)
            except ValueError:  # the pickles have ended
                return


def _unless_harmless(name: str) -> Iterator[str]:
    storage = name.startswith("torch.") and name.endswith("Storage")
    if not (storage or name == "collections.OrderedDict" or name.startswith("torch._utils._re")):
        yield name
