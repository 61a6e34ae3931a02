"""Folders whose names are not UTF-8: what libraries refuse to open is opened for them."""

import os
import sys

import numpy as np
import pytest
import torch

from unfreeze.checkpoints.model_file import ModelCard, load_model, save_model
from unfreeze.checkpoints.read import read_checkpoint
from unfreeze.checkpoints.state import load_last, save_last
from unfreeze.cli.main import main
from unfreeze.runtime.utf8_path import utf8_path

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names are text")


@pytest.fixture(params=[b"caf\xe9", b"\xff", b"\xed\xa0\x80"])
def folder(tmp_path, request):
    made = tmp_path / os.fsdecode(request.param)
    made.mkdir()
    return made


def test_the_path_is_utf8_and_reads_the_same_bytes(folder, tmp_path):
    (folder / "a").write_bytes(b"123")
    with utf8_path(folder / "a") as path:
        str(path).encode("utf-8")
        assert path.read_bytes() == b"123"
    plain = tmp_path / "plain"
    with utf8_path(plain) as path:  # need not exist
        assert path == plain
    with pytest.raises(FileNotFoundError), utf8_path(folder / "gone"):
        pass


def test_models_weights_and_checkpoints(folder):
    card = ModelCard(kind="backbone", arch="unfreeze/tiny", stem="small", preprocess={})
    save_model(folder / "model", {"a": torch.arange(3.0)}, card)
    assert torch.equal(load_model(folder)[0]["a"], torch.arange(3.0))
    contents = read_checkpoint(folder / "model/model.safetensors")
    assert torch.equal(contents.tensors["a"], torch.arange(3.0))
    for step in (1, 2):  # the second looks whether the first is whole, by a map of the file
        save_last(folder, {"kind": "pretrain", "step": step, "model": {"a": torch.ones(2)}})
    assert load_last(folder, "pretrain")[0]["step"] == 2
    assert (folder / "before.ckpt").exists()


def test_a_run_is_used_by_every_command(folder, monkeypatch, capsys):
    monkeypatch.setenv("UNFREEZE_CACHE", str(folder / "cache"))
    run, data = str(folder / "run"), ["digits", "--limit", "60", "--device", "cpu"]
    small = ["--arch", "unfreeze/tiny", "--image-size", "16", "--epochs", "1"]
    frozen = ["--weights", run, "--freeze", "all"]
    for words in (
        ["pretrain", *data, *small, "--out", run, "--store", "disk"],
        ["finetune", *data, *frozen, "--out", str(folder / "tuned")],
        ["evaluate", str(folder / "tuned"), "digits"],
        ["embed", run, "digits", "--out", str(folder / "f.npz")],
        ["summary", run],
        ["inspect", f"{run}/checkpoints/last.ckpt"],
        ["export", run, "--to", "safetensors", "--out", str(folder / "safetensors")],
        ["export", run, "--to", "torchscript", "--out", str(folder / "torchscript")],
        ["export", run, "--to", "onnx", "--out", str(folder / "onnx")],
        ["report", run],
    ):
        code = main([*words, "--json"])
        assert code == 0, (words, capsys.readouterr().err)
    assert len(np.load(folder / "f.npz")["features"]) > 0
