"""The example package of docs/EXTENDING.md, through the command line: a method that is not ours."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tests.laws.test_pretraining_processes_equal_one as laws
import torch

from unfreeze.cli.main import main
from unfreeze.config import plugins
from unfreeze.runtime.run_folder import read_metrics

PACKAGE = Path(__file__).parents[2] / "examples" / "simsiam"
SHORT = [
    *("--method", "simsiam", "--arch", "unfreeze/tiny", "--image-size", "16", "--limit", "96"),
    *("--batch-size", "16", "--epochs", "4", "--device", "cpu", "--precision", "fp32"),
    *("--feat-dim", "32", "--hidden-mlp", "32", "--base-lr", "0.01", "--tune", "off"),
]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The folder with the package as pip would install it, on the path of this process."""
    site = tmp_path / "site"
    info = site / "unfreeze_simsiam-0.1.dist-info"
    info.mkdir(parents=True)
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    entries = project["entry-points"]["unfreeze.tasks"]
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(["[unfreeze.tasks]", *lines, ""]))
    (site / "unfreeze_simsiam.py").write_text((PACKAGE / "unfreeze_simsiam.py").read_text())
    monkeypatch.syspath_prepend(str(site))
    plugins.registered.cache_clear()
    yield site
    plugins.registered.cache_clear()


def command(site, *words):
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    return {
        "args": [sys.executable, *map(str, words)],
        "env": {**os.environ, "PYTHONPATH": path},
        "text": True,
        "stderr": subprocess.PIPE,
        "stdout": subprocess.PIPE,
    }


def weights(run):
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)["model"]


def test_the_example_is_short_and_listed(installed, capsys):
    assert len((PACKAGE / "unfreeze_simsiam.py").read_text().splitlines()) < 120
    assert main(["pretrain", "--help"]) == 0
    assert "simsiam" in capsys.readouterr().out


def test_it_trains_and_its_weights_are_used_by_every_command(installed, tmp_path, capsys):
    run, tuned = tmp_path / "run", tmp_path / "tuned"
    assert main(["pretrain", "digits", "--out", str(run), *SHORT, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 24 and result["best"]["figure"] == "knn"
    assert set(result["figures"]) >= {"effective_rank", "alignment"}
    assert "information" not in result["figures"]  # there are no prototypes
    losses = [r["loss"] for r in read_metrics(run) if r["split"] == "train"]
    assert min(losses) >= -1 and np.mean(losses[-6:]) < np.mean(losses[:6])
    card = json.loads((run / "model/model.json").read_text())
    assert card["provenance"]["method"] == "simsiam"
    assert (run / "report.html").exists() and not (run / "prototypes.npz").exists()

    words = ["finetune", "digits", "--weights", str(run), "--freeze", "all", "--limit", "100"]
    assert main([*words, "--device", "cpu", "--out", str(tuned), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["frozen_unchanged"] is True and result["weights_matched"] == 1
    assert result["val_accuracy"] > 0.3
    for words in (
        ["evaluate", str(tuned), "digits"],
        ["embed", str(run), "digits", "--out", str(tmp_path / "features.npz")],
        ["inspect", str(run / "checkpoints/last.ckpt")],
        ["summary", str(run)],
        ["export", str(run), "--to", "safetensors", "--out", str(tmp_path / "exported")],
        ["report", str(run)],
    ):
        assert main([*words, "--json"]) == 0, words
    capsys.readouterr()


def test_settings_of_other_methods_are_refused(installed, tmp_path, capsys):
    words = ["pretrain", "digits", "--out", str(tmp_path / "run"), *SHORT]
    assert main([*words, "--nmb-prototypes", "30"]) == 2
    assert "--nmb-prototypes has no effect with --method simsiam." in capsys.readouterr().err
    assert main([*words, "--recipe", "swav-100ep"]) == 2
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_what_the_run_will_do(installed, capsys):
    assert main(["pretrain", "digits", *SHORT, "--dry-run", "--json"]) == 0
    captured = capsys.readouterr()
    plan = json.loads(captured.out)
    assert plan["loss"] == {} and plan["memory"]["total"] > 0 and plan["steps"] == 24
    assert "prototypes" not in captured.err and "ln K" not in captured.err


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("gone:SimSiam", "cannot be loaded from gone:SimSiam: No module named 'gone'."),
        ("unfreeze_simsiam:mlp", "is no subclass of unfreeze.tasks.PretrainTask."),
    ],
)
def test_a_package_that_is_broken_is_named(installed, tmp_path, capsys, value, sentence):
    entry = installed / "unfreeze_simsiam-0.1.dist-info/entry_points.txt"
    entry.write_text(f"[unfreeze.tasks]\npretrain.simsiam = {value}\n")
    assert main(["pretrain", "digits", "--out", str(tmp_path / "run"), *SHORT]) == 2
    assert sentence in capsys.readouterr().err
    assert main(["pretrain", "--help"]) == 0  # names are listed without an import


def test_features_that_collapse_end_the_run(installed, tmp_path, capsys):
    """Without "stop-gradient" and predictor SimSiam has a shortcut: one feature for all images."""
    module = installed / "unfreeze_simsiam.py"
    text = module.read_text().replace("part.detach() for part", "part for part")
    text = text.replace("return z, self.predictor(z)", "return z, z")
    # without batch norm at its end nothing else keeps the projections apart
    module.write_text(text.replace("last_norm=True", "last_norm=False"))
    sys.modules.pop("unfreeze_simsiam", None)
    words = ["pretrain", "digits", "--out", str(tmp_path / "run"), *SHORT, "--watch-every", "1"]
    assert main([*words, "--epochs", "12", "--base-lr", "0.03"]) == 5
    assert "so all images have the same features." in capsys.readouterr().err
    assert (tmp_path / "run/checkpoints/last.ckpt").exists()
    sys.modules.pop("unfreeze_simsiam")


def test_gradient_accumulation_is_the_mean_of_its_parts(installed, tmp_path):
    """Without batch norm's statistics of a smaller batch the two would be equal."""
    for name, accumulate in (("one", "1"), ("two", "2")):
        words = ["pretrain", "digits", "--out", str(tmp_path / name), *SHORT]
        assert (
            main(
                [
                    *words,
                    "--accumulate",
                    accumulate,
                ]
            )
            == 0
        )
    losses = [
        [r["loss"] for r in read_metrics(tmp_path / name) if r["split"] == "train"]
        for name in ("one", "two")
    ]
    assert np.allclose(losses[0][0], losses[1][0], atol=0.1)


@pytest.mark.slow
def test_killed_and_resumed_is_straight_to_the_bit(installed, tmp_path):
    words = [
        "-m",
        "unfreeze",
        "pretrain",
        "digits",
        *SHORT,
        "--epochs",
        "20",
    ]
    straight = command(installed, *words, "--out", tmp_path / "straight")
    done = subprocess.run(**straight)
    assert done.returncode == 0, done.stderr
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        **command(installed, *words, "--out", killed, "--checkpoint-every", "1")
    )
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        records = read_metrics(killed) if (killed / "metrics.jsonl").exists() else []
        if max((r["step"] for r in records if r["split"] == "train"), default=0) >= 20:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    resumed = subprocess.run(
        **command(installed, *words, "--out", killed, "--checkpoint-every", "1", "--resume")
    )
    assert resumed.returncode == 0, resumed.stderr
    step = int(re.search(r"Resuming from step (\d+) of 120", resumed.stderr)[1])
    assert 6 <= step < 120
    one, other = weights(tmp_path / "straight"), weights(killed)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("optimizer", ["larc", "adamw", "sgd"])
def test_one_process_equals_two_in_float64(installed, processes, tmp_path, optimizer):
    ours = ("queue_length", "epoch_queue_starts", "freeze_prototypes_niters", "nmb_prototypes")
    changed = {**dict.fromkeys(ours), "method": "simsiam", "optimizer": optimizer, "base_lr": 0.01}
    one = laws.alone(tmp_path / "one", **changed)
    assert one.step == 8
    joined = {name: tensor.numpy() for name, tensor in one.state.model.state_dict().items()}
    two, other = processes(2, laws.trained, tmp_path / "two", changed)
    assert laws.difference(two, other) == 0
    assert laws.difference(joined, two) < 1e-7


@pytest.mark.slow
def test_two_processes_are_one_run(installed, tmp_path):
    # AdamW divides by gradients that are rounding noise before a batch norm; SGD does not
    words = ["pretrain", "digits", *SHORT, "--optimizer", "sgd", "--base-lr", "0.05"]
    one = subprocess.run(**command(installed, "-m", "unfreeze", *words, "--out", tmp_path / "one"))
    assert one.returncode == 0, one.stderr
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two = subprocess.run(
        **command(installed, *launcher, "-m", "unfreeze", *words, "--out", tmp_path / "two")
    )
    assert two.returncode == 0, two.stderr
    losses = [
        [r["loss"] for r in read_metrics(tmp_path / name) if r["split"] == "train"]
        for name in ("one", "two")
    ]
    # the second loss is after an update; rounding grows a thousandfold with each step here
    assert np.allclose(losses[0][:2], losses[1][:2], atol=1e-4) and len(losses[1]) == 24
    assert losses[0][0] != losses[0][1]
    assert "\nprocesses = 2\n" in (tmp_path / "two/config.toml").read_text()
