"""`pretrain --method distill`, through the command line."""

import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from unfreeze.checkpoints.model_file import ModelCard, save_model
from unfreeze.cli.main import main
from unfreeze.config.pretrain import PretrainSettings
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.data.index.index import TRAIN, build_index
from unfreeze.data.sources.open import open_source
from unfreeze.errors import WeightsError
from unfreeze.models.build import build
from unfreeze.models.head import remove_head
from unfreeze.runs.pretraining import teacher_features as passes
from unfreeze.runs.pretraining.teacher import load_teacher
from unfreeze.runtime import time_limit
from unfreeze.runtime.console import QuietConsole
from unfreeze.runtime.distributed import Distributed
from unfreeze.runtime.run_folder import read_metrics
from unfreeze.transfer.predictor import InferenceNetwork

STUDENT = [
    *("--method", "distill", "--arch", "unfreeze/tiny", "--image-size", "16", "--limit", "96"),
    *("--batch-size", "16", "--epochs", "3", "--device", "cpu", "--precision", "fp32"),
    *("--feat-dim", "16", "--hidden-mlp", "32", "--tune", "off", "--workers", "0"),
]


def network(seed=0):
    """A small network whose batch norm has seen images."""
    torch.manual_seed(seed)
    model = build("unfreeze/tiny")
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(8, 3, 24, 24))
    return model.eval()


@pytest.fixture
def teacher(tmp_path):
    """A run with a size and a normalisation of its own."""
    model, folder = network(), tmp_path / "teacher"
    remove_head(model)
    own = Preprocess(24, 28, "bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    origin = {"verb": "pretrain", "steps": 3, "init": "none", "licence": "Free for all."}
    card = ModelCard("backbone", "unfreeze/tiny", preprocess=own.as_dict(), provenance=origin)
    save_model(folder / "model", model.state_dict(), card)
    return folder


def pretrain(out, teacher, *words):
    return main(["pretrain", "digits", *STUDENT, "--teacher", str(teacher), "--out", str(out),
                 *words])  # fmt: skip


@pytest.fixture
def passed(monkeypatch):
    """The number of images that teachers have seen."""
    seen, original = [], InferenceNetwork.outputs

    def outputs(self, *args, **options):
        for batch in original(self, *args, **options):
            seen.append(len(batch))
            yield batch

    monkeypatch.setattr(InferenceNetwork, "outputs", outputs)
    return seen


def test_a_student_learns_and_is_used_by_every_command(tmp_path, teacher, passed, capsys):
    run = tmp_path / "run"
    assert pretrain(run, teacher, "--watch-every", "1", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 18 and sum(passed) == 96
    assert 0 < result["knn"]["teacher"] <= 1 and result["knn"]["total"] == 96
    losses = [r["loss"] for r in read_metrics(run) if r["split"] == "train"]
    assert max(losses) <= 2 and np.mean(losses[-6:]) < np.mean(losses[:6]) - 0.05
    card = json.loads((run / "model/model.json").read_text())
    origin = card["provenance"]
    assert origin["method"] == "distill" and origin["teacher"] == str(teacher)
    assert origin["teacher_licence"] == "Free for all." and len(origin["teacher_sha256"]) == 64
    assert "steps" in origin and card["arch"] == "unfreeze/tiny"
    for words in (
        ["embed", str(run), "digits", "--out", str(tmp_path / "features.npz")],
        ["inspect", str(run / "checkpoints/last.ckpt")],
        ["report", str(run)],
        ["summary", str(run)],
    ):
        assert main([*words, "--json"]) == 0, words
    # the student of a student: a pretraining run is a teacher
    assert pretrain(tmp_path / "second", run, "--epochs", "1") == 0


def test_features_are_those_of_embed_and_are_computed_once(tmp_path, teacher, passed, capsys):
    """With the teacher's own size and normalisation, from the whole image."""
    assert main(["embed", str(teacher), "digits", "--split", "train", "--out",
                 str(tmp_path / "f.npz"), "--device", "cpu"]) == 0  # fmt: skip
    passed.clear()
    index = build_index(open_source("digits"))
    index = index.take(np.flatnonzero(index.splits == TRAIN))
    loaded = load_teacher(PretrainSettings(method="distill", teacher=str(teacher)))

    def features():
        return passes.teacher_features(
            loaded, index, torch.device("cpu"), Distributed(), QuietConsole()
        )

    embedded = np.load(tmp_path / "f.npz")
    assert embedded["paths"].tolist() == index.paths
    values = torch.cat(list(features().parts)).numpy()
    assert np.allclose(values, embedded["features"], atol=1e-5)
    assert sum(passed) == len(index)
    again = torch.cat(list(features().parts)).numpy()
    assert np.array_equal(values, again) and sum(passed) == len(index)


def test_an_interrupted_pass_continues(tmp_path, teacher, monkeypatch, capsys):
    monkeypatch.setattr(passes, "PASS_PIXELS", {"cpu": 24 * 24 * 8})  # 8 images
    monkeypatch.setattr(passes, "CHUNK", 1)  # a chunk each
    seen, original = [], InferenceNetwork.outputs

    def outputs(self, *args, **options):
        for batch in original(self, *args, **options):
            seen.append(len(batch))
            if len(seen) == 5:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(InferenceNetwork, "outputs", outputs)
    assert pretrain(tmp_path / "run", teacher) == 130
    assert not (tmp_path / "run").exists()
    assert pretrain(tmp_path / "run", teacher, "--epochs", "1") == 0
    assert sum(seen) == 8 + 96  # the batch that was lost, and each image once


def test_a_pass_ends_before_the_time_limit_and_goes_on(tmp_path, teacher, monkeypatch, capsys):
    monkeypatch.setattr(passes, "PASS_PIXELS", {"cpu": 24 * 24 * 8})  # 8 images
    monkeypatch.setattr(passes, "CHUNK", 1)  # a chunk each
    monkeypatch.setattr(time_limit, "process_start", time.monotonic)  # the tests' process is older
    seen, original = [], InferenceNetwork.outputs

    def outputs(self, *args, **options):
        for batch in original(self, *args, **options):
            seen.append(len(batch))
            time.sleep(1.0)
            yield batch

    monkeypatch.setattr(InferenceNetwork, "outputs", outputs)
    assert pretrain(tmp_path / "run", teacher, "--time-limit", "6s") == 130
    assert "Stopped by --time-limit while" in capsys.readouterr().err
    assert 8 <= sum(seen) < 96 and not (tmp_path / "run").exists()
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert pretrain(tmp_path / "run", teacher, "--epochs", "1") == 0
    assert sum(seen) <= 8 + 96  # at most one batch was lost


def test_a_dry_run_says_what_the_teacher_costs_and_writes_nothing(tmp_path, teacher, capsys):
    words = ["pretrain", "digits", *STUDENT, "--dry-run", "--json", "--teacher"]
    before = sorted(tmp_path.rglob("*"))
    assert main([*words, str(teacher)]) == 0
    reasons = json.loads(capsys.readouterr().out)["reasons"]
    assert "each image once, at 24x24; 128 features, 0.0 MiB" in reasons["teacher_features"]
    assert reasons["teacher_licence"] == "Free for all."
    # a name: nothing is downloaded
    assert main([*words, "timm/mobilenetv3_small_050"]) == 0
    reasons = json.loads(capsys.readouterr().out)["reasons"]
    assert reasons["teacher"] == "not fetched in a dry run"
    assert "at 224x224" in reasons["teacher_features"]
    assert sorted(tmp_path.rglob("*")) == before


def refused(capsys, code, *words):
    capsys.readouterr()
    assert main(["pretrain", "digits", *map(str, words)]) == code, capsys.readouterr().err
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error[error.index("error:") :]


def test_a_teacher_and_its_method_need_each_other(tmp_path, teacher, capsys):
    out = ["--out", tmp_path / "run"]
    assert "--method distill needs a teacher." in refused(capsys, 2, *STUDENT, *out)
    error = refused(capsys, 2, "--teacher", teacher, *out)
    assert "--teacher has no effect with --method swav." in error
    ready = [*STUDENT, *out, "--teacher", teacher]
    error = refused(capsys, 2, *ready, "--nmb-prototypes", "30")
    assert "--nmb-prototypes has no effect with --method distill." in error
    assert "--recipe swav-100ep is for --method swav." in refused(
        capsys, 2, *ready, "--recipe", "swav-100ep"
    )
    assert "contradicts" in refused(capsys, 2, *ready, "--teacher-arch", "resnet18")
    assert not (tmp_path / "run").exists()


def test_what_cannot_teach_is_refused_by_name(tmp_path, teacher, capsys):
    ready = [*STUDENT, "--out", tmp_path / "run", "--teacher"]
    error = refused(capsys, 4, *ready, tmp_path / "gone.pth")
    assert "There is no teacher" in error and "no such file" in error
    assert "There is no teacher resnet1800" in refused(capsys, 4, *ready, "resnet1800")
    # our own architectures have no published weights: never a random teacher
    assert "unfreeze/small" in refused(capsys, 4, *ready, "unfreeze/small")
    (tmp_path / "damaged.pth").write_bytes(b"PK\x03\x04" + bytes(1000))
    assert "damaged.pth" in refused(capsys, 4, *ready, tmp_path / "damaged.pth")
    (teacher / "model/model.safetensors").write_bytes(b"\x00" * 100)
    assert "is damaged" in refused(capsys, 4, *ready, teacher)
    assert not (tmp_path / "run").exists()


def test_an_untrained_teacher_is_refused(tmp_path, capsys):
    ready = [*STUDENT, "--out", tmp_path / "run", "--teacher"]
    words = ["pretrain", "digits", "--limit", "64", "--arch", "unfreeze/tiny", "--epochs", "0"]
    assert main([*words, "--device", "cpu", "--out", str(tmp_path / "start")]) == 0
    assert "was never trained" in refused(capsys, 4, *ready, tmp_path / "start")
    torch.save(build("torchvision/resnet18").state_dict(), tmp_path / "random.pth")
    assert "was never trained" in refused(capsys, 4, *ready, tmp_path / "random.pth")
    incomplete = network().state_dict()
    del incomplete["stem.0.weight"]
    torch.save(incomplete, tmp_path / "part.pth")
    error = refused(capsys, 4, *ready, tmp_path / "part.pth", "--teacher-arch", "unfreeze/tiny")
    assert "lacks 1 of its parameters, the first: stem.0.weight" in error


def test_a_file_needs_its_own_architecture_not_the_students(tmp_path, monkeypatch, capsys):
    def unknown(spec, arch=None):
        raise WeightsError(f"{spec} matches no known architecture.", "Name it with --arch.")

    monkeypatch.setattr("unfreeze.runs.pretraining.teacher.arch_of_weights", unknown)
    torch.save(network().state_dict(), tmp_path / "odd.pth")
    error = refused(
        capsys, 4, *STUDENT, "--out", tmp_path / "run", "--teacher", tmp_path / "odd.pth"
    )
    assert "Add --teacher-arch NAME" in error and "--arch." not in error


def test_the_architecture_of_a_file_can_be_named(tmp_path):
    torch.save(network().state_dict(), tmp_path / "tiny.pth")
    # it states no preprocessing, so it sees 224 pixels: few images
    words = (
        "--epochs",
        "1",
        "--limit",
        "4",
        "--batch-size",
        "4",
        "--teacher-arch",
        "unfreeze/tiny",
    )
    assert pretrain(tmp_path / "run", tmp_path / "tiny.pth", *words, "--watch-every", "0") == 0


def test_a_teacher_may_move_but_not_change_before_a_resume(tmp_path, teacher, capsys):
    run, moved = tmp_path / "run", tmp_path / "moved"
    assert pretrain(run, teacher, "--checkpoint-every", "1") == 0
    teacher.rename(moved)
    assert pretrain(run, moved, "--resume") == 0
    capsys.readouterr()
    model = network(seed=5)
    remove_head(model)
    card = json.loads((moved / "model/model.json").read_text())
    fresh = ModelCard(
        "backbone", "unfreeze/tiny", preprocess=card["preprocess"], provenance=card["provenance"]
    )
    save_model(moved / "model", model.state_dict(), fresh)
    assert pretrain(run, moved, "--resume") == 4
    assert "changed since the checkpoint" in capsys.readouterr().err


def test_the_budget_counts_the_teachers_pass(tmp_path, teacher, monkeypatch, capsys):
    monkeypatch.setattr("unfreeze.runs.time_budget.pass_seconds", lambda *_: 3600.0)
    words = [*STUDENT, "--teacher", teacher, "--dry-run", "--time-budget", "1h"]
    assert "Not even one epoch" in refused(capsys, 2, *words)


@pytest.mark.slow
def test_a_real_teacher_of_another_size_and_library(tmp_path, shared, capsys):
    weights = shared / "weights/efficientnet-lite0-imagenet.pth"
    words = ["pretrain", str(shared / "data/cifar10.zip"), *STUDENT, "--limit", "48"]
    words += ["--teacher", str(weights), "--out", str(tmp_path / "run"), "--json"]
    assert main([*words, "--watch-every", "1"]) == 0
    captured = capsys.readouterr()
    assert "each image once, at 224x224; 1,280 features" in captured.err
    card = json.loads((tmp_path / "run/model/model.json").read_text())
    assert card["provenance"]["teacher_arch"] == "timm/tf_efficientnet_lite0"


@pytest.mark.slow
def test_killed_and_resumed_is_straight_to_the_bit(tmp_path, teacher):
    def command(out):
        words = ["pretrain", "digits", *STUDENT, "--epochs", "20", "--checkpoint-every", "1"]
        return [sys.executable, "-m", "unfreeze", *words, "--teacher", str(teacher), "--out", out]

    done = subprocess.run(command(str(tmp_path / "straight")), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    killed = tmp_path / "killed"
    process = subprocess.Popen(command(str(killed)), stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        records = read_metrics(killed) if (killed / "metrics.jsonl").exists() else []
        if max((r["step"] for r in records if r["split"] == "train"), default=0) >= 20:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    resumed = subprocess.run([*command(str(killed)), "--resume"], capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert 6 <= int(re.search(r"Resuming from step (\d+) of 120", resumed.stderr)[1]) < 120
    one, other = (
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["model"]
        for folder in (tmp_path / "straight", killed)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
