"""Reads the environment variables of launchers: torchrun, TorchElastic, SLURM."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from unfreeze.errors import UsageError


@dataclass(frozen=True)
class LaunchInfo:
    """Rank and world size of this process; `kind` is alone, torchrun or slurm."""

    kind: str = "alone"
    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def nodes(self) -> int:
        """Number of machines, each with the same number of processes."""
        return self.world // self.local_world


def detect_launcher(environment: Mapping[str, str] | None = None) -> LaunchInfo:
    """How this process was launched; UsageError if machines have unequal numbers of processes.

    A single SLURM task or torchrun process is `alone`.
    """
    env = os.environ if environment is None else environment
    if "WORLD_SIZE" in env and "RANK" in env:
        world = _number(env, "WORLD_SIZE", 1)
        if world == 1:
            return LaunchInfo()  # ignore the variables of an srun that started torchrun
        local = _number(env, "LOCAL_WORLD_SIZE", world)
        rank, local_rank = _number(env, "RANK", 0), _number(env, "LOCAL_RANK", 0)
        return _equal(LaunchInfo("torchrun", rank, world, local_rank, local))
    # SLURM_NTASKS is also set in batch scripts; a step exists only in processes of srun
    if _number(env, "SLURM_STEP_NUM_TASKS", 1) > 1:
        world = _number(env, "SLURM_STEP_NUM_TASKS", 1)
        nodes = _number(env, "SLURM_STEP_NUM_NODES", _number(env, "SLURM_NNODES", 1))
        rank, local_rank = _number(env, "SLURM_PROCID", 0), _number(env, "SLURM_LOCALID", 0)
        local = world // nodes if world % nodes == 0 else 0
        return _equal(LaunchInfo("slurm", rank, world, local_rank, local))
    return LaunchInfo()


def _equal(launch: LaunchInfo) -> LaunchInfo:
    if not launch.local_world or launch.world % launch.local_world:
        raise UsageError(
            f"{launch.world} processes are not split evenly across the machines.",
            "Start the same number on each machine.",
        )
    return launch


def _number(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name, "")
    return int(text) if text.isdigit() else default
