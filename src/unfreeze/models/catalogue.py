"""An index of all torchvision, timm and unfreeze networks by parameter shapes.

Identifies the architecture of a checkpoint. `catalogue.json` stores a MinHash sketch for each set
of networks with equal shapes: the smallest hashes of (shape, count) over the backbone's matrices
and kernels. A checkpoint's hashes select in a millisecond the few of 1,400 networks worth building
and comparing. Within a set, networks with the same computation form a group.
`python -m unfreeze.models.catalogue` regenerates the file for the installed versions; a network
that is not in it needs --arch.
"""

import hashlib
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from typing import Any

from torch import nn

Shape = tuple[int, ...]

FILE = "catalogue.json"
SKETCH_SIZE = 12  # hashes of a sketch
DIGITS = 6  # hexadecimal digits of a hash
_POSITIONS = ("pos_embed", "pos_embedding")  # their shape depends on the image size
_NOT_COMPUTED = {"training", "num_classes", "img_size", "dynamic_img_size", "dynamic_img_pad"}


@dataclass(frozen=True)
class CatalogueEntry:
    """Networks with equal shapes; those in one of `groups` also compute the same function."""

    sketch: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]


@cache
def catalogue() -> tuple[CatalogueEntry, ...]:
    """All entries of `catalogue.json`."""
    stored = json.loads((files(__package__) / FILE).read_text(encoding="utf-8"))
    return tuple(
        CatalogueEntry(
            tuple(sketch[i : i + DIGITS] for i in range(0, len(sketch), DIGITS)),
            tuple(tuple(group.split()) for group in groups),
        )
        for sketch, groups in stored["networks"].items()
    )


def similar_entries(
    file_shapes: Mapping[str, Shape], *, most: int = 6, least: float = 0.3
) -> list[CatalogueEntry]:
    """Up to `most` entries by the share of their sketch found among the file's hashes, descending.

    Entries with a share below `least` are dropped.
    """
    file_hashes = shape_hashes(file_shapes.values())
    shares = [
        (sum(value in file_hashes for value in entry.sketch) / len(entry.sketch), entry)
        for entry in catalogue()
    ]
    best = sorted((value for value in shares if value[0] >= least), key=lambda value: -value[0])
    return [entry for _, entry in best[:most]]


def same_computation(arch: str, other: str) -> bool:
    """Whether two networks with equal names and shapes compute the same function."""
    return arch == other or any(
        arch in group and other in group for entry in catalogue() for group in entry.groups
    )


def shape_hashes(shapes: Iterable[Shape]) -> set[str]:
    """Hashes of (shape, count) over matrices and kernels; vectors are ignored."""
    counts = Counter(shape for shape in shapes if len(shape) > 1)
    return {_hash(f"{shape} {count}") for shape, count in counts.items()}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def backbone_shapes(model: nn.Module, heads: Iterable[str]) -> dict[str, Shape]:
    """Shapes of the state dict without the head and the position embeddings."""
    return {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if not any(name.startswith(f"{head}.") for head in heads)
        and name.rpartition(".")[2] not in _POSITIONS
    }


def computation_hash(model: nn.Module, heads: Iterable[str]) -> str:
    """A hash of the modules' types and plain attributes, without the head."""
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        if name in heads:
            continue
        plain = {
            key: text
            for key, value in vars(module).items()
            if key not in _NOT_COMPUTED and not key.startswith("_") and (text := _plain(value))
        }
        digest.update(repr((name, type(module).__name__, sorted(plain.items()))).encode())
    return digest.hexdigest()[:16]


def _plain(value: Any) -> str:
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, tuple | list) and all(isinstance(v, bool | int | float) for v in value):
        return repr(tuple(value))
    if isinstance(value, partial):
        return f"{_plain(value.func)} {sorted(value.keywords.items())}"
    name = getattr(value, "__name__", "")
    return name if callable(value) and isinstance(name, str) else ""


@dataclass(frozen=True)
class _NetworkHashes:
    """One network: its sketch, and hashes of its names and shapes and of its computation."""

    arch: str
    sketch: str
    named: str
    computes: str


def _all_archs() -> Iterator[str]:
    import timm

    from unfreeze.models.build import WIDE_NETWORKS, torchvision_names
    from unfreeze.models.small import SMALL_NETWORKS

    yield from (f"torchvision/{name}" for name in torchvision_names())
    yield from (f"unfreeze/{name}" for name in (*SMALL_NETWORKS, *WIDE_NETWORKS))
    yield from (f"timm/{name}" for name in timm.list_models())


def _hash_network(arch: str) -> _NetworkHashes:
    from unfreeze.models.build import build_on_meta
    from unfreeze.models.head import head_layers

    model = build_on_meta(arch)
    declared = (getattr(model, "default_cfg", None) or {}).get("classifier") or ()
    heads = (declared,) if isinstance(declared, str) else tuple(declared) or head_layers(model)
    shapes = backbone_shapes(model, heads)
    sketch = "".join(sorted(shape_hashes(shapes.values()))[:SKETCH_SIZE])
    return _NetworkHashes(
        arch, sketch, _hash(repr(sorted(shapes.items()))), computation_hash(model, heads)
    )


def _same_outputs(arch: str, other: str) -> bool:
    """Whether two networks with equal weights have equal outputs on one image of noise."""
    import torch

    from unfreeze.models.build import build
    from unfreeze.models.shape_trace import input_size

    first, second = build(arch).eval(), build(other).eval()
    draw = torch.Generator().manual_seed(0)
    entries = second.state_dict()
    with torch.inference_mode():
        for name, entry in first.state_dict().items():
            if entry.dim() > 1 and entry.is_floating_point():
                entry.add_(torch.randn(entry.shape, generator=draw) * entry.std() / 10)
            entries[name].copy_(entry)
        image = torch.randn(1, 3, input_size(first), input_size(first), generator=draw)
        a, b = first(image), second(image)
    return bool((a - b).abs().max() <= 1e-3 * a.abs().max())


def _group_by_computation(rows: Iterable[_NetworkHashes]) -> list[list[str]]:
    """Networks with equal names and shapes, grouped by equal computation."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        groups[row.computes].append(row.arch)
    merged: list[list[str]] = []
    for group in groups.values():
        # two libraries describe the same modules differently: compare their outputs
        other = next(
            (candidate for candidate in merged if _same_in_other_library(candidate[0], group[0])),
            None,
        )
        if other is None:
            merged.append(group)
        else:
            other.extend(group)
    return merged


def _same_in_other_library(arch: str, other: str) -> bool:
    """Whether two networks come from different libraries and have equal outputs."""
    return arch.partition("/")[0] != other.partition("/")[0] and _same_outputs(arch, other)


def _to_json(rows: Iterable[_NetworkHashes]) -> str:
    import timm
    import torchvision

    by_shapes: defaultdict[tuple[str, str], list[_NetworkHashes]] = defaultdict(list)
    for row in rows:
        by_shapes[row.sketch, row.named].append(row)
    networks: defaultdict[str, list[str]] = defaultdict(list)
    for (sketch, _), equal_rows in by_shapes.items():
        networks[sketch] += [" ".join(group) for group in _group_by_computation(equal_rows)]
    versions = {"timm": timm.__version__, "torchvision": torchvision.__version__}
    return json.dumps({**versions, "networks": networks}, indent=0) + "\n"


if __name__ == "__main__":
    sys.stdout.write(_to_json(map(_hash_network, _all_archs())))
