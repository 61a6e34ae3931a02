"""Several sources through the verbs, as people type them."""

import csv
import io
import json
import tomllib

import numpy as np
import pytest

import unfreeze
from unfreeze.cli.main import main
from unfreeze.errors import UsageError
from unfreeze.runtime.terminal import Environment


def called(*words):
    """(exit code, the JSON document, what people were told)."""
    world = Environment(io.StringIO(), io.StringIO())
    code = main([*map(str, words), "--json"], world)
    text = world.stdout.getvalue()
    return code, json.loads(text) if text else None, world.stderr.getvalue()


@pytest.fixture(scope="module")
def places(colours, tmp_path_factory):
    root = tmp_path_factory.mktemp("several")
    one = colours(root / "one", {"red": 8, "blue": 8})
    two = colours(root / "two, more", {"train/green": 8, "train/red": 8, "test/red": 3})
    return [one, two]


@pytest.fixture(scope="module")
def run(places, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    words = ["--arch", "unfreeze/tiny", "--weights", "none", "--epochs", 2, "--augment", "none"]
    code, found, told = called("finetune", *places, *words, "--out", out)
    assert code == 0, told
    return out, found, told


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_finetune_learns_from_all_and_split_csv_names_the_source(run, places):
    out, found, told = run
    assert found["classes"] == ["blue", "green", "red"]
    rows = table(out / "split.csv")
    assert len(rows) == 32 and {row["split"] for row in rows} == {"train", "val"}
    assert {row["path"].partition("/")[0] for row in rows} == {"one", "two, more"}
    assert not any("test/" in row["path"] for row in rows)
    assert "one has no splits: its 16 images go to train." in told
    config = tomllib.loads((out / "config.toml").read_text())
    assert config["data"] == [str(place) for place in places]


def test_evaluate_reads_the_test_of_whichever_has_one(run, places):
    code, found, _ = called("evaluate", run[0], *places)
    assert (code, found["split"], found["n"], found["seen_in_training"]) == (0, "test", 3, 0)
    code, found, _ = called("evaluate", run[0], places[0], "--split", "all")
    assert (code, found["n"]) == (0, 16)
    assert found["seen_in_training"] > 0  # known by content, whatever it is called


def test_the_same_settings_come_back_from_the_runs_own_file(run, tmp_path):
    plan = unfreeze.finetune(**{"data": (), "config": None} | given(run[0]), dry_run=True)
    assert plan.images == run[1]["images"]


def given(out):
    config = tomllib.loads((out / "config.toml").read_text())
    return {name: config[name] for name in ("data", "arch", "weights", "epochs", "augment")}


def test_pretrain_uses_train_of_all_and_writes_their_names(places, tmp_path):
    words = ["--arch", "unfreeze/tiny", "--epochs", 0, "--device", "cpu", "--out", tmp_path / "r"]
    code, found, told = called("pretrain", *places, *words)
    assert code == 0, told
    rows = table(tmp_path / "r" / "split.csv")
    assert found["images"] == len(rows) == 32
    assert "The data has splits: using the 32 images of train." in told


def test_scan_finds_a_image_that_is_in_two_sources(places, tmp_path):
    twin = tmp_path / "three"
    twin.mkdir()
    (twin / "copy.png").write_bytes((places[0] / "red" / "000.png").read_bytes())
    (twin / "page.png").write_bytes(b"<html>")
    (twin / "sound.png").write_bytes((places[0] / "red" / "001.png").read_bytes()[:-12])
    code, found, told = called("scan", *places, twin, "--out", tmp_path / "out")
    assert code == 0, told
    assert ["one/red/000.png", "three/copy.png"] in found["duplicates"]
    assert found["data"].count(", ") >= 2 and found["decoded"] == 38
    rows = table(tmp_path / "out" / "problems.csv")
    assert "three/page.png" in {row["path"] for row in rows if row["left_out"] == "true"}
    _, again, _ = called("scan", places[1], twin)
    assert again["decoded"] == 0


def test_embed_show_and_python_take_several(run, places, tmp_path):
    code, found, _ = called("embed", run[0], *places, "--out", tmp_path / "f.npz")
    assert (code, found["images"]) == (0, 35)
    with np.load(tmp_path / "f.npz") as held:
        assert held["paths"][0] == "one/blue/000.png"
    shown = unfreeze.show(places, out=str(tmp_path / "page.html"), scan="off", samples=1)
    assert shown.splits == {"train": 32, "test": 3}
    assert unfreeze.scan(places[0]).data == str(places[0])  # one, with a comma in its name or not
    assert unfreeze.scan(places[1]).pictures == 19


def test_what_cannot_be_is_said(places, tmp_path):
    assert called("scan", places[0], places[0])[0] == 2
    code, _, told = called("pretrain", places[0], tmp_path / "absent", "--out", tmp_path / "r")
    assert code == 3 and "absent" in told
    with pytest.raises(UsageError, match="needs a single source"):
        unfreeze.scan(places, quarantine=str(tmp_path / "q"))
