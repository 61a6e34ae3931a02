"""What licences and teachers demand follows the weights through every run that uses them."""

import json
import shutil
import tomllib

import pytest
import torch

import unfreeze
from unfreeze.checkpoints.model_file import ModelCard, load_model, save_model
from unfreeze.cli.main import main
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.models.build import build
from unfreeze.models.head import remove_head
from unfreeze.models.weight_sources import LICENCE

TERMS = {"licence": LICENCE, "teacher": "big", "teacher_licence": "Not for weapons."}
QUICK = {"arch": "unfreeze/tiny", "device": "cpu", "workers": 0}


@pytest.fixture
def start(tmp_path):
    """A run whose weights have terms."""
    torch.manual_seed(0)
    model = build("unfreeze/tiny")
    remove_head(model)
    origin = {"verb": "pretrain", "steps": 3, "init": "none", **TERMS}
    preprocess = Preprocess(12, 12).as_dict()
    card = ModelCard("backbone", "unfreeze/tiny", preprocess=preprocess, provenance=origin)
    save_model(tmp_path / "start/model", model.state_dict(), card)
    return tmp_path / "start"


def pretrain(data, out, init):
    unfreeze.pretrain(
        str(data), init=str(init), out=str(out), epochs=1, batch_size=8, precision="fp32",
        nmb_prototypes=4, on_collapse="ignore", tune="off", **QUICK,
    )  # fmt: skip


def finetune(data, out, weights, **options):
    unfreeze.finetune(str(data), weights=str(weights), out=str(out), epochs=1, **options, **QUICK)


def inspected(path, capsys):
    assert main(["inspect", str(path), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["licence"]


def test_from_run_to_run_checkpoint_and_lone_file(start, tmp_path, coloured, capsys):
    data = coloured("data", {"red": 8, "blue": 8})
    pretrain(data, tmp_path / "more", start)
    finetune(data, tmp_path / "tuned", tmp_path / "more/checkpoints/last.ckpt")
    lone = tmp_path / "lone.safetensors"
    shutil.copy(tmp_path / "tuned/model/model.safetensors", lone)
    finetune(data, tmp_path / "again", lone)
    finetune(data, tmp_path / "last", tmp_path / "again/checkpoints/last.ckpt")
    for run in ("more", "tuned", "again", "last"):
        _, card = load_model(tmp_path / run)
        assert TERMS.items() <= card.provenance.items(), run
        reasons = tomllib.loads((tmp_path / run / "config.toml").read_text())["reasons"]
        assert reasons["licence"] == LICENCE, run
        assert reasons["teacher_licence"] == TERMS["teacher_licence"], run
        readme = (tmp_path / run / "model/README.md").read_text()
        assert "license: cc-by-nc-4.0" in readme and "| licence of the teacher | Not" in readme
        for path in (tmp_path / run, tmp_path / run / "checkpoints/last.ckpt"):
            assert inspected(path, capsys) == f"{LICENCE} Not for weapons.", path
    assert inspected(lone, capsys) == f"{LICENCE} Not for weapons."


def test_an_export_states_both_licences(start, tmp_path, coloured):
    data = coloured("data", {"red": 8, "blue": 8})
    finetune(data, tmp_path / "tuned", start)
    unfreeze.export(str(tmp_path / "tuned"), "safetensors", out=str(tmp_path / "given"))
    assert f"**{LICENCE} Not for weapons.**" in (tmp_path / "given/README.md").read_text()


def test_weights_without_terms_add_none(tmp_path, coloured, capsys):
    data = coloured("data", {"red": 8, "blue": 8})
    finetune(data, tmp_path / "own", "none")
    _, card = load_model(tmp_path / "own")
    assert not card.terms and "licence" not in card.provenance
    assert inspected(tmp_path / "own", capsys) == ""
