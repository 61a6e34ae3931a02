"""Chooses device and precision, with the reason."""

import contextlib
import os

import torch

from unfreeze.errors import UsageError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str) -> torch.device:
    """The device for `--device`; `auto` prefers CUDA, then MPS. UsageError if it is missing."""
    _enable_huge_pages()
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


def _enable_huge_pages() -> None:
    """Let torch allocate tensors of 2 MiB and more on transparent huge pages (Linux).

    Must be set before torch's first allocation. Without it a step on the CPU spends 10 to 17 % of
    its time on page faults.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def pick_precision(name: str, device: torch.device) -> tuple[str, str]:
    """(precision, reason) for `--precision`; `auto` is bf16 with hardware support, else fp32."""
    if name == "fp16" and device.type == "cpu":
        raise UsageError("--precision fp16 needs a GPU.", "Use --precision bf16 or fp32.")
    if name != "auto":
        return name, "given"
    if device.type == "cuda":
        good = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", "supported by the GPU") if good else ("fp32", "the GPU lacks bf16")
    if device.type == "cpu" and _cpu_supports_bf16():
        return "bf16", "supported by the CPU"
    return "fp32", f"no bf16 hardware on this {device.type}"


def image_memory_budget(device: torch.device) -> float:
    """Bytes for decoded images on a device: a quarter of a GPU's memory, else 2 GiB."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1] / 4
    return 2.0**31


def fast_precisions(device: torch.device) -> tuple[str, ...]:
    """Precisions that the hardware supports, the default of `auto` first."""
    usual, _ = pick_precision("auto", device)
    if device.type == "cuda":
        return ("bf16", "fp32") if usual == "bf16" else ("fp32", "fp16")
    return ("bf16", "fp32") if usual == "bf16" else ("fp32",)


def _cpu_supports_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[None]:
    """Mixed precision for the forward pass; a no-op for fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])
