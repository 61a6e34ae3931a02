"""Laws of segmentation runs: resume is a straight run to the bit, processes equal one."""

import signal
import subprocess
import sys
import time

import pytest
import torch
from tests.tasks.segmentation.conftest import weights

import unfreeze
from unfreeze.cli.main import main
from unfreeze.runtime.distributed import Distributed, init_distributed
from unfreeze.runtime.run_folder import read_metrics

SMALL = [
    *("--arch", "smp/linknet/tu-mobilenetv3_small_050", "--weights", "none", "--device", "cpu"),
    *("--image-size", "64", "--batch-size", "4", "--optimizer", "adamw", "--precision", "fp32"),
    *("--ema", "0.9", "--loss", "ce+dice", "--unfreeze-at", "1:all", "--freeze", "stage:1"),
]


def test_a_stopped_run_continues_to_the_bit(scenes, tmp_path, stopped_after, run_json):
    words = ["finetune", scenes, *SMALL, "--epochs", "3"]
    straight = run_json(*words, "--out", tmp_path / "straight")
    with stopped_after(6):
        assert main([*map(str, words), "--out", str(tmp_path / "run")]) == 130
    resumed = run_json(*words, "--out", tmp_path / "run", "--resume")
    assert resumed["val_metrics"] == straight["val_metrics"]
    one, other = weights(tmp_path / "straight"), weights(tmp_path / "run")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_a_killed_run_continues_to_the_bit(scenes, tmp_path):
    words = [sys.executable, "-m", "unfreeze", "finetune", str(scenes), *SMALL, "--epochs", "12"]
    subprocess.run([*words, "--out", str(tmp_path / "straight")], check=True, capture_output=True)
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [*words, "--out", str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 240
    while time.monotonic() < until and process.poll() is None:
        records = read_metrics(killed) if (killed / "metrics.jsonl").exists() else []
        if max((r["step"] for r in records if r["split"] == "train"), default=0) >= 14:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    again = [*words, "--out", str(killed), "--resume"]
    done = subprocess.run(again, check=True, capture_output=True, text=True)
    assert "Resuming from step" in done.stderr
    one, other = weights(tmp_path / "straight"), weights(killed)
    assert all(torch.equal(one[name], other[name]) for name in one)


def tuned(rank, data, out):
    world = Distributed() if rank is None else init_distributed("cpu")
    # statistics of batch norms would be synchronised in float32, so they are frozen
    given = {"arch": "smp/linknet/tu-mobilenetv3_small_050", "weights": "none", "freeze": "norms"}
    given |= {"image_size": 64, "batch_size": 4, "epochs": 2, "device": "cpu", "lr": 1e-3}
    result = unfreeze.finetune(str(data), out=str(out), precision="fp32", **given)
    return world.world, result.val_miou


@pytest.mark.slow
def test_two_processes_equal_one(scenes, tmp_path, processes):
    _, alone = tuned(None, scenes, tmp_path / "one")
    (world, together), _ = processes(2, tuned, scenes, tmp_path / "two")
    one, other = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert world == 2 and together == pytest.approx(alone, rel=1e-3)
    assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)
