"""What the field expects of training, through the real verb: each option does what it says."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from unfreeze.checkpoints.state import load_state, save_state
from unfreeze.cli.main import main
from unfreeze.commands.evaluate import evaluate
from unfreeze.commands.finetune import finetune
from unfreeze.data.index.splits import read_split_csv
from unfreeze.errors import Interrupted, UsageError
from unfreeze.runtime.run_folder import read_metrics

pytestmark = pytest.mark.usefixtures("no_drawing")
TINY = {"arch": "unfreeze/tiny", "weights": "none", "precision": "fp32", "epochs": 2}
TINY |= {"select": "accuracy"}  # though few images are held out
EVERYTHING = {
    "label_smoothing": 0.1,
    "class_weights": "sqrt",
    "mixup": 0.2,
    "cutmix": 1.0,
    "clip_grad": 1.0,
    "accumulate": 2,
    "ema": 0.9,
    "augment": "trivialaugment",
}


@pytest.fixture(scope="module")
def data(colours, tmp_path_factory):
    return str(colours(tmp_path_factory.mktemp("d") / "c", {"red": 20, "green": 8, "blue": 6}))


@pytest.fixture
def tune(data, tmp_path):
    def make(name, **options):
        return finetune(data, out=str(tmp_path / name), **{**TINY, **options})

    return make


def weights(result):
    return load_file(f"{result.model}/model.safetensors")


def config(result):
    return tomllib.loads(Path(result.run, "config.toml").read_text())


def same(one, other):
    left, right = weights(one), weights(other)
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("option", [*EVERYTHING, "sampling"])
def test_every_option_changes_what_is_learned(tune, option):
    value = {**EVERYTHING, "sampling": "balanced"}[option]
    plain = tune("plain")
    changed = tune("changed", **{option: value})
    assert not same(plain, changed)
    assert config(changed)[option] == value


def test_all_together_stopped_and_resumed_is_the_straight_run(tune, stopped_after):
    options = {**EVERYTHING, "epochs": 4}
    straight = tune("straight", **options)
    with stopped_after(10), pytest.raises(Interrupted):
        tune("broken", **options)
    resumed = tune("broken", resume="yes", **options)
    assert same(straight, resumed)
    with pytest.raises(UsageError, match=r"started with mixup=0.2 and cannot resume with 0.4"):
        tune("broken", resume="yes", **{**options, "mixup": 0.4})


def test_a_run_from_before_an_option_was_there_goes_on(tune, tmp_path, stopped_after):
    with stopped_after(2), pytest.raises(Interrupted):
        tune("old")
    last = tmp_path / "old/checkpoints/last.ckpt"
    state = load_state(last)
    for name in (*EVERYTHING, "sampling", "find_lr"):
        if name != "augment":
            del state["settings"][name]
    del state["asked"]
    save_state(last, {name: value for name, value in state.items() if name != "format"})
    assert same(tune("old", resume="yes"), tune("straight"))


def test_class_weights_are_on_record_and_follow_the_training_images(tune):
    result = tune("weighted", class_weights="balanced")
    rows = [r.label for r in read_split_csv(f"{result.run}/split.csv") if r.split == "train"]
    counts = np.array([rows.count(name) for name in result.classes])
    assert config(result)["facts"]["class_weights"] == pytest.approx(
        (len(rows) / (3 * counts)).tolist()
    )


def test_the_average_is_what_travels_and_the_last_epoch_has_its_own(tune, data):
    result = tune("averaged", ema=0.8, epochs=3)
    best = load_state(f"{result.run}/checkpoints/best.ckpt")
    written = weights(result)
    assert all(torch.equal(best["average"][name], value) for name, value in written.items())
    assert not torch.equal(best["model"]["head.weight"], written["head.weight"])
    lines = [m for m in read_metrics(result.run) if m["split"] == "val"]
    chosen = next(m for m in lines if m["epoch"] == result.best_epoch)
    found = evaluate(result.run, data, split="val")
    assert found.accuracy == chosen["accuracy"] == result.val_accuracy


@pytest.mark.parametrize("cache", ["features", "activations"])
def test_what_froze_after_it_moved_is_judged_as_it_is_kept(tune, data, cache):
    """The average goes on towards it, so features of the weights themselves are not its own."""
    options = {"unfreeze_at": "2:-all", "ema": 0.9, "augment": "none", "epochs": 5, "lr": 0.005}
    kept, plain = (tune(c, cache=c, **options) for c in (cache, "off"))
    assert config(kept)["cache"] == cache
    losses = [
        [m["loss"] for m in read_metrics(one.run) if m["split"] == "val"] for one in (kept, plain)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    left, right = weights(kept), weights(plain)
    assert kept.best_epoch == plain.best_epoch
    assert all(torch.allclose(left[n].float(), right[n].float(), atol=1e-4) for n in left)
    found = evaluate(kept.run, data, split="val")
    assert found.loss == pytest.approx(losses[0][kept.best_epoch], rel=1e-5)


def test_options_that_contradict_are_refused_in_words(tune):
    with pytest.raises(UsageError, match="both correct class imbalance"):
        tune("a", sampling="balanced", class_weights="sqrt")
    with pytest.raises(UsageError, match="new images in each step"):
        tune("b", mixup=0.2, cache="features", freeze="all")
    with pytest.raises(UsageError, match="find_lr=True and lr exclude each other"):
        tune("c", find_lr=True, lr=0.1)


def test_mixing_keeps_no_features_and_says_why(tune):
    result = tune("mixed", mixup=0.2, freeze="all")
    found = config(result)
    assert found["cache"] == "off" and "new images" in found["reasons"]["cache"]


def test_kept_features_know_the_options_too(tune):
    options = {"freeze": "all", "augment": "none", "epochs": 4, "sweep": "off"}
    options |= {"label_smoothing": 0.1, "class_weights": "balanced", "clip_grad": 0.5, "ema": 0.8}
    kept, plain = (tune(c, cache=c, accumulate=2, **options) for c in ("features", "off"))
    assert config(kept)["cache"] == "features"
    left, right = weights(kept), weights(plain)
    assert all(torch.allclose(left[n], right[n], atol=1e-5) for n in left)
    assert not same(kept, tune("bare", freeze="all", augment="none", epochs=4, sweep="off"))
    assert kept.val_accuracy == plain.val_accuracy and kept.frozen_unchanged is True


def test_a_rate_is_found_and_written_down(data, tmp_path, capsys):
    out = tmp_path / "found"
    options = ["--arch", "unfreeze/tiny", "--weights", "none", "--epochs", "1", "--find-lr"]
    assert main(["finetune", data, "--out", str(out), "--json", *options]) == 0
    json.loads(capsys.readouterr().out)
    found = tomllib.loads((out / "config.toml").read_text())
    tried = [m for m in read_metrics(out) if m["split"] == "find-lr"]
    assert 20 < len(tried) <= 100
    json.loads(json.dumps(tried, allow_nan=False))  # a loss that exploded is no number of JSON's
    assert "steepest descent" in found["reasons"]["lr"]
    assert min(m["learning_rate"] for m in tried) < found["lr"] < tried[-1]["learning_rate"]
    trained = [m["learning_rate"] for m in read_metrics(out) if m["split"] == "train"]
    assert trained[0] == found["lr"]  # cosine begins at the rate
