"""The flags of the reference implementation's `main_swav.py`, with its names and defaults."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from unfreeze.config.field import setting, settings_of
from unfreeze.config.pretrain import PretrainSettings
from unfreeze.config.shared import CallOptions

_PRETRAIN = settings_of(PretrainSettings)


def _same(name: str, default: Any) -> Any:
    """A setting of `pretrain` with the reference's default and spelling."""
    spec = dataclasses.replace(_PRETRAIN[name][0], verbatim=True, positional=False)
    return dataclasses.field(default=default, metadata={"knob": spec})


def _own(default: Any, help: str, **extra: Any) -> Any:
    return setting(default, help, verbatim=True, **extra)


def _idle(help: str) -> Any:
    """A flag that is accepted and has no effect; None: it was not given."""
    return _own(None, f"no effect: {help}", group="machine", cli_only=True)


@dataclass(frozen=True)
class ReferenceSettings(CallOptions):
    """Pretrains with the flags of the SwAV reference implementation, main_swav.py."""

    data_path: str = _own(
        "", "folder of images (its classes are ignored), or an archive", path="input"
    )
    dump_path: str = _own(".", "run folder; an earlier run in it is resumed", path="output")
    arch: str = _own(
        "resnet50", "architecture: resnet50, resnet50w2, w4, w5, or any other of `pretrain`"
    )
    init: str = _same("init", "none")

    nmb_crops: tuple[int, ...] = _same("nmb_crops", (2,))
    size_crops: tuple[int, ...] = _same("size_crops", (224,))
    min_scale_crops: tuple[float, ...] = _same("min_scale_crops", (0.14,))
    max_scale_crops: tuple[float, ...] = _same("max_scale_crops", (1.0,))
    crops_for_assign: tuple[int, ...] = _same("crops_for_assign", (0, 1))
    temperature: float = _same("temperature", 0.1)
    epsilon: float = _same("epsilon", 0.05)
    sinkhorn_iterations: int = _same("sinkhorn_iterations", 3)
    feat_dim: int = _same("feat_dim", 128)
    hidden_mlp: int = _same("hidden_mlp", 2048)
    nmb_prototypes: int = _same("nmb_prototypes", 3000)
    queue_length: int = _same("queue_length", 0)
    epoch_queue_starts: int = _same("epoch_queue_starts", 15)

    epochs: int = _own(100, "training epochs", low=0, group="swav")
    batch_size: int = _own(64, "batch size per process", low=2, group="swav")
    base_lr: float = _same("base_lr", 4.8)
    final_lr: float = _same("final_lr", 0.0)
    freeze_prototypes_niters: int = _same("freeze_prototypes_niters", 313)
    wd: float = _same("wd", 1e-6)
    warmup_epochs: int = _same("warmup_epochs", 10)
    start_warmup: float = _same("start_warmup", 0.0)

    checkpoint_freq: int = _own(
        25, "epochs between checkpoints in checkpoints/ckp-N.pth", low=1, group="run"
    )
    on_collapse: str = _same("on_collapse", "stop")
    seed: int = _same("seed", 31)
    workers: int = _same("workers", 10)
    use_fp16: bool = _own(
        True,
        "mixed precision: fp16 on CUDA, elsewhere bf16 if the hardware supports it",
        group="machine",
    )
    sync_bn: str = _own(
        "pytorch",
        "synchronised batch norm: pytorch (over all processes), apex (in groups), else none",
        group="machine",
    )
    syncbn_process_group_size: int = _same("syncbn_process_group_size", 8)
    improve_numerical_stability: bool | None = _idle("assignments are computed in the log domain")
    dist_url: str | None = _idle("set by the launcher's environment variables")
    world_size: int | None = _idle("set by the launcher's environment variables")
    rank: int | None = _idle("set by the launcher's environment variables")
    local_rank: int | None = _idle("set by the launcher's environment variables")
