"""`--lora`: what it excludes, and its adapters in the plan of a run."""

from torch import nn

from unfreeze.config.finetune import FinetuneSettings
from unfreeze.errors import UsageError
from unfreeze.models.lora import SCALE, add_lora, is_adapter
from unfreeze.transfer.feature_cache.policy import CacheDecision

LORA_CACHE = CacheDecision("off", reasons={"cache": "--lora changes the features in each step"})


def check_lora_settings(s: FinetuneSettings, *, dense: bool) -> None:
    """Raise UsageError for settings that contradict `--lora`; `dense`: segmentation."""
    if not s.lora:
        return
    if dense:
        raise UsageError(
            "--lora adapts the backbone of a classifier, and this task is segmentation.",
            "Leave out --lora; --freeze all trains the decoder alone.",
        )
    excluded = {
        "--freeze": s.freeze != "none",
        "--unfreeze-at": s.unfreeze_at is not None,
        "--layer-decay": s.layer_decay != 1,
        "--head-solver logistic": s.head_solver == "logistic",
        f"--cache {s.cache}": s.cache not in ("auto", "off"),
        "--cache-views": s.cache_views is not None,
    }
    for flag in (name for name, given in excluded.items() if given):
        raise UsageError(
            f"{flag} and --lora exclude each other: --lora freezes everything but its adapters "
            "and the head, and changes the features in each step.",
            "Leave out one of them.",
        )


def put_adapters(network: nn.Module, rank: int, arch: str) -> str:
    """Put adapters on the network's attention layers in place; returns a sentence for the plan."""
    layers = add_lora(network, rank, arch)
    return (
        f"rank of adapters on {len(layers)} attention layers ({layers[0]} to {layers[-1]}), scale "
        f"{SCALE:g}; everything else but the head is frozen; merged into the weights at the end"
    )


def adapter_parameters(network: nn.Module) -> int:
    """Number of parameters of the adapters."""
    return sum(p.numel() for name, p in network.named_parameters() if is_adapter(name))
