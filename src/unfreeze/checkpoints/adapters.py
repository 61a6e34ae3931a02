"""Merges LoRA adapters into the weights, and refuses adapters that cannot be merged exactly.

A network tuned with LoRA stores its original weights W and two small matrices; its effective
weights are W + (alpha / r) B A (Hu et al., arXiv 2106.09685). Loading W alone would give the
network before tuning.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from unfreeze.checkpoints.read import CheckpointContents
from unfreeze.checkpoints.tensor_values import quantisation_scales
from unfreeze.errors import WeightsError

# parameter names of adapters in PEFT, loralib and kohya's tools
_ADAPTER = re.compile(
    r"(?:^|[._])(?:lora_(?!alpha)\w+|hada_w\d\w*|lokr_w\d\w*|ia3_l|oft_[rR]|oft_blocks|boft_\w+"
    r"|vera_lambda_\w+|dora_scale|adapter_(?:down|up)|prompt_embeddings)(?:\.|$)"
)
_DOWN = re.compile(r"(.*)\.lora_(?:A|down)(?:\.(\w+))?\.weight")
_UP = {"lora_A": "lora_B", "lora_down": "lora_up"}
_CONFIG = "adapter_config.json"
_MERGE = (
    "Merge them with the library that trained them (PEFT: model.merge_and_unload()) and save "
    "the state_dict() of the result."
)


@dataclass(frozen=True)
class MergedAdapters:
    """Tensors without adapters, and the number of layers with merged adapters."""

    tensors: dict[str, Tensor]
    layers: int = 0


class _Unmergeable(Exception):
    """Why adapters cannot be merged."""


def adapter_names(names: Iterable[str]) -> list[str]:
    """Names of adapter tensors."""
    return [name for name in names if _ADAPTER.search(name)]


def merge_adapters(
    tensors: Mapping[str, Tensor], meta: Mapping[str, Any], path: Path | None, name: str
) -> MergedAdapters:
    """The tensors with their LoRA adapters merged; unchanged if there are none.

    `meta`: the file's metadata; `path`: its path, for adapter_config.json beside it (None: no
    file); `name`: for messages. WeightsError if adapters cannot be merged exactly.
    """
    adapters = adapter_names(tensors)
    if not adapters:
        return MergedAdapters(dict(tensors))
    try:
        return _merge(tensors, adapters, _settings(meta, path))
    except _Unmergeable as why:
        raise WeightsError(
            f"{name} contains adapters ({len(adapters)} tensors such as {adapters[0]}), and {why}.",
            _MERGE,
        ) from why


def _merge(
    tensors: Mapping[str, Tensor], adapters: list[str], settings: Mapping[str, Any]
) -> MergedAdapters:
    plain = {name: t for name, t in tensors.items() if name not in adapters}
    pairs = {name: match for name in adapters if (match := _DOWN.fullmatch(name))}
    unsupported = next((n for n in adapters if n not in pairs and not _is_up(n, tensors)), None)
    if unsupported is not None or settings.get("use_dora") or settings.get("fan_in_fan_out"):
        raise _Unmergeable(f"{unsupported or 'the adapter (DoRA or transposed)'} is not plain LoRA")
    if len({match[2] for match in pairs.values()}) > 1:
        raise _Unmergeable("they belong to several adapters")
    for name, match in pairs.items():
        base = match[1]
        weight = next(
            (w for w in (f"{base}.base_layer.weight", f"{base}.weight") if w in plain), ""
        )
        if not weight:
            raise _Unmergeable(f"it lacks the weights of {base}")
        down, up = tensors[name], tensors[_partner(name)]
        share = _alpha(base, plain, settings) / _rank(down.shape[0], settings)
        plain[weight] = plain[weight] + share * _product(down, up, plain[weight])
    names = [n for n in plain if not n.endswith(".alpha") and ".original_module." not in n]
    return MergedAdapters({_without_wrappers(name): plain[name] for name in names}, len(pairs))


def _without_wrappers(name: str) -> str:
    """A parameter name without the wrappers of PEFT."""
    return re.sub(r"\.modules_to_save\.\w+\.", ".", name.replace(".base_layer.", "."))


def _partner(name: str) -> str:
    for down, up in _UP.items():
        if f".{down}." in name:
            start, _, rest = name.rpartition(f".{down}.")
            return f"{start}.{up}.{rest}"
    return ""


def _is_up(name: str, tensors: Mapping[str, Tensor]) -> bool:
    for down, up in _UP.items():
        start, separator, rest = name.rpartition(f".{up}.")
        if separator:
            return f"{start}.{down}.{rest}" in tensors
    return False


def _alpha(base: str, plain: Mapping[str, Tensor], settings: Mapping[str, Any]) -> float:
    """Alpha of a layer: from its own tensor, else from the settings."""
    alpha_tensor = plain.get(f"{base}.alpha")
    if alpha_tensor is not None:
        return float(alpha_tensor)
    pattern = settings.get("alpha_pattern") or {}
    for part, value in pattern.items():
        if re.fullmatch(rf"(.*\.)?({part})", base):
            return float(value)
    alpha = settings.get("lora_alpha")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        raise _Unmergeable("their scaling factor (alpha) is unknown")
    return float(alpha)


def _rank(rank: int, settings: Mapping[str, Any]) -> float:
    return float(rank) ** 0.5 if settings.get("use_rslora") else float(rank)


def _product(down: Tensor, up: Tensor, weight: Tensor) -> Tensor:
    """B A in the shape of `weight`."""
    if up.dim() > 2 and up.shape[2:].numel() != 1:
        raise _Unmergeable("an upper matrix is a convolution larger than 1x1")
    change = up.float().flatten(1) @ down.float().flatten(1)
    if change.numel() != weight.numel() or up.shape[0] != weight.shape[0]:
        raise _Unmergeable(
            f"they change {tuple(change.shape)} where the weights are {tuple(weight.shape)}"
        )
    return change.reshape(weight.shape).to(weight.dtype)


def _settings(meta: Mapping[str, Any], path: Path | None) -> dict[str, Any]:
    """Adapter settings from the file's metadata and from adapter_config.json beside it."""
    settings: dict[str, Any] = {}
    for values in (meta, *(v for v in meta.values() if isinstance(v, Mapping))):
        settings |= {k: v for k, v in values.items() if k.startswith(("lora_", "use_", "fan_in"))}
    config = path.with_name(_CONFIG) if path is not None else None
    if config is not None and config.is_file():
        try:
            settings |= json.loads(config.read_text(encoding="utf-8"))
        except ValueError as error:
            raise _Unmergeable(f"{config} beside it is not valid JSON") from error
    return settings


_UNQUANTISED = "Give the weights from before the quantisation, or dequantise and save them."


@dataclass(frozen=True)
class LoadableTensors:
    """Named tensors ready to load, and notes on what was changed."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def loadable_tensors(contents: CheckpointContents, path: Path | None, name: str) -> LoadableTensors:
    """The tensors of a file, ready to be matched with a network's.

    `path`: the file's path; `name`: for messages. WeightsError for a quantised file and for
    adapters that cannot be merged.
    """
    scales = quantisation_scales(contents.tensors)
    if scales:
        raise WeightsError(
            f"{name} is quantised: {scales[0]} ({len(scales)} such tensors) is a scale for integer "
            "codes, not a weight.",
            _UNQUANTISED,
        )
    merge = merge_adapters(contents.tensors, contents.meta, path, name)
    note = f"LoRA adapters of {merge.layers} layers merged"
    return LoadableTensors(merge.tensors, (note,) if merge.layers else ())
