"""The command line under torchrun: one run, one voice, one sentence for what goes wrong."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from unfreeze.runtime.run_folder import read_metrics

TINY = [
    *("--limit", "64", "--batch-size", "16", "--nmb-prototypes", "12", "--epochs", "2"),
    *("--arch", "unfreeze/tiny", "--device", "cpu", "--queue-length", "32"),
]


def torchrun(*words, count=2, start=False):
    command = [
        *(sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(count), "-m", "unfreeze", *map(str, words)),
    ]
    if start:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


@pytest.mark.slow
def test_two_processes_are_one_run(tmp_path):
    done = torchrun("pretrain", "digits", "--out", tmp_path / "run", *TINY, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["processes"], answer["steps"], answer["images"]) == (2, 8, 64)
    steps = [r["step"] for r in read_metrics(tmp_path / "run") if r["split"] == "train"]
    assert steps == list(range(1, 9))  # one of them writes
    assert done.stderr.count("The loss starts near") == 1
    assert "\nprocesses = 2\n" in (tmp_path / "run/config.toml").read_text()


@pytest.mark.slow
def test_two_processes_fine_tune_together(tmp_path):
    words = ["finetune", "digits", "--limit", "160", "--arch", "unfreeze/tiny", "--weights", "none"]
    words += ["--epochs", "2", "--device", "cpu", "--batch-size", "16", "--json"]
    done = torchrun(*words, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["epochs"], answer["images"]) == (2, 128)
    lines = read_metrics(tmp_path / "run")
    assert [r["step"] for r in lines if r["split"] == "train"] == list(range(1, 17))
    assert [r["total"] for r in lines if r["split"] == "val"] == [32, 32]
    assert done.stderr.count("training images of 10 classes") == 1
    assert "\nprocesses = 2\n" in (tmp_path / "run/config.toml").read_text()


@pytest.mark.slow
def test_an_existing_command_line_of_the_reference(tmp_path):
    words = ["--data_path", "digits", "--dump_path", tmp_path / "d", "--batch_size", "8"]
    words += ["--arch", "unfreeze/tiny", "--size_crops", "16", "--epochs", "1", "--workers", "0"]
    words += ["--nmb_prototypes", "30", "--base_lr", "0.1", "--warmup_epochs", "0", "--hidden_mlp"]
    words += ["32", "--sync_bn", "apex", "--syncbn_process_group_size", "2", "--json"]
    done = torchrun("swav", *words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 1437 // 16
    assert (tmp_path / "d/checkpoint.pth.tar").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "words, sentence",
    [
        (["pretrain", "nowhere", "--out", "OUT"], "nowhere"),
        (["pretrain", "digits", "--epoch", "3"], "--epoch"),
        (["pretrain", "digits", "--out", "OUT", "--batch-size", "17"], "--batch-size 17"),
        (["evaluate", "run", "digits"], "runs in one process"),
    ],
)
def test_an_error_is_one_sentence(tmp_path, words, sentence):
    done = torchrun(*[tmp_path / "run" if w == "OUT" else w for w in words])
    assert done.returncode != 0
    ours = done.stderr.split("ChildFailedError")[0]
    assert ours.count("error: ") == 1 and sentence in ours
    assert "unfreeze/" not in ours.replace("unfreeze/tiny", "")  # no traceback of ours
    # and torchrun's own report gives the same sentence as its reason
    assert sentence in done.stderr.split("ChildFailedError")[-1]


@pytest.mark.slow
def test_a_signal_to_torchrun_saves_and_the_same_command_goes_on(tmp_path):
    words = ["pretrain", "digits", "--out", tmp_path / "run", *TINY, "--epochs", "400"]
    words += ["--resume", "auto"]
    running = torchrun(*words, start=True)
    metrics = tmp_path / "run/metrics.jsonl"
    until = time.monotonic() + 100
    while time.monotonic() < until and not (metrics.exists() and metrics.stat().st_size > 2_000):
        time.sleep(0.2)
    os.kill(running.pid, signal.SIGTERM)
    _, said = running.communicate(timeout=60)
    assert said.count("Stopped by ") == 1, said
    reached = read_metrics(tmp_path / "run")[-1]["step"]
    words[words.index("400")] = "400"
    again = torchrun(*words, start=True)
    until = time.monotonic() + 100
    while time.monotonic() < until and read_metrics(tmp_path / "run")[-1]["step"] < reached + 5:
        time.sleep(0.2)
    os.kill(again.pid, signal.SIGTERM)
    _, said = again.communicate(timeout=60)
    assert "Resuming from step" in said
