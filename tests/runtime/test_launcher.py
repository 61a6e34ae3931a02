"""What launchers say through the environment is understood, and nothing else is."""

import pytest

from unfreeze.errors import UsageError
from unfreeze.runtime.launcher import LaunchInfo, detect_launcher

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
SLURM = {
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}


def test_torchrun_and_slurm_say_the_same():
    assert detect_launcher(TORCHRUN) == LaunchInfo("torchrun", 5, 8, 1, 4)
    assert detect_launcher(SLURM) == LaunchInfo("slurm", 5, 8, 1, 4)
    assert detect_launcher(SLURM).nodes == 2


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WORLD_SIZE": "1", "RANK": "0"},
        {"WORLD_SIZE": "8"},  # left over from somewhere: no launcher without a rank
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # a batch script, not a step of srun
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {**SLURM, "WORLD_SIZE": "1", "RANK": "0"},  # srun started many, each a torchrun of its own
    ],
)
def test_a_process_is_alone_unless_a_launcher_says_otherwise(environment):
    assert detect_launcher(environment) == LaunchInfo()


def test_unequal_machines_are_refused():
    with pytest.raises(UsageError, match="not split evenly"):
        detect_launcher({**SLURM, "SLURM_STEP_NUM_TASKS": "7"})
    with pytest.raises(UsageError, match="not split evenly"):
        detect_launcher({**TORCHRUN, "LOCAL_WORLD_SIZE": "3"})
