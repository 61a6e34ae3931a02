"""Laws of runs with several labels: resume is exact, cached is uncached, processes equal one."""

import json

import pytest
import torch
from tests.tasks.multilabel.conftest import TINY, weights

import unfreeze
from unfreeze.cli.main import main
from unfreeze.runtime.distributed import Distributed, init_distributed

MORE = ["--ema", "0.9", "--loss", "asymmetric", "--select", "metric", "--epochs", "4"]


def thresholds(run):
    return json.loads((run / "model/model.json").read_text())["task_state"]["thresholds"]


def test_a_stopped_run_continues_to_the_bit(coloured_patches, tmp_path, stopped_after, run_json):
    words = ["finetune", coloured_patches / "names.csv", *TINY, *MORE, "--sampling", "balanced"]
    straight = run_json(*words, "--out", tmp_path / "straight")
    with stopped_after(11):
        assert main([*map(str, words), "--out", str(tmp_path / "run")]) == 130
    assert thresholds(tmp_path / "run") == []  # chosen at the end
    resumed = run_json(*words, "--out", tmp_path / "run", "--resume")
    assert resumed["val_metrics"] == straight["val_metrics"]
    one, other = weights(tmp_path / "straight"), weights(tmp_path / "run")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert thresholds(tmp_path / "run") == thresholds(tmp_path / "straight") != []


def test_cached_features_train_what_images_train(coloured_patches, tmp_path, run_json):
    words = ["finetune", coloured_patches / "names.csv", *TINY, "--freeze", "all"]
    results = {}
    for cache in ("features", "off"):
        run = tmp_path / cache
        results[cache] = run_json(*words, "--cache", cache, "--out", run)
    cached, plain = weights(tmp_path / "features"), weights(tmp_path / "off")
    assert all(torch.allclose(cached[name], plain[name], atol=1e-5) for name in cached)
    assert results["features"]["val_map"] == pytest.approx(results["off"]["val_map"], abs=1e-6)
    assert results["features"]["frozen_unchanged"] is True


def tuned(rank, data, out):
    world = Distributed() if rank is None else init_distributed("cpu")
    # statistics of batch norms would be synchronised in float32, so they are frozen
    given = {"arch": "unfreeze/tiny", "weights": "none", "freeze": "norms", "augment": "none"}
    given |= {"batch_size": 16, "epochs": 3, "device": "cpu", "task": "multilabel"}
    given["optimizer"] = "sgd"  # AdamW's steps magnify rounding
    result = unfreeze.finetune(str(data), out=str(out), precision="fp32", **given)
    return world.world, result.val_map


@pytest.mark.slow
def test_two_processes_equal_one(coloured_patches, tmp_path, processes):
    data = coloured_patches / "names.csv"
    _, alone = tuned(None, data, tmp_path / "one")
    (world, together), _ = processes(2, tuned, data, tmp_path / "two")
    one, other = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert world == 2 and together == pytest.approx(alone, rel=1e-3)
    assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)
    mine, theirs = thresholds(tmp_path / "one"), thresholds(tmp_path / "two")
    assert [t[1] for t in mine] == [t[1] for t in theirs]
    assert [t[0] for t in mine] == pytest.approx([t[0] for t in theirs], abs=1e-3)
