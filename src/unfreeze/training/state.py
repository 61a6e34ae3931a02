"""The state of a training run: everything that changes, in one object that a checkpoint holds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from unfreeze.runtime.distributed import Distributed
from unfreeze.tasks.base import Task
from unfreeze.training.ema import WeightAverage


@dataclass
class TrainState:
    """Task, optimizer, gradient scaler and step; `loss`: mean of the last training record.

    `average`: EMA of the weights, or None. It belongs to the run, not to a process: any number of
    processes can resume it.
    """

    task: Task
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device
    steps: int  # of the whole run
    steps_per_epoch: int
    step: int = 0  # finished steps
    loss: float = math.nan
    average: WeightAverage | None = None
    seconds: float = 0.0  # of training in earlier sessions and before the first step

    @property
    def model(self) -> nn.Module:
        """The trained network."""
        return self.task.model

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return self.step // self.steps_per_epoch

    @property
    def ends_epoch(self) -> bool:
        """Whether the last step was the last of an epoch."""
        return self.step > 0 and self.step % self.steps_per_epoch == 0

    def state_dict(self, processes: Distributed) -> dict[str, Any]:
        """Plain values and tensors for a checkpoint. Collective: joins what each process has."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "loss": self.loss,
            "seconds": self.seconds,
            "threads": torch.get_num_threads(),
            "processes": processes.world,
            "rng": processes.gather(torch.get_rng_state()),  # by rank; used by dropout
            "device_rng": device_rng(self.device, processes),
            "model": self.model.state_dict(),
            **({"average": self.average.state()} if self.average else {}),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "task": self.task.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], processes: Distributed) -> None:
        """Restore `state_dict()`; random states only with the same number of processes."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.loss, self.seconds = state["step"], state["loss"], state["seconds"]
        if self.average:
            self.average.restore(state["average"])
        if state["processes"] == processes.world:
            torch.set_rng_state(state["rng"][processes.rank])
            restore_device_rng(self.device, state["device_rng"], processes.rank)
        self.task.load_state_dict(state["task"], self.device)


def device_rng(device: torch.device, processes: Distributed) -> dict[str, Any] | None:
    """Random states of the device by rank (used by dropout); None on the CPU. Collective."""
    if device.type == "cpu":
        return None
    state = torch.get_device_module(device).get_rng_state()
    return {"kind": device.type, "states": processes.gather(state)}


def restore_device_rng(device: torch.device, saved: dict[str, Any] | None, rank: int) -> None:
    """Restore the device's random state if it comes from the same kind of device."""
    if saved is not None and saved["kind"] == device.type:
        torch.get_device_module(device).set_rng_state(saved["states"][rank])
