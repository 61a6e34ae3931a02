"""Device, precision and memory layout: chosen once, with the reason."""

import contextlib
import os

import torch

from unfreeze.errors import UsageError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str) -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU; asking for what is absent is a UsageError."""
    _ask_for_large_pages()
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, there in present.items() if there)
    if not present[name]:
        raise UsageError(
            f"--device {name}: PyTorch finds no such device.", "Use --device auto or cpu."
        )
    if name == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(name)


def _ask_for_large_pages() -> None:
    """Tensors of 2 MiB and more on large pages, where Linux gives them.

    torch reads this with its first tensor. Else a step on the CPU spends a tenth to a sixth of its
    time on the faults of small pages.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def pick_precision(name: str, device: torch.device) -> tuple[str, str]:
    """(precision, reason): bf16 where the hardware multiplies it, else fp32."""
    if name == "fp16" and device.type == "cpu":
        raise UsageError("--precision fp16 needs a GPU.", "Use --precision bf16 or fp32.")
    if name != "auto":
        return name, "given"
    if device.type == "cuda":
        good = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", "the GPU has it") if good else ("fp32", "the GPU has no bf16")
    if device.type == "cpu" and _cpu_multiplies_bf16():
        return "bf16", "the CPU multiplies bf16 in hardware"
    return "fp32", f"no bf16 hardware on this {device.type}"


def free_for_images(device: torch.device) -> float:
    """Bytes of a device that decoded images may take: a quarter of a GPU's memory, else 2 GiB."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1] / 4
    return 2.0**31


def fast_precisions(device: torch.device) -> tuple[str, ...]:
    """Precisions that the hardware has, the usual one of `auto` first."""
    usual, _ = pick_precision("auto", device)
    if device.type == "cuda":
        return ("bf16", "fp32") if usual == "bf16" else ("fp32", "fp16")
    return ("bf16", "fp32") if usual == "bf16" else ("fp32",)


def _cpu_multiplies_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[None]:
    """Mixed precision for the network's forward pass; a no-op for fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])
