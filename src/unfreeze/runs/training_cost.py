"""Estimated time and memory of a fine-tuning run, before it starts."""

import time
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch

from unfreeze.data.augment.multicrop import Pixels
from unfreeze.models.layer_costs import (
    ComputeDevice,
    matmul_flops_per_second,
    network_flops_per_second,
)
from unfreeze.runs.finetuning.setup import FinetuneJob
from unfreeze.runtime.console import Console
from unfreeze.runtime.time_limit import rough_duration
from unfreeze.transfer.augment import view_maker_of
from unfreeze.transfer.cost import CostInput, TrainingCost, finetune_memory, training_cost

# speeds that any machine reaches: a run below QUICK seconds at these is not measured
SLOW = {"cpu": 2e9, "mps": 2e10, "cuda": 2e11}  # FLOP per second
SLOW_VIEW = 0.01  # seconds per augmented view
QUICK = 60.0
FEW = 4  # random images to measure the time of augmentation on
COUNTED = "estimated from tensor shapes, without the buffers of libraries"
_MIB = 2**20


def finetune_cost(
    job: FinetuneJob,
    case: CostInput,
    device: torch.device,
    processes: int = 1,
    *,
    enough: float | None = None,
) -> dict[str, Any]:
    """`time` (seconds) and `memory` (bytes) of a job, None if unknown, each with its `basis`.

    `enough`: measure even short runs, unless the machine's peak speed needs more than these
    seconds.
    """
    s = job.plan.settings
    work = training_cost(s, case)
    if work is None:
        unknown = "unknown: the network cannot be traced on the meta device"
        return {
            "time": {"seconds": None, "basis": unknown},
            "memory": {"total": None, "basis": unknown},
        }
    memory_use = finetune_memory(s, case, work, processes)
    return {
        "time": _time_of(job, case, work, ComputeDevice(device, s.precision), processes, enough),
        "memory": {**asdict(memory_use), "total": memory_use.total, "basis": COUNTED},
    }


def is_quick(operations: float, views: float, device: str) -> bool:
    """Whether a slow machine needs about a minute at most, so that nothing is measured."""
    return operations / SLOW.get(device, SLOW["cpu"]) + views * SLOW_VIEW <= QUICK


def fastest_seconds(operations: float) -> float:
    """Seconds that the CPU needs at least: 4 times its matrix multiplication speed (bf16)."""
    return operations / (4 * matmul_flops_per_second())


def _time_of(
    job: FinetuneJob,
    case: CostInput,
    work: TrainingCost,
    machine: ComputeDevice,
    processes: int,
    enough: float | None,
) -> dict[str, Any]:
    operations, views = work.operations / processes, work.views / processes
    if enough is not None and machine.device.type == "cpu" and fastest_seconds(operations) > enough:
        return {"seconds": fastest_seconds(operations), "basis": "at this machine's full speed"}
    if enough is None and is_quick(operations, views, machine.device.type):
        basis = "estimated from shapes, for a slow machine"
        return {"seconds": QUICK, "at_most": True, "operations": operations, "basis": basis}
    s, training = job.plan.settings, work.training > work.evaluation
    frozen, _ = work.heaviest
    speed = network_flops_per_second(
        case.network,
        frozen,
        s.image_size or 0,
        rows=(s.batch_size or 1) // processes if training else 64,
        machine=machine,
        training=training,
    )
    if speed is None:
        basis = "not measured: a step does not fit into the device's memory"
        return {"seconds": None, "operations": operations, "basis": basis}
    return {
        "seconds": float(f"{operations / speed + views * seconds_of_view(job):.4g}"),
        "at_most": False,
        "operations": operations,
        "operations_per_second": float(f"{speed:.4g}"),
        "basis": "measured for a second on this machine at its present load, without reading files",
    }


def seconds_of_view(job: FinetuneJob) -> float:
    """Seconds to make one training view, measured on random images."""
    s = job.plan.settings
    if job.plan.preprocess.fit == "text":
        return 0.0  # a text takes microseconds
    augment = partial(
        view_maker_of(s.augment, job.plan.preprocess, s.seed),
        random_images(2 * (s.image_size or 0)),
    )
    augment(np.arange(FEW), 0)  # warm-up
    began = time.perf_counter()
    augment(np.arange(FEW), 0)
    return (time.perf_counter() - began) / FEW


def random_images(side: int, count: int = FEW) -> list[Pixels]:
    """Random images, `side` pixels on the shorter side."""
    draw = np.random.default_rng(0)
    return list(draw.integers(0, 256, (count, side, round(side * 4 / 3), 3), np.uint8))


def show_cost(costs: dict[str, Any], console: Console) -> None:
    """Show two lines: time and memory."""
    for line in cost_lines(costs["time"], costs["memory"]):
        console.say(line)


def cost_lines(time_use: dict[str, Any], memory_use: dict[str, Any]) -> list[str]:
    """The lines about time and memory."""
    texts = []
    if time_use["seconds"] is None:
        texts.append(f"Time: {time_use['basis']}.")
    elif time_use.get("at_most"):
        texts.append("Time: about a minute or less.")
    else:
        texts.append(f"Time: {rough_duration(time_use['seconds'])} ({time_use['basis']}).")
    if memory_use["total"] is None:
        texts.append(f"Memory: {memory_use['basis']}.")
    else:
        parts = {n: v for n, v in memory_use.items() if n not in ("total", "basis") and v}
        shares = ", ".join(f"{name} {value / _MIB:,.0f}" for name, value in parts.items())
        texts.append(f"Memory: about {memory_use['total'] / _MIB:,.0f} MiB ({shares}).")
    return texts
