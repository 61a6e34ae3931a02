"""`runs`: what lies in a folder, by the files that runs wrote."""

import json
import shutil
import subprocess
import sys

import pytest

import unfreeze
from unfreeze.cli.main import main
from unfreeze.commands.runs import runs

TINY = {"arch": "unfreeze/tiny", "device": "cpu", "precision": "fp32", "epochs": 1}


@pytest.fixture(scope="module")
def folder(colours, tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    data = str(colours(place / "colours", {"train/red": 12, "train/green": 12, "test/red": 6}))
    tuned = str(place / "deep/er/tuned")
    unfreeze.finetune(data, out=tuned, weights="none", folds=2, **TINY)
    unfreeze.compare(data, ["none", tuned], out=str(place / "compared"), seeds=1, **TINY)
    return place


def test_every_run_is_listed_once_with_its_result(folder, capsys):
    found = {run.path.removeprefix(f"{folder}/"): run for run in runs(folder).runs}
    assert set(found) == {"deep/er/tuned", "compared"}  # neither folds nor compared runs
    tuned = found["deep/er/tuned"]
    evaluation = json.loads((folder / "deep/er/tuned/evaluation.json").read_text())
    assert (tuned.kind, tuned.task, tuned.state) == ("finetune", "classification", "finished")
    assert (tuned.metric, tuned.value) == ("accuracy", evaluation["accuracy"])
    assert (tuned.split, tuned.arch) == ("val", "unfreeze/tiny") and "colours" in tuned.data
    compared = json.loads((folder / "compared/compare.json").read_text())
    best = max(compared["starts"], key=lambda start: start["accuracy"])
    assert found["compared"].kind == "compare"
    assert found["compared"].value == best["accuracy"]
    assert found["compared"].interval == tuple(best["interval"])
    dates = [run.date for run in runs(folder).runs]
    assert dates == sorted(dates, reverse=True)
    capsys.readouterr()
    assert main(["runs", str(folder), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 2
    assert main(["runs", str(folder)]) == 0
    assert "2 runs in" in capsys.readouterr().out


def test_what_is_unfinished_or_damaged_is_named(folder, tmp_path, capsys):
    for name in ("stopped", "damaged"):
        shutil.copytree(folder / "deep/er/tuned", tmp_path / name)
    (tmp_path / "stopped/result.json").unlink()
    (tmp_path / "damaged/evaluation.json").write_text("{")
    states = {run.path.rsplit("/", 1)[1]: run.state for run in runs(tmp_path).runs}
    assert states == {"stopped": "unfinished", "damaged": "evaluation.json cannot be read"}
    # a project of somebody else, with a run in it
    shutil.copytree(folder / "deep/er/tuned", tmp_path / "empty/project/trained")
    (tmp_path / "empty/project/config.toml").write_text('title = "My site"\n')
    (tmp_path / "empty/project/result.json").write_text("[1, 2]")
    (alone,) = runs(tmp_path / "empty").runs
    assert alone.path.endswith("project/trained")
    shutil.rmtree(tmp_path / "empty/project")
    assert main(["runs", str(tmp_path / "empty")]) == 0
    assert "No runs in" in capsys.readouterr().out
    assert main(["runs", str(tmp_path / "nowhere")]) == 2


def test_it_needs_no_torch(tmp_path):
    code = f"""
import sys
from unfreeze.cli.main import main
assert main(["runs", {str(tmp_path)!r}]) == 0
assert "torch" not in sys.modules
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
