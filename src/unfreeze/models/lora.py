"""Low-rank adapters (LoRA) on the attention layers of a network, with PEFT.

A linear layer W of shape [out, in] computes (W + s B A) x: A [rank, in] is random, B [out, rank]
starts at zero, and only A and B are trained (Hu et al., arXiv 2106.09685). As in the paper, only
attention layers are adapted.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unfreeze.checkpoints.adapters import adapter_names, merge_adapters
from unfreeze.errors import UsageError
from unfreeze.models.shape_trace import trace_forward

INSTALL = "Install it: pip install 'unfreeze[lora]'."
SCALE = 2.0  # s: alpha / rank, so that the best learning rate hardly depends on the rank
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_POOLING = re.compile(r"pool", re.IGNORECASE)  # attention that pools the tokens of the last layer


def add_lora(network: nn.Module, rank: int, arch: str) -> tuple[str, ...]:
    """Put adapters on the attention layers in place; returns the names of the adapted layers.

    The network's outputs do not change. Parameters of the adapted layers get the suffix
    `base_layer`, those of the adapters are `adapter_names` of the state dict. Reads the global
    random state. UsageError without PEFT, for a network without attention layers, and for a rank
    that is not below their width.
    """
    targets = attention_layers(network)
    if not targets:
        raise UsageError(
            f"--lora: {arch} has no attention layers that adapters can be put on.",
            "Use a vision transformer of timm or a text encoder, or --freeze stage:N instead.",
        )
    narrow = [name for name, width in targets.items() if width > rank]
    if not narrow:
        raise UsageError(
            f"--lora {rank} is not below the width of the attention layers of {arch}, which is "
            f"{max(targets.values())}.",
            "Use a lower rank, such as --lora 8.",
        )
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UsageError("--lora needs the package peft.", INSTALL) from error
    config = LoraConfig(r=rank, lora_alpha=alpha_of(rank), target_modules=narrow)  # type: ignore[arg-type]
    inject_adapter_in_model(config, network)
    return tuple(narrow)


def alpha_of(rank: int) -> float:
    """LoRA's alpha, by which PEFT scales the adapters: alpha / rank."""
    return SCALE * rank


def attention_layers(network: nn.Module) -> dict[str, int]:
    """Name -> smaller side of the weight, of the linear layers of all attention modules.

    Only layers that a forward pass calls: some networks use the weights of a layer without calling
    it, and an adapter there would do nothing.
    """
    called = trace_forward(network).order
    return {
        name: min(module.in_features, module.out_features)
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
        and name in called
        and _ATTENTION.search(name)
        and not _POOLING.search(name)
    }


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter, by its name."""
    return bool(adapter_names([name]))


def frozen_with_lora(network: nn.Module, head: Iterable[str]) -> frozenset[str]:
    """Names of all parameters but those of the adapters and of the head (parameter names)."""
    names = {name for name, _ in network.named_parameters()}
    return frozenset(names - set(head) - set(adapter_names(names)))


def merge_lora(network: nn.Module) -> int:
    """Add the adapters to their layers in place and remove them; returns how many there were.

    The network then has the parameter names of its architecture again, and computes the same up to
    rounding.
    """
    from peft.tuners.lora import LoraLayer

    adapted = [(name, m) for name, m in network.named_modules() if isinstance(m, LoraLayer)]
    for name, module in adapted:
        layer: Any = module
        with torch.no_grad():
            layer.merge()
        network.set_submodule(name, layer.get_base_layer())
    vars(network).pop("peft_config", None)  # what PEFT leaves behind
    return len(adapted)


def merged_tensors(tensors: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """The state dict of a network with adapters as that of the network without them."""
    return merge_adapters(tensors, {"lora_alpha": alpha_of(rank)}, None, "the checkpoint").tensors
