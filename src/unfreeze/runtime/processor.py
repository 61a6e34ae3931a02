"""Which processor this process runs on, and how much of it it may use."""

import platform
from functools import lru_cache
from pathlib import Path

_QUOTAS = ("/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us")


@lru_cache(maxsize=1)
def processor_name() -> str:
    """The processor's name, as "AMD EPYC 9354"; that of its architecture if unknown."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


@lru_cache(maxsize=1)
def processor_capabilities() -> list[str]:
    """Instruction sets as torch names them, such as amx_bf16 and avx512_bf16, sorted."""
    import torch

    if not hasattr(torch.cpu, "get_capabilities"):
        return []
    return sorted(name for name, present in torch.cpu.get_capabilities().items() if present is True)


def cpu_quota() -> str:
    """The limit of CPU time of this process's container (cgroup), as written there; "" if none."""
    for name in _QUOTAS:
        path = Path(name)
        if path.is_file():
            return path.read_text(encoding="ascii", errors="replace").strip()
    return ""
