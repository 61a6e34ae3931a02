"""Whether what was frozen is unchanged in the files of a run, by hash."""

from collections.abc import Mapping

import torch
from torch import Tensor

from unfreeze.checkpoints.model_file import load_model
from unfreeze.checkpoints.state import BEST_CHECKPOINT, LAST_CHECKPOINT, load_state
from unfreeze.models.lora import merged_tensors
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.training.ema import weights_to_serve
from unfreeze.transfer.freezing.freeze import hash_tensors

MERGED = 1e-4  # largest difference of merged weights to their equation, relative to the largest


def frozen_unchanged(run: RunFolder, hashes: dict[str, str]) -> bool:
    """Whether every frozen entry of the written model equals its initial value, by hash."""
    tensors, _ = load_model(run.path)
    return hash_tensors(tensors, hashes) == hashes


def frozen_unchanged_with_lora(
    run: RunFolder, hashes: dict[str, str], rank: int, *, best: bool
) -> bool:
    """The same of a run with adapters, which are merged in the written model.

    The frozen entries of the checkpoint it comes from equal their initial values by hash; so do
    those of the written model that have no adapter, and the others are W + s B A of the checkpoint.
    `best`: whether the model comes from the best checkpoint.
    """
    path = run.file("checkpoints") / (BEST_CHECKPOINT if best else LAST_CHECKPOINT)
    trained = weights_to_serve(load_state(path))
    written, _ = load_model(run.path)
    plain = {name: value for name, value in hashes.items() if name in written}
    return (
        hash_tensors(trained, hashes) == hashes
        and hash_tensors(written, plain) == plain
        and _all_close(written, merged_tensors(trained, rank))
    )


def _all_close(written: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return written.keys() == expected.keys() and all(
        torch.allclose(
            tensor.double(),
            expected[name].cpu().double(),
            rtol=0,
            atol=MERGED * float(expected[name].abs().max() if tensor.numel() else 0) + 1e-12,
        )
        for name, tensor in written.items()
    )
