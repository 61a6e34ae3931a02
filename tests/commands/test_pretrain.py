"""`pretrain` as people call it: what it writes, plans and refuses."""

import html
import json
import subprocess
import sys
import tomllib
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

import unfreeze
from unfreeze.checkpoints.model_file import load_model
from unfreeze.commands.pretrain import PretrainPlan
from unfreeze.data.loading.dataset import ImageDataset
from unfreeze.errors import DataError, UsageError, WeightsError
from unfreeze.models.build import build as build_network
from unfreeze.reports.bottleneck import ThroughputSettings, bottleneck
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.training.trainer import Trainer

QUICK = {"epochs": 2, "limit": 200, "device": "cpu", "nmb_prototypes": 16}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain") / "run"
    return unfreeze.pretrain("digits", out=str(folder), augment="digits", **QUICK), folder


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for k in range(24):
            file = tmp_path / f"{k}.png"
            Image.fromarray(rng.integers(0, 256, (40, 30, 3), np.uint8)).save(file)
            archive.write(file, f"holiday/{k}.png")
            file.unlink()
        archive.writestr("holiday/broken.jpg", b"<html>not found</html>")
        archive.writestr("readme.txt", "hello")
    return path


@pytest.mark.real_charts
def test_everything_the_contract_names_is_written(run):
    result, folder = run
    for name in (
        "config.toml",
        "metrics.jsonl",
        "log.txt",
        "problems.csv",
        "split.csv",
        "curves.png",
        "report.html",
        "checkpoints/last.ckpt",
        "model/model.safetensors",
        "model/model.json",
    ):
        assert (folder / name).stat().st_size > 0, name
    assert (result.images, result.epochs, result.processes) == (200, 2, 1)
    records = RunFolder(folder).metrics()
    assert result.steps == len([r for r in records if r["split"] == "train"])
    assert result.loss > 0 and result.model == str(folder / "model")
    # pretrain reads train only where there are splits
    lines = (folder / "split.csv").read_text().splitlines()
    assert len(lines) == 201 and all(line.startswith("train/") for line in lines[1:])


def test_the_settings_written_are_the_settings_used(run):
    _, folder = run
    written = tomllib.loads((folder / "config.toml").read_text())
    assert written["epochs"] == 2 and written["arch"] == "unfreeze/tiny"
    assert written["facts"]["threads"] == torch.get_num_threads()
    assert set(written["reasons"]) >= {"arch", "batch_size", "base_lr", "queue_length"}
    state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert state["settings"]["nmb_prototypes"] == 16 == len(state["model"]["prototypes.weight"])
    assert {"epoch", "loss", "metrics", "step", "optimizer"} <= set(state)


def test_the_model_has_plain_names_and_is_the_trained_one(run):
    _, folder = run
    tensors, card = load_model(folder)
    network = build_network(card.arch, stem=card.stem)
    names = {name for name in network.state_dict() if not name.startswith("head.")}
    assert set(tensors) == names and card.kind == "backbone"
    state = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["model"]
    assert all(torch.equal(tensors[n], state[f"backbone.{n}"]) for n in tensors)


def test_zero_epochs_write_the_untrained_start(tmp_path):
    result = unfreeze.pretrain("digits", out=str(tmp_path / "run"), **{**QUICK, "epochs": 0})
    assert result.steps == 0 and result.loss is None
    assert (tmp_path / "run/checkpoints/last.ckpt").exists()
    one = unfreeze.pretrain("digits", out=str(tmp_path / "one"), seed=1, **{**QUICK, "epochs": 0})
    same = unfreeze.pretrain("digits", out=str(tmp_path / "same"), **{**QUICK, "epochs": 0})
    (a, _), (b, _), (c, _) = (load_model(r.run) for r in (result, one, same))
    assert torch.equal(a["stem.0.weight"], c["stem.0.weight"])
    assert not torch.equal(a["stem.0.weight"], b["stem.0.weight"])


def test_broken_files_are_left_out_and_named(photos, tmp_path):
    result = unfreeze.pretrain(
        str(photos), out=str(tmp_path / "run"), epochs=1, batch_size=8, device="cpu"
    )
    assert result.images == 24 and result.arch == "unfreeze/small"
    problems = (tmp_path / "run/problems.csv").read_text().splitlines()
    assert len(problems) == 2 and "broken.jpg" in problems[1]


def test_a_dry_run_plans_with_reasons_and_touches_nothing(photos, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    planned = unfreeze.pretrain(str(photos), dry_run=True)
    assert isinstance(planned, PretrainPlan) and planned.images == 25
    assert planned.reasons["nmb_prototypes"] and json.dumps(planned.settings)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_start_from_another_run_and_from_another_architecture(run, tmp_path):
    _, folder = run
    started = unfreeze.pretrain(
        "digits",
        out=str(tmp_path / "go"),
        init=str(folder),
        arch="unfreeze/tiny",
        **{**QUICK, "epochs": 0},
    )
    (mine, _), (theirs, _) = load_model(started.run), load_model(folder)
    assert all(torch.equal(mine[n], theirs[n]) for n in theirs)
    with pytest.raises(WeightsError) as error:
        unfreeze.pretrain(
            "digits", out=str(tmp_path / "no"), init=str(folder), arch="unfreeze/small", **QUICK
        )
    assert error.value.exit_code == 4 and not (tmp_path / "no").exists()


@pytest.mark.parametrize("images", [0, 1])
def test_too_little_data_is_a_data_error_and_leaves_no_folder(tmp_path, images):
    data = tmp_path / "data"
    data.mkdir()
    for k in range(images):
        Image.new("RGB", (20, 20)).save(data / f"{k}.png")
    with pytest.raises(DataError) as error:
        unfreeze.pretrain(str(data), out=str(tmp_path / "run"))
    assert error.value.exit_code == 3 and error.value.next_step
    assert not (tmp_path / "run").exists()


def test_a_used_folder_is_refused_and_kept_even_when_the_data_is_wrong(run, tmp_path):
    _, folder = run
    with pytest.raises(UsageError, match="not empty"):
        unfreeze.pretrain("digits", out=str(folder), **QUICK)
    with pytest.raises(DataError):
        unfreeze.pretrain(str(tmp_path / "nowhere"), out=str(folder), overwrite=True, **QUICK)
    assert (folder / "model/model.json").exists()


def test_a_file_that_is_lost_saves_the_run_first(photos, tmp_path, monkeypatch):
    step = Trainer.train_step

    def losing(self, batch):
        found = step(self, batch)
        if self.step == 3:
            monkeypatch.setattr(ImageDataset, "_decode", gone)
        return found

    def gone(self, row):
        raise OSError("gone")

    options = {"arch": "unfreeze/tiny", "image_size": 16, "epochs": 4, "batch_size": 8}
    options |= {"device": "cpu", "store_budget": 0, "checkpoint_every": 9}
    monkeypatch.setattr("unfreeze.data.loading.dataset._PAUSES", ())
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", losing)
        with pytest.raises(DataError, match="in three attempts: gone"):
            unfreeze.pretrain(str(photos), out=str(tmp_path / "run"), **options)
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert state["step"] == 4


def test_a_start_without_a_checkpoint_records_no_step_twice(photos, tmp_path):
    run = RunFolder.create(tmp_path / "run")
    run.metric({"step": 1, "split": "train", "loss": 9.0})
    options = {"arch": "unfreeze/tiny", "image_size": 16, "epochs": 1, "batch_size": 8}
    unfreeze.pretrain(str(photos), out=str(run.path), resume="auto", device="cpu", **options)
    steps = [record["step"] for record in run.metrics() if record["split"] == "train"]
    assert steps == [1, 2, 3]
    assert "No checkpoint" in run.file("log.txt").read_text()


def test_a_dry_run_fetches_nothing(photos, tmp_path):
    with pytest.raises(DataError, match="a dry run downloads nothing"):
        unfreeze.pretrain("cifar10", data_root=str(tmp_path / "root"), dry_run=True)
    assert not (tmp_path / "root").exists()
    found = unfreeze.pretrain(str(photos), arch="resnet18", init="imagenet", dry_run=True)
    assert found.reasons["init"] == "not fetched in a dry run"


def test_resuming_another_verbs_run_is_said(run):
    _, folder = run
    with pytest.raises(UsageError, match="another command"):
        unfreeze.finetune("digits", out=str(folder), resume=True)


def test_what_draws_is_not_loaded_by_what_plans():
    # matplotlib writes a cache of fonts on import; a dry run touches no file
    code = "import sys, unfreeze.commands.demo; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_run_names_its_bottleneck_at_the_end(run):
    _, folder = run
    written = bottleneck(
        RunFolder(folder).metrics(),
        ThroughputSettings.of(tomllib.loads((folder / "config.toml").read_text())["facts"]),
    )
    assert " % of the time" in written and ": " in written
    assert (folder / "log.txt").read_text().rstrip().endswith(written)
    assert written in html.unescape((folder / "report.html").read_text())


def test_time_and_memory_are_said_before_a_run(tmp_path):
    out = tmp_path / "run"
    unfreeze.pretrain("digits", out=str(out), limit=32, epochs=1, device="cpu", tune="off")
    log = (out / "log.txt").read_text()
    assert "Time: about a minute or less." in log and "Memory: about " in log
