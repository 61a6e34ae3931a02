"""Reads checkpoints of any origin without executing code from them."""

import argparse
import pickletools
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from unfreeze.checkpoints.integrity import archive_fault, file_sha256, hash_in_name, tensors_sha256
from unfreeze.checkpoints.key_matching import is_averaged
from unfreeze.checkpoints.model_file import DIGEST, ModelCard, load_model, model_folder
from unfreeze.checkpoints.state import is_unfreeze_checkpoint
from unfreeze.errors import WeightsError
from unfreeze.runtime.utf8_path import utf8_path


class IgnoredObject:
    """Replaces a framework's object: accepts any arguments and stores nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "IgnoredObject":
        """Ignores all arguments."""
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        """Ignores the state."""


def _mapping(*_: Any) -> OrderedDict[Any, Any]:
    return OrderedDict()


def _path(*parts: Any) -> str:
    return "/".join(map(str, parts))


# (pattern of the full name, stand-in); the first match is used
_STANDINS: tuple[tuple[str, Callable[..., Any]], ...] = (
    (r"pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path", _path),
    (r"(pytorch_lightning|lightning(\.pytorch)?)\.utilities\.parsing\.AttributeDict", OrderedDict),
    (r"lightning(\.|_)fabric\.utilities\.data\.AttributeDict", OrderedDict),
    (r"collections\.defaultdict", _mapping),
    (r"(omegaconf|mmengine)\.[\w.]+", IgnoredObject),
    (r"(pytorch_lightning|lightning(\.pytorch)?)\.callbacks\.[\w.]+", IgnoredObject),
    (r"numpy(\.core|\._core)\.multiarray\._reconstruct|numpy\.ndarray|typing\.Any", IgnoredObject),
    # value types in an OmegaConf tree; calling a stand-in does nothing
    (r"(builtins|__builtin__)?\.?(dict|list|int|float|str|bool|object)", IgnoredObject),
)


def stand_ins(names: Iterable[str]) -> list[tuple[Callable[..., Any], str]]:
    """(stand-in, name) for each name that has one, as `torch.serialization.safe_globals` expects.

    `names`: from `unsafe_globals`, those that torch would refuse. Names without a stand-in remain
    refused.
    """
    pairs = [(_stand_in(name), name) for name in names]
    return [(stand_in, name) for stand_in, name in pairs if stand_in is not None]


def _stand_in(name: str) -> Callable[..., Any] | None:
    return next((stand_in for pattern, stand_in in _STANDINS if re.fullmatch(pattern, name)), None)


MAX_DEPTH = 5
# An averaged (EMA) copy with this share of the largest copy's elements is preferred to it.
SIMILAR_SHARE = 0.8
# Keys under which programs store settings in a checkpoint.
_SETTINGS = ("args", "card", "config", "hyper_parameters", "provenance", "settings")
# The magic number of torch.save's legacy format, before zip archives.
_LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
# Globals that torch's weights-only loader allows, for formats where torch does not list them.
_HARMLESS = re.compile(
    r"collections\.(OrderedDict|Counter)|builtins\.(set|complex|bytearray)|_codecs\.encode"
    r"|torch(\.cuda|\.storage)?\.\w*Storage|torch\.(Size|device|Tensor|\w*(float|int|complex)\d+|bool)"
    r"|torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_from_type_v2"
    r"|torch\.nn\.parameter\.Parameter|torch\.serialization\._get_layout"
)
_DOWNLOAD_AGAIN = "Download or copy it again."
_OTHER_FORMATS = (
    (b"\x89HDF", "an HDF5 file, as Keras writes them"),
    (b"\x1f\x8b", "compressed with gzip"),
    (b"GGUF", "a GGUF file"),
)


@dataclass(frozen=True)
class CheckpointContents:
    """The contents of a checkpoint.

    `format`: "safetensors", "torch zip", "torch legacy" or "unfreeze model"; `tensors`: the
    largest set of named tensors (of several copies the averaged one), on the CPU; `container`: the
    keys that lead to it ("" at the top, "state_dict", ...); `beside`: the other sets by their
    keys, without the optimizer's; `meta`: plain values (epoch, arch, ...); `card`: the model card,
    in unfreeze files only; `verified`: the checksum that was verified, "" if there is none.
    """

    format: str
    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any] = field(default_factory=dict)
    container: str = ""
    beside: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    card: ModelCard | None = None
    verified: str = ""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor by its name."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


class UnsafeCheckpoint(WeightsError):
    """A pickle that could run code when loaded: its `format` and the `names` it refers to."""

    def __init__(self, sentence: str, next_step: str, kind: str, names: list[str]) -> None:
        super().__init__(sentence, next_step)
        self.format, self.names = kind, names


def read_checkpoint(path: str | Path) -> CheckpointContents:
    """The contents of a checkpoint file, a run's folder or a `model/` folder.

    WeightsError for anything else (an LFS pointer, a web page, an empty or truncated file);
    UnsafeCheckpoint for pickles with more than tensors and plain values.
    """
    file_path = Path(path)
    if file_path.is_dir():
        if model_folder(file_path) is None:
            last, log = file_path / "checkpoints" / "last.ckpt", file_path / "log.txt"
            raise WeightsError(
                f"{file_path} is a folder without a model.",
                f"The run has not finished ({log} ends with the reason): continue with --resume, "
                f"or give {last}."
                if last.exists()
                else "Give a run, a model/ folder or a file.",
            )
        tensors, card = load_model(file_path)
        return CheckpointContents(
            "unfreeze model", tensors, card.as_dict(), card=card, verified="SHA-256"
        )
    try:
        with file_path.open("rb") as file:
            start = file.read(512)
    except FileNotFoundError as error:
        raise WeightsError(f"No such file: {file_path}.", "Check the path.") from error
    contents = _reader(file_path, start)(file_path)
    return contents if contents.verified else _verified_by_name(file_path, contents)


def _verified_by_name(path: Path, contents: CheckpointContents) -> CheckpointContents:
    """Contents without a checksum, verified by the hash in the file's name, if any."""
    expected = hash_in_name(path)
    if not expected:
        return contents
    if not file_sha256(path).startswith(expected):
        raise WeightsError(
            f"{path} is damaged, or not the published file of that name: its SHA-256 does not "
            f"begin with {expected[:8]}.",
            "Download it again; a file of your own needs another name.",
        )
    return replace(contents, verified="SHA-256")


def unsafe_globals(path: str | Path) -> list[str]:
    """Sorted names of functions and classes in a pickle other than tensors and plain values.

    Reads the pickle's opcodes; nothing is executed.
    """
    file_path = Path(path)
    if zipfile.is_zipfile(file_path):
        with safe_globals(_allowed()):
            return sorted(get_unsafe_globals_in_checkpoint(str(file_path)))
    harmless = {name for _, name in _allowed()}
    return sorted(set(_globals_in(file_path)) - harmless)


def _reader(path: Path, start: bytes) -> Callable[[Path], CheckpointContents]:
    """The reader for a file that begins with `start`; WeightsError if there is none."""
    if not start:
        raise WeightsError(f"{path} is empty.", _DOWNLOAD_AGAIN)
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(
            f"{path} is a Git LFS pointer, not the weights.", "Run `git lfs pull` where it is."
        )
    if start.lstrip()[:1] == b"<":
        raise WeightsError(
            f"{path} is a web page, not weights.", "Download the file behind it, not the page."
        )
    if start.startswith(b"PK\x03\x04"):
        return _read_zip
    if start.startswith(_LEGACY):
        return _read_legacy
    if start[8:9] == b"{" or path.suffix == ".safetensors":
        return _read_safetensors
    if start[257:262] == b"ustar":
        raise WeightsError(
            f"{path} is a tar archive: either an archive with a checkpoint in it or a file of "
            "PyTorch 0.1, which cannot be read safely.",
            "Unpack it, or save the state_dict again with a newer PyTorch.",
        )
    if start.startswith(b"\x80"):
        raise _unsafe_error(path, "pickle")
    other = next((kind for mark, kind in _OTHER_FORMATS if start.startswith(mark)), None)
    if other is not None:
        raise WeightsError(f"{path} is {other}.", "Give PyTorch's or safetensors' file instead.")
    raise WeightsError(f"{path} is not a checkpoint.", "Give a .safetensors, .pth or .pt file.")


def _read_safetensors(path: Path) -> CheckpointContents:
    try:
        with (
            utf8_path(path) as readable,
            safe_open(readable, framework="pt", device="cpu") as file,
        ):
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            meta = dict(file.metadata() or {})
    except SafetensorError as error:
        raise WeightsError(f"{path} is truncated or damaged: {error}.", _DOWNLOAD_AGAIN) from error
    written = meta.pop(DIGEST, "")
    if written and tensors_sha256(tensors) != written:
        raise WeightsError(
            f"{path} is damaged: the checksum of its tensors does not match.", _DOWNLOAD_AGAIN
        )
    return CheckpointContents("safetensors", tensors, meta, verified="SHA-256" if written else "")


def _read_zip(path: Path) -> CheckpointContents:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise WeightsError(
            f"{path} is truncated: the archive has no end.", _DOWNLOAD_AGAIN
        ) from error
    except Exception as error:  # a damaged directory makes zipfile raise nearly anything
        raise WeightsError(f"{path} is damaged ({error}).", _DOWNLOAD_AGAIN) from error
    if not any(name.endswith("data.pkl") for name in names):
        raise WeightsError(
            f"{path} is a zip archive, not a checkpoint.", "Give the file inside the archive."
        )
    if any(name.endswith("constants.pkl") for name in names):
        raise WeightsError(
            f"{path} is a TorchScript program, not weights.",
            "Save the state_dict of the network it was made from.",
        )
    fault, compared = archive_fault(path)
    if fault:
        raise WeightsError(f"{path} is damaged: {fault}.", _DOWNLOAD_AGAIN)
    return _read_torch(path, "torch zip", "CRC-32" if compared else "")


def _read_legacy(path: Path) -> CheckpointContents:
    return _read_torch(path, "torch legacy", "")


def _read_torch(file_path: Path, kind: str, verified: str) -> CheckpointContents:
    try:
        loaded = _load(file_path)
    except Exception as error:  # a damaged file makes torch raise nearly anything
        if isinstance(error, UnpicklingError) and unsafe_globals(file_path):
            raise _unsafe_error(file_path, kind) from error
        reason = str(error).partition("\n")[0]
        raise WeightsError(
            f"{file_path} is truncated or damaged ({reason}).", _DOWNLOAD_AGAIN
        ) from error
    sets = dict(_mappings(loaded, ""))
    container = _largest(sets)
    tensors = sets.pop(container, {})
    if not tensors:
        raise WeightsError(f"{file_path} holds no named tensors.", "Give a file with a state_dict.")
    beside = {path: inside for path, inside in sets.items() if inside}
    card = ModelCard.from_dict(loaded["card"]) if is_unfreeze_checkpoint(loaded) else None
    return CheckpointContents(kind, tensors, _plain(loaded), container, beside, card, verified)


def _load(path: Path) -> Any:
    """The file as read by torch's weights-only loader, with stand-ins for framework classes."""
    try:
        with safe_globals(_allowed()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        passed = stand_ins(unsafe_globals(path))
        if not passed:
            raise
    with safe_globals([*_allowed(), *passed]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _unsafe_error(path: Path, kind: str) -> UnsafeCheckpoint:
    names = unsafe_globals(path)
    listed = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    what = "a plain pickle" if kind == "pickle" else "a pickle"
    is_model = any(name.startswith("torch.nn.modules.") for name in names)
    return UnsafeCheckpoint(
        f"{path} is {what} that could run code when loaded ({listed or 'not from torch.save'})"
        + (": a pickled model, not a state dict." if is_model else "."),
        "If you trust it, load it with the library that wrote it and save only its state_dict().",
        kind,
        names,
    )


def _largest(sets: Mapping[str, Mapping[str, torch.Tensor]]) -> str:
    """Path of the set with the most elements; of similar copies the averaged one."""
    sizes = {path: sum(t.numel() for t in inside.values()) for path, inside in sets.items()}
    largest = max(sizes.values(), default=0)
    similar = [path for path, size in sizes.items() if size >= SIMILAR_SHARE * largest]
    return max(similar, key=lambda path: (is_averaged(path), sizes[path]), default="")


def _mappings(value: Any, path: str) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    if path.count(".") > MAX_DEPTH:
        return
    if isinstance(value, Mapping):
        items = [(key, inner) for key, inner in value.items() if isinstance(key, str)]
        yield path, {key: inner for key, inner in items if isinstance(inner, torch.Tensor)}
    elif isinstance(value, list | tuple):
        items = [(str(index), inner) for index, inner in enumerate(value)]
    else:
        return
    for key, inner in items:
        # some tools store momentum under the names of the weights
        if not key.startswith("optim") and not isinstance(inner, torch.Tensor):
            yield from _mappings(inner, f"{path}.{key}" if path else key)


def _plain(loaded: Any) -> dict[str, Any]:
    """Numbers and strings at the top level and in the stored settings."""
    plain: dict[str, Any] = {}
    for name, value in loaded.items() if isinstance(loaded, Mapping) else ():
        if isinstance(value, argparse.Namespace):
            plain[str(name)] = _plain(vars(value))
        elif isinstance(value, Mapping) and name in _SETTINGS:
            plain[str(name)] = _plain(value)
        elif isinstance(value, np.generic):
            plain[str(name)] = value.item()
        elif value is None or isinstance(value, bool | int | float | str):
            plain[str(name)] = value
    return plain


def _allowed() -> list[Any]:
    """Safe globals in addition to torch's: argparse.Namespace and numpy scalars."""
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    kinds = {type(np.dtype(code)) for code in "?bhilqBHILQefd"}
    named = [(kind, f"numpy.dtypes.{kind.__name__}") for kind in kinds]
    written = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [
        (argparse.Namespace, "argparse.Namespace"),
        (np.dtype, "numpy.dtype"),
        *((scalar, name) for name in written),
        *named,
    ]


def _globals_in(path: Path) -> Iterator[str]:
    """Globals of the pickles at the start of a file: one, or four in torch's legacy format."""
    with path.open("rb") as file:
        for _ in range(4):
            texts: list[str] = []
            try:
                for code, value, _ in pickletools.genops(file):
                    if code.name == "GLOBAL":
                        yield from _unless_harmless(_python3_name(*str(value).split(" ", 1)))
                    elif code.name == "STACK_GLOBAL":
                        yield from _unless_harmless(".".join(texts[-2:]))
                    elif isinstance(value, str):
                        texts.append(value)
            except ValueError:  # end of the pickles
                return


def _unless_harmless(name: str) -> Iterator[str]:
    if not _HARMLESS.fullmatch(name):
        yield name


def _python3_name(module: str, name: str) -> str:
    """The Python 3 name of a global: torch.save's pickles use those of Python 2."""
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"
