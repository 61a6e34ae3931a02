"""`pretrain --init`: continued pretraining, which never ends below its start."""

import json
import math
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import unfreeze
from unfreeze.checkpoints.model_file import load_model, save_model
from unfreeze.cli.main import main
from unfreeze.commands.pretrain import run_pretrain
from unfreeze.commands.swav import translate
from unfreeze.config.layering import load_settings
from unfreeze.config.main_swav import ReferenceSettings
from unfreeze.config.pretrain import PretrainSettings
from unfreeze.errors import Interrupted, UsageError
from unfreeze.optim.optimizer import optimizer_for_network, set_lr
from unfreeze.reports.continued import continued_sentence
from unfreeze.runs.pretraining import evaluation_data
from unfreeze.runtime.console import QuietConsole
from unfreeze.runtime.run_folder import read_metrics
from unfreeze.swav.auto_recipe import plan
from unfreeze.swav.continued_recipe import CONTINUED_OFF
from unfreeze.swav.dataset_stats import DatasetStats
from unfreeze.training.callbacks import SaveCheckpoint
from unfreeze.training.early_stopping import StopBelowStart
from unfreeze.training.feature_evaluation import FeatureEvaluation, FeatureEvaluator

QUICK = {"limit": 120, "augment": "digits", "nmb_prototypes": 8, "batch_size": 24, "tune": "off"}
RUINS = {"base_lr": 3.0, "optimizer": "sgd", "final_lr": 3.0}  # a learning rate that destroys


@pytest.fixture(autouse=True)
def _no_pages(monkeypatch):
    monkeypatch.setattr("unfreeze.commands.pretrain.write_report_or_warn", lambda run, console: 0)


def run(out, console=None, on_epoch=None, **changed):
    given = {"data": "digits", "device": "cpu", "out": str(out), "epochs": 2, **QUICK, **changed}
    settings = load_settings(PretrainSettings, given)
    return run_pretrain(settings, console or QuietConsole(), on_epoch=on_epoch)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A SwAV run, with its head."""
    folder = tmp_path_factory.mktemp("start") / "swav"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unfreeze.commands.pretrain.write_report_or_warn", lambda run, console: 0)
        run(folder)
    return folder


@pytest.fixture(scope="module")
def weights(trained):
    """Its backbone alone, with another normalisation."""
    tensors, card = load_model(trained)
    folder = trained.parent / "backbone"
    preprocess = {**card.preprocess, "mean": [0.5] * 3, "std": [0.5] * 3}
    save_model(folder, tensors, replace(card, preprocess=preprocess))
    return str(folder)


def equal(one, other):
    return [name for name in one if torch.equal(one[name], other[name])]


# --------------------------------------------------------------------------------------- laws


def test_a_frozen_backbone_keeps_every_bit_while_the_head_is_trained(weights, tmp_path):
    run(tmp_path / "run", init=weights, epochs=1, freeze_backbone_epochs=1, keep="last")
    before, after = load_model(weights)[0], load_model(tmp_path / "run")[0]
    assert len(equal(before, after)) == len(before) > 10
    losses = [r["loss"] for r in read_metrics(tmp_path / "run") if r["split"] == "train"]
    assert len(set(losses)) == len(losses) == 5  # the head moved


def test_frozen_statistics_stay_and_the_weights_are_trained(weights, tmp_path):
    how = {"init": weights, "epochs": 1, "freeze_backbone_epochs": 0, "keep": "last"}
    run(tmp_path / "frozen", bn_statistics="frozen", **how)
    before, after = load_model(weights)[0], load_model(tmp_path / "frozen")[0]
    kept = equal(before, after)
    assert kept == [n for n in before if "running" in n or n.endswith("batches_tracked")] != []
    run(tmp_path / "batch", bn_statistics="batch", **how)
    assert equal(before, load_model(tmp_path / "batch")[0]) == []


def test_each_stage_has_its_own_learning_rate(weights, tmp_path):
    """One step of SGD without momentum yet moves a layer by its own rate times its gradient."""
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    for name in ("sgd", "adamw", "larc"):
        made = optimizer_for_network(
            name, network, lr=1.0, weight_decay=0.1, scales={"0.weight": 0.25}
        )
        set_lr(made, 0.4)
        rates = {id(p): group["lr"] for group in made.param_groups for p in group["params"]}
        assert [rates[id(p)] for p in network.parameters()] == pytest.approx([0.1, 0.4])
        assert {g["weight_decay"] for g in made.param_groups if g["params"]} == {0.1}
    run(tmp_path / "run", init=weights, epochs=1, optimizer="sgd", layer_decay=0.5)
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    scales = {group.get("lr_scale", 1.0) for group in state["optimizer"]["param_groups"]}
    assert max(scales) == 1.0 and 0.5 in scales and min(scales) <= 0.25


def test_the_standard_error_is_that_of_paired_differences():
    rng = np.random.default_rng(0)
    before, after = rng.random(500) < 0.7, rng.random(500) < 0.75
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    one = FeatureEvaluation(1, 1, {}, "x", "val", int(after.sum()), 500, gained, lost)
    d = after.astype(float) - before
    assert one.difference == pytest.approx(d.mean())
    adjusted = np.append(d, [1.0, -1.0])  # Bonett and Price (2012)
    assert one.standard_error == pytest.approx(adjusted.std() / math.sqrt(502))


def test_a_linear_classifier_selects_where_one_was_fitted(weights, tmp_path):
    by_knn = FeatureEvaluation(1, 1, {"x": 3.0}, "x", "val", 70, 100)
    by_both = replace(by_knn, linear_correct=81)
    assert (by_knn.selects, by_knn.score, by_both.selects, by_both.score) == (
        "knn", 0.7, "linear", 0.81,
    )  # fmt: skip
    result = run(tmp_path / "run", init=weights, epochs=1)
    rows = [r for r in read_metrics(tmp_path / "run") if "knn_accuracy" in r]
    assert len(rows) == 2 and all(0 < r["linear_accuracy"] <= 1 for r in rows)
    assert result.continued["start"] == rows[0]["linear_accuracy"]
    assert result.continued["last"]["value"] == rows[1]["linear_accuracy"]
    assert result.best["figure"] == "linear" and result.knn["accuracy"] == rows[1]["knn_accuracy"]
    run(tmp_path / "scratch", epochs=1)
    assert not any("linear_accuracy" in r for r in read_metrics(tmp_path / "scratch"))


def test_the_start_is_kept_unless_a_checkpoint_is_better_by_more_than_noise():
    def judged(*changes):
        """(steps of the best checkpoints saved, step at which the run ends)."""
        made = FeatureEvaluator(
            None, None, 1, None, None, processes=None, time_limit=SimpleNamespace(
                timing=lambda name: __import__("contextlib").nullcontext()
            ), continued=True,
        )  # fmt: skip
        state = SimpleNamespace(step=0, steps=10, epoch=0, ends_epoch=True)
        stop = StopBelowStart(made, 2, SimpleNamespace(log=lambda text: None))
        saved, results = [], iter([(0, 0), *changes])

        def evaluate(state):
            gained, lost = next(results)
            correct = 70 + gained - lost
            return FeatureEvaluation(
                state.epoch, state.step, {}, "x", "val", correct, 100, gained, lost
            )

        made.evaluate = evaluate
        for step in range(len(changes) + 1):
            state.step = state.epoch = step
            action = made.after_step(state, {}) if step else made.on_start(state)
            saved += [step] if isinstance(action, SaveCheckpoint) else []
            if stop.after_step(state, {}) is not None:
                return saved, step
        return saved, None

    assert judged((1, 0), (2, 1)) == ([0], None)  # a gain of one image is no more than its error
    assert judged((9, 2), (8, 2), (12, 2)) == ([0, 1, 3], None)
    assert judged((2, 9), (2, 9)) == ([0], 2)  # twice below
    assert judged((2, 9), (3, 3), (2, 9), (2, 9)) == ([0], 4)  # in a row


def test_published_recipes_and_training_from_scratch_keep_their_meaning():
    facts = DatasetStats(5_000, 32, "cpu", labelled=True)
    names = [*CONTINUED_OFF]

    def chosen(**given):
        s = plan(PretrainSettings(data=("d",), **given), facts)
        return {name: getattr(s.settings, name) for name in names}, s.reasons

    for given in ({}, {"recipe": "swav-200ep-bs256"}, {"recipe": "swav-100ep", "batch_size": 64}):
        values, reasons = chosen(init="none", **given)
        assert values == CONTINUED_OFF and not {*names} & {*reasons}
    assert chosen(init="w", recipe="swav-200ep-bs256")[0] == CONTINUED_OFF
    values, reasons = chosen(init="w")
    assert not set(values.items()) & set(CONTINUED_OFF.items()) and {*names} <= {*reasons}
    same = translate(ReferenceSettings(data_path="d", init="w"), torch.device("cpu")).settings
    assert {name: getattr(same, name) for name in names} == CONTINUED_OFF
    # without labels nothing can be selected; with its own head none has to be trained first
    plain = plan(PretrainSettings(data=("d",), init="w"), DatasetStats(5_000, 32, "cpu")).settings
    assert (plain.keep, plain.patience) == ("last", 0)
    own = DatasetStats(5_000, 32, "cpu", labelled=True, own_head=True)
    resumed = plan(PretrainSettings(data=("d",), init="w"), own).settings
    assert (resumed.freeze_backbone_epochs, resumed.bn_statistics) == (0, "batch")


# ---------------------------------------------------------------------------------- behaviour


@pytest.fixture(scope="module")
def ruined(weights, tmp_path_factory):
    """A continued run that destroys the features, by the command line, with its output."""
    out = tmp_path_factory.mktemp("ruined") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unfreeze.commands.pretrain.write_report_or_warn", lambda run, console: 0)
        result = run(
            out, init=weights, epochs=6, watch_every=1, patience=2, on_collapse="ignore",
            freeze_backbone_epochs=0, bn_statistics="batch", **RUINS,
        )  # fmt: skip
    return result, out


def test_features_that_get_worse_leave_the_start(ruined, weights):
    result, out = ruined
    assert result.kept == "start" and result.epochs < 6
    before, after = load_model(weights)[0], load_model(out)[0]
    assert len(equal(before, after)) == len(before)
    assert result.continued["stopped_below_start"] and result.continued["difference"] == 0
    assert result.continued["last"]["difference"] < -0.1
    assert json.loads((out / "result.json").read_text())["continued"]["kept"] == "start"
    said = str(result)
    assert said.startswith("Continued pretraining did not pay and was stopped early")
    assert "the weights of --init, unchanged" in said
    provenance = load_model(out)[1].provenance
    assert (provenance["epochs"], provenance["steps"]) == (0, 0) and provenance["seconds"] > 0
    assert "early stopping" in (out / "log.txt").read_text()
    html = Path(unfreeze.report(str(out)).report).read_text(encoding="utf-8")
    assert "the start&#39;s weights are kept" in html and "not finished" not in html


def test_a_run_that_ended_early_stays_ended(ruined):
    result, out = ruined
    again = run(
        out, init=tomllib.loads((out / "config.toml").read_text())["init"], epochs=6,
        watch_every=1, patience=2, on_collapse="ignore", freeze_backbone_epochs=0,
        bn_statistics="batch", resume="yes", **RUINS,
    )  # fmt: skip
    assert (again.steps, again.kept, again.continued) == (result.steps, "start", result.continued)


def test_stopped_and_resumed_it_is_the_straight_run(weights, tmp_path):
    how = {"init": weights, "epochs": 3, "watch_every": 1, "freeze_backbone_epochs": 1}

    def stops(epoch):
        def on_epoch(state, done):
            if done == epoch and state.step:
                raise Interrupted("Stopped.", "")

        return on_epoch

    run(tmp_path / "straight", **how)
    for epoch in (1, 2):  # at the end of the frozen epoch, and after it
        with pytest.raises(Interrupted):
            run(tmp_path / "again", on_epoch=stops(epoch), **how, **(
                {"resume": "yes"} if epoch > 1 else {}
            ))  # fmt: skip
    run(tmp_path / "again", resume="yes", **how)
    for name in ("last.ckpt", "best.ckpt"):
        one, two = (
            torch.load(tmp_path / folder / "checkpoints" / name, weights_only=True)
            for folder in ("straight", "again")
        )
        assert one["step"] == two["step"]
        assert len(equal(one["model"], two["model"])) == len(one["model"])
        first, second = (state["callbacks"]["evaluation"] for state in (one, two))
        assert torch.equal(first.pop("start_hits"), second.pop("start_hits"))
        assert first == second
    one, two = (load_model(tmp_path / folder)[0] for folder in ("straight", "again"))
    assert len(equal(one, two)) == len(one)


def test_a_run_continues_with_its_head_and_its_normalisation(trained, weights, tmp_path):
    run(tmp_path / "own", init=str(trained), epochs=1)
    config = tomllib.loads((tmp_path / "own/config.toml").read_text())
    assert config["freeze_backbone_epochs"] == 0
    assert "prototypes loaded" in config["reasons"]["swav_head"]
    own = load_model(tmp_path / "own")[1].provenance
    assert own["seconds_before"] == load_model(trained)[1].provenance["seconds"]
    run(tmp_path / "other", init=weights, epochs=1)
    card = load_model(tmp_path / "other")[1]
    assert card.preprocess["mean"] == [0.5] * 3 == card.preprocess["std"]
    with pytest.raises(UsageError, match="three numbers"):
        run(tmp_path / "wrong", init=weights, mean=(0.5,))


def test_without_labels_it_says_that_it_cannot_know(weights, tmp_path, coloured, capsys):
    data = coloured("plain", {".": 48})
    words = ["pretrain", str(data), "--init", weights, "--arch", "unfreeze/tiny", "--epochs", "1"]
    words += ["--batch-size", "16", "--nmb-prototypes", "4", "--tune", "off", "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "run"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["kept"] == "last" and result["continued"]["value"] is None
    assert "Without labels it is not known" in continued_sentence(result["continued"])


def test_few_labels_are_all_used():
    labels = np.full(1000, -1)
    labels[::50] = np.arange(20) % 2
    chosen = evaluation_data._sample(labels, np.arange(1000), 100, 0)
    assert len(chosen) == 100 == len(set(chosen)) and set(np.arange(0, 1000, 50)) <= set(chosen)


@pytest.mark.parametrize(
    ("interval", "difference", "words"),
    [
        (
            (0.01, 0.06),
            0.035,
            "raised the accuracy of a linear classifier on the features from 70.0 % to 73.5 %",
        ),
        ((-0.06, -0.01), -0.035, "lowered the accuracy of a linear classifier"),
        ((-0.01, 0.06), 0.025, "It is not clear whether continued pretraining paid"),
    ],
)
def test_a_sentence_says_whether_it_paid(interval, difference, words):
    said = continued_sentence(
        {"start": 0.7, "value": 0.7 + difference, "difference": difference, "interval": interval,
         "total": 512, "split": "held-out", "kept": "best", "stopped_below_start": False}
    )  # fmt: skip
    assert words in said and "512 labelled images" in said and "selected on these" in said
