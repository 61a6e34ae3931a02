"""A run whose views are cut on the device, a batch at once: deterministic, resumable, told."""

import tomllib

import pytest
import torch

import unfreeze
from unfreeze.checkpoints.model_file import load_model
from unfreeze.errors import Interrupted, UsageError
from unfreeze.runtime.run_folder import read_metrics

GIVEN = {
    "limit": 160,
    "epochs": 2,
    "batch_size": 32,
    "nmb_prototypes": 16,
    "augment": "digits",
    "device": "cpu",
    "watch_every": 0,
    "tune": "off",
}


def run(out, **changed):
    settings = {**GIVEN, "views_on": "device", **changed}
    return unfreeze.pretrain("digits", out=str(out), **settings)


def weights(folder):
    return load_model(folder)[0]


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("device") / "run"
    run(folder)
    return folder


def test_resumed_is_straight_to_the_bit_and_keeps_its_place(straight, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        run(out, time_limit="0.2s")
    with pytest.raises(UsageError, match="views_on='device' -> host"):
        run(out, resume="yes", views_on="host")
    settings = {name: value for name, value in GIVEN.items() if name != "views_on"}
    unfreeze.pretrain("digits", out=str(out), resume="yes", **settings)
    assert same(weights(straight), weights(out))


def test_the_run_is_almost_that_of_views_cut_one_by_one(straight, tmp_path):
    run(tmp_path / "host", views_on="host")
    first = [
        next(r["loss"] for r in read_metrics(folder) if r["split"] == "train")
        for folder in (straight, tmp_path / "host")
    ]
    assert first[0] == pytest.approx(first[1], rel=2e-3)


def test_the_place_stands_in_the_config(straight):
    written = tomllib.loads((straight / "config.toml").read_text())
    assert written["views_on"] == "device" == written["facts"]["views"]
    assert written["facts"]["workers"] == 0


def test_a_plan_says_where_views_are_cut():
    planned = unfreeze.pretrain("digits", device="cpu", dry_run=True, limit=128)
    assert planned.settings["views_on"] == "host" and "GPU" in planned.reasons["views_on"]
    held = unfreeze.pretrain("digits", device="cpu", dry_run=True, limit=128, views_on="device")
    assert held.time["seconds_step"] > 0 and "views_on" not in held.reasons
