"""Every command of docs/EVALUATING.md is one that this version takes."""

import json
import re
import shlex
from pathlib import Path

import pytest

import unfreeze
from unfreeze.cli.main import main

PAGE = Path(__file__).parents[2] / "docs/EVALUATING.md"
COMMANDS = re.findall(r"^unfreeze (.*)$", PAGE.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def swav(tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluating") / "swav"
    unfreeze.pretrain("digits", out=str(out), arch="unfreeze/tiny", epochs=0, device="cpu")
    return str(out)


def test_there_are_some():
    assert len(COMMANDS) == 8


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(("fine", "compare"))])
def test_it_is_planned_as_written(swav, capsys, command):
    words = ["digits" if word == "photos.zip" else word for word in shlex.split(command)]
    words = [swav if word == "runs/swav" else word for word in words if word != "imagenet"]
    fraction = ["--label-fraction", "0.5"]  # digits are fewer than a batch at 1 %
    assert main([*words, *(fraction if "--label-fraction" in words else []), "--dry-run"]) == 0
    said = capsys.readouterr()
    assert said.err + said.out


def test_the_published_linear_protocol_is_what_is_resolved(swav, capsys):
    command = next(c for c in COMMANDS if "linear-published" in c)
    words = ["digits" if word == "photos.zip" else word for word in shlex.split(command)]
    words = [swav if word == "runs/swav" else word for word in words]
    assert main([*words, "--dry-run", "--json"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    named = ("lr", "weight_decay", "momentum", "batch_size", "epochs", "schedule", "optimizer")
    assert [settings[name] for name in named] == [0.3, 1e-6, 0.9, 256, 100, "cosine", "sgd"]
    assert (settings["cache"], settings["sweep"], settings["val"]) == ("off", "auto", 0)
