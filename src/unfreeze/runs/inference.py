"""Batch inference for the commands that use a model."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unfreeze.checkpoints.model_file import ModelCard, model_folder
from unfreeze.data.images.errors import Undecodable
from unfreeze.data.images.preprocess import Pixels, Preprocess
from unfreeze.data.index.index import Index
from unfreeze.data.sources.source import Source
from unfreeze.data.validate.duplicates import SIGNATURE, Signatures, signature
from unfreeze.data.validate.warnings import CroppedImages, cropped_away
from unfreeze.errors import DataError, UsageError, WeightsError
from unfreeze.models.build import build, canonical_arch
from unfreeze.models.head import remove_head
from unfreeze.models.identify_file import arch_of_weights
from unfreeze.models.load_weights import load_weights
from unfreeze.models.timm_weights import weights_architecture
from unfreeze.runtime.console import Console
from unfreeze.runtime.device import pick_device, pick_precision
from unfreeze.transfer.predictor import Failure, InferenceNetwork, Read, load_features

N = TypeVar("N", bound=InferenceNetwork)
Keep = Callable[[Tensor, list[int]], Tensor]
PLAIN = Preprocess(224, 256)  # for weights without preprocessing of their own
REPORTED_FAILURES = 5  # unreadable files shown by name


@dataclass(frozen=True)
class Outputs:
    """Outputs float32 [N, C] of the images that could be read; `kept`: their positions.

    `cropped`: statistics of images of which the network sees less than half.
    """

    kept: npt.NDArray[np.int64]
    values: Tensor
    cropped: CroppedImages | None = None


def feature_network(weights: str, arch: str | None, console: Console) -> InferenceNetwork:
    """The network of a run or of weights of any origin without its head: features [B, D].

    `arch`: its architecture, where the weights do not name it; UsageError if neither does.
    """
    if model_folder(weights) is not None:
        return load_features(weights)
    known = arch_of_weights(weights, arch)
    if arch is None and known is None:
        raise UsageError(
            f"{weights} does not name its architecture.",
            "Add --arch NAME; `unfreeze inspect` may recognise it.",
        )
    name = weights_architecture(weights) or canonical_arch(arch or (known.arch if known else ""))
    stem = known.stem if known else "imagenet"
    network = build(name, stem=stem)
    loaded = load_weights(network, weights, arch=name)
    console.say(loaded.account)
    if loaded.licence:
        console.say(loaded.licence)
    remove_head(network)
    preprocess = loaded.preprocess or PLAIN
    card = ModelCard("backbone", name, stem, preprocess=preprocess.as_dict())
    return InferenceNetwork(network, card, preprocess)


def on_device(network: N, device: str, precision: str) -> N:
    """The network on its device; in fp32 unless another precision is given."""
    target = pick_device(device)
    if precision != "auto":
        network.precision, _ = pick_precision(precision, target)
    network.to(target)
    return network


def reader_of_row(source: Source, row: int) -> Read:
    """A function that decodes a row's image."""
    return partial(source.sample, row)


def readers_of(index: Index) -> list[Read]:
    """A function that decodes it, for each image of an index."""
    return [reader_of_row(index.source, row) for row in index.rows.tolist()]


class Signed:
    """Read functions that also record the near-duplicate signature of each image."""

    def __init__(self, reads: Sequence[Read], count: int | None = None) -> None:
        self.signatures: Signatures = np.zeros(len(reads) if count is None else count, SIGNATURE)
        self.reads = [partial(self._read, position, read) for position, read in enumerate(reads)]

    def _read(self, position: int, read: Read) -> Pixels:
        pixels = read()
        signature(pixels).into(self.signatures, position)
        return pixels


def run_inference(
    network: InferenceNetwork,
    names: Sequence[str],
    reads: Iterable[Read],
    *,
    batch_size: int,
    console: Console,
    keep: Keep | None = None,
) -> Outputs:
    """Run the network on every image; unreadable images are reported and left out.

    `keep(outputs, positions)`: what to keep of a batch's outputs. DataError if none can be read;
    WeightsError for outputs that are NaN or infinite.
    """
    failed: dict[int, Failure] = {}
    batches, sizes = [], list[tuple[int, int]]()

    def measured(read: Read) -> Pixels:
        pixels = read()
        sizes.append((pixels.shape[0], pixels.shape[1]))  # in any order: only counts are used
        return pixels

    reads = (partial(measured, read) for read in reads)
    with console.progress("images", len(names)) as advance:
        position = 0
        for batch in network.outputs(reads, batch_size=batch_size, skip=failed.__setitem__):
            positions = list[int]()
            while len(positions) < len(batch):  # those before were read, or have failed
                positions += [] if position in failed else [position]
                position += 1
            if keep is not None:  # checked before anything is made of it
                _check_finite(batch, [names[p] for p in positions])
                batch = keep(batch, positions)
            batches.append(batch)
            advance(len(batch))
    _report_failures(failed, names, console)
    readable = np.setdiff1d(np.arange(len(names)), np.array(sorted(failed), np.int64))
    _check_finite(torch.cat(batches), [names[position] for position in readable])
    heights, widths = np.array(sizes, np.int64).reshape(-1, 2).T
    cropped = cropped_away(heights, widths) if network.preprocess.fit == "crop" else None
    return Outputs(readable, torch.cat(batches), cropped)


def _check_finite(outputs: Tensor, names: Sequence[str]) -> None:
    """WeightsError if outputs are NaN or infinite."""
    bad = torch.nonzero(~torch.isfinite(outputs).flatten(1).all(dim=1)).flatten().tolist()
    if bad:
        raise WeightsError(
            f"The outputs of {len(bad):,} of {len(names):,} images are NaN or infinite, the first: "
            f"{names[bad[0]]}.",
            "Use other weights; with --precision fp16 or bf16, try fp32.",
        )


def _report_failures(failed: dict[int, Failure], names: Sequence[str], console: Console) -> None:
    lines = [f"{names[position]}: {_reason(failed[position])}" for position in sorted(failed)]
    if len(failed) == len(names):
        raise DataError(
            f"None of {len(names):,} images could be read; the first: {lines[0]}."
            if lines
            else "No images.",
            "Check the files, or give others.",
        )
    for line in lines[:REPORTED_FAILURES]:
        console.warn(f"left out: {line}")
    if len(lines) > REPORTED_FAILURES:
        console.warn(f"left out: {len(lines) - REPORTED_FAILURES:,} more files that cannot be read")


def _reason(failure: Failure) -> str:
    if isinstance(failure, Undecodable):
        return f"{failure.reason} ({failure.detail})"
    return failure.strerror or str(failure)
