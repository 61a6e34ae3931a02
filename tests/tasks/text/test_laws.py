"""Laws of runs on texts: resume is a straight run, processes equal one, cached equals uncached."""

from pathlib import Path

import pytest
import torch

import unfreeze
from unfreeze.checkpoints.model_file import load_model
from unfreeze.cli.main import main
from unfreeze.runtime.distributed import Distributed, init_distributed
from unfreeze.runtime.run_folder import read_metrics

FEW = ("--device", "cpu", "--precision", "fp32", "--batch-size", "8")


def tensors(run):
    return load_model(Path(run))[0]


@pytest.mark.parametrize("freeze", [["--unfreeze-at", "1:all", "--freeze", "stage:2"], []])
def test_a_stopped_run_continues_to_the_bit(
    encoder, reviews, tmp_path, stopped_after, run_json, freeze
):
    words = ["finetune", reviews, "--arch", f"hf/{encoder}", *FEW, "--epochs", 3, *freeze]
    straight = run_json(*words, "--out", tmp_path / "straight")
    with stopped_after(17):
        assert main([*map(str, words), "--out", str(tmp_path / "run")]) == 130
    resumed = run_json(*words, "--out", tmp_path / "run", "--resume")
    assert resumed["val_metrics"] == straight["val_metrics"]
    one, other = tensors(tmp_path / "straight"), tensors(tmp_path / "run")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_cached_features_train_the_head_that_the_encoder_trains(
    encoder, reviews, tmp_path, run_json
):
    words = ["finetune", reviews, "--arch", f"hf/{encoder}", *FEW, "--epochs", 4, "--freeze", "all"]
    words += ["--head-solver", "sgd", "--lr", "0.1"]
    for cache in ("off", "features"):
        run_json(*words, "--cache", cache, "--out", tmp_path / cache)
    one, other = tensors(tmp_path / "off"), tensors(tmp_path / "features")
    assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)
    losses = [
        [record["loss"] for record in read_metrics(tmp_path / cache) if record["split"] == "val"]
        for cache in ("off", "features")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def tuned(rank, data, encoder, out):
    world = Distributed() if rank is None else init_distributed("cpu")
    given = {"arch": f"hf/{encoder}", "batch_size": 8, "epochs": 2, "device": "cpu", "lr": 1e-3}
    result = unfreeze.finetune(str(data), out=str(out), precision="fp32", **given)
    return world.world, result.val_accuracy


@pytest.mark.slow
def test_two_processes_equal_one(encoder, reviews, tmp_path, processes):
    """Without dropout, which each process draws for itself."""
    from tests.tasks.text.conftest import make_encoder

    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    plain = make_encoder(tmp_path / "plain", **off)
    _, alone = tuned(None, reviews, plain, tmp_path / "one")
    (world, together), _ = processes(2, tuned, reviews, plain, tmp_path / "two")
    one, other = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert world == 2 and together == pytest.approx(alone, abs=1e-6)
    assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)


def test_the_real_encoder_beats_word_counts(shared, tmp_path, run_json):
    """SST-2 with 200 labels: the frozen MiniLM gives .75 to .79, TF-IDF .62."""
    data, weights = shared / "data/sst2.csv", shared / "weights/minilm-l6"
    pytest.importorskip("transformers")
    result = run_json(
        *("finetune", data, "--weights", weights, "--freeze", "all", "--labels-per-class", 100),
        *("--out", tmp_path / "run", "--device", "cpu"),
    )
    assert result["val_accuracy"] > 0.72 and result["weights_matched"] == 1
