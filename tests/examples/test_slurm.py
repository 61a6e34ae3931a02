"""The SLURM script as it stands, under a scheduler of three small programs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unfreeze.checkpoints.state import load_last
from unfreeze.runtime.run_folder import read_metrics

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm.sh"
JOB = "4711"
# three steps of 16 images; a limit below the interpreter's start leaves one step a turn
WORDS = [*("--limit", "48", "--batch-size", "16", "--epochs", "1", "--device", "cpu")]


@pytest.fixture
def cluster(tmp_path):
    """`turn(*words)`: one start of the job; (exit code, stderr, whether it was requeued)."""
    programs, requeued = tmp_path / "bin", tmp_path / "requeued"
    programs.mkdir()
    for name, text in {
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n',
        "scontrol": f'echo "$@" >> {requeued}\n',
        "python": f'exec {sys.executable} "$@"\n',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}")
        (programs / name).chmod(0o755)
    own = {name: v for name, v in os.environ.items() if not name.startswith("SLURM")}
    environment = {
        **own,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "SLURM_JOB_ID": JOB,
        "SLURM_STEP_NUM_TASKS": "1",
    }

    def turn(*words):
        command = ["bash", str(SCRIPT), "digits", str(tmp_path / "run"), *words]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=200
        )
        told = requeued.read_text().splitlines() if requeued.exists() else []
        requeued.unlink(missing_ok=True)
        return done.returncode, done.stderr, told

    return turn


@pytest.mark.slow
def test_a_job_is_requeued_until_its_last_step(cluster, tmp_path):
    turns = []
    for _ in range(3):
        code, said, told = cluster(*WORDS, "--time-limit", "1s")
        turns.append(code)
        if code == 130:
            assert told == [f"requeue {JOB}"]
            assert "Stopped by --time-limit after step" in said
    assert turns == [130, 130, 0] and told == []
    assert "Resuming from step 2 of 3." in said
    trained = [r["step"] for r in read_metrics(tmp_path / "run") if r["split"] == "train"]
    assert trained == [1, 2, 3]
    assert load_last(tmp_path / "run/checkpoints")[0]["step"] == 3
    assert (tmp_path / "run/model/model.safetensors").exists()


@pytest.mark.slow
def test_a_job_that_cannot_work_is_not_requeued(cluster):
    code, said, told = cluster("--epochs", "none at all")
    assert code == 2 and told == [] and "--epochs" in said


def test_the_time_limit_is_below_the_jobs_and_the_script_is_whole():
    from unfreeze.runtime.time_limit import parse_duration

    text = SCRIPT.read_text()
    asked = next(line for line in text.splitlines() if "SBATCH --time=" in line).split("=")[1]
    limit = text.split("--time-limit ")[1].split()[0]
    assert 300 <= parse_duration(asked) - parse_duration(limit) <= 1200
    assert subprocess.run(["bash", "-n", SCRIPT], check=False).returncode == 0
    assert os.access(SCRIPT, os.X_OK)
