"""What people give by mistake: one sentence, a next step, the right exit code, nothing lost."""

import io
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from unfreeze.cli.main import main
from unfreeze.runtime.terminal import Environment


@pytest.fixture
def call():
    def called(*words):
        out, err = io.StringIO(), io.StringIO()
        code = main([str(word) for word in words], Environment(out, err))
        return code, out.getvalue(), err.getvalue()

    return called


@pytest.fixture
def two_classes(tmp_path):
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        folder = tmp_path / "pets" / label
        folder.mkdir(parents=True)
        for k in range(6):
            Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(folder / f"{k}.png")
    return tmp_path / "pets"


QUICK = ("--arch", "unfreeze/tiny", "--epochs", "1", "--device", "cpu", "--image-size", "16")
SCRATCH = (*QUICK, "--weights", "none")


def refused(answer, code, *words):
    got, out, err = answer
    assert got == code and out == ""
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) >= 2 and "Traceback" not in err
    for word in words:
        assert word in err, err
    return lines


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_an_empty_folder_and_a_missing_one(call, tmp_path, verb):
    (tmp_path / "empty").mkdir()
    refused(
        call(verb, tmp_path / "empty", "--out", tmp_path / "run", *QUICK), 3, "contains no files"
    )
    refused(call(verb, tmp_path / "gone", "--out", tmp_path / "run", *QUICK), 3, "gone")
    assert not (tmp_path / "run").exists()


def test_one_image(call, tmp_path):
    (tmp_path / "one").mkdir()
    Image.new("RGB", (30, 30)).save(tmp_path / "one/a.png")
    refused(call("pretrain", tmp_path / "one", "--out", tmp_path / "run", *QUICK), 3, "too few")


def test_one_class_and_no_class(call, tmp_path, two_classes):
    out = tmp_path / "run"
    refused(call("finetune", two_classes / "cat", "--out", out, *SCRATCH), 3, "label")
    (two_classes / "dog").rename(tmp_path / "dog")
    refused(call("finetune", two_classes, "--out", out, *SCRATCH), 3, "class")
    assert not out.exists()


def test_text_called_cat_jpg_is_left_out_and_named(call, tmp_path, two_classes):
    (two_classes / "cat/cat.jpg").write_text("I am not a cat.")
    code, _, err = call("finetune", two_classes, "--out", tmp_path / "run", *SCRATCH)
    assert code == 0 and "1 file" in err
    assert "cat.jpg,not an image" in (tmp_path / "run/problems.csv").read_text()


def test_a_checkpoint_of_another_architecture(call, tmp_path, two_classes):
    from unfreeze.models.small import small

    torch.save(small().state_dict(), tmp_path / "small.pth")
    answer = call(
        "finetune",
        two_classes,
        "--out",
        tmp_path / "run",
        *QUICK,
        "--weights",
        tmp_path / "small.pth",
    )
    refused(answer, 4, "unfreeze/tiny")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "small.pth").read_bytes()[:4000])
    refused(
        call(
            "finetune",
            two_classes,
            "--out",
            tmp_path / "run",
            *QUICK,
            "--weights",
            tmp_path / "cut.pth",
        ),
        4,
        "cut.pth",
    )
    assert not (tmp_path / "run").exists()


def test_an_existing_out_is_kept(call, tmp_path, two_classes):
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter1.tex").write_text("years of work")
    refused(call("finetune", two_classes, "--out", out, *SCRATCH), 2, "--resume", "--overwrite")
    refused(call("finetune", two_classes, "--out", out, *SCRATCH, "--overwrite"), 2, "nothing was")
    assert (out / "chapter1.tex").read_text() == "years of work"


def test_wrong_flags_and_values(call, two_classes):
    refused(call("finetune", two_classes, "--epoch", "3"), 2, "--epochs")
    refused(call("finetune", two_classes, "--epochs", "many"), 2, "an integer")
    refused(call("fine-tune", two_classes), 2, "finetune")
    refused(call("pretrain", two_classes, "--optimizer", "lion"), 2, "larc")


def test_ctrl_c_saves_and_the_run_goes_on(tmp_path):
    command = [
        sys.executable,
        "-m",
        "unfreeze",
        "pretrain",
        "digits",
        "--out",
        tmp_path / "run",
        "--epochs",
        "400",
        "--batch-size",
        "64",
        "--device",
        "cpu",
        "--limit",
        "128",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    metrics, patience = tmp_path / "run/metrics.jsonl", time.monotonic() + 120
    while not metrics.exists() and time.monotonic() < patience:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume" in err and "Traceback" not in err
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert 0 < state["step"] < 800
