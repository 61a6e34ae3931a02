"""No command writes over an input, into an archive, or over what it did not make."""

import hashlib
import io
import os
import zipfile
from pathlib import Path

import pytest

from unfreeze.cli.main import main
from unfreeze.cli.registry import SETTINGS, settings_class
from unfreeze.commands.finetune import finetune
from unfreeze.config.field import settings_of
from unfreeze.runtime.terminal import Environment

TINY = ["--arch", "unfreeze/tiny", "--image-size", "16", "--epochs", "1", "--device", "cpu"]
LABEL_AUDIT = ["--arch", "unfreeze/tiny", "--weights", "none", "--image-size", "16"]
SCRATCH = [*TINY, "--weights", "none"]
# command line of every verb with a place to write to, which comes last
COMMANDS = {
    ("scan", "out"): ["scan", "d.zip", "--out"],
    ("scan", "quarantine"): ["scan", "d", "--quarantine"],
    ("show", "out"): ["show", "d.zip", "--out"],
    ("audit", "out"): ["audit", "d.zip", "--labels", "list.csv", *LABEL_AUDIT, "--out"],
    ("predict", "out"): ["predict", "run", "d.zip", "d/red/000.png", "--out"],
    ("embed", "out"): ["embed", "run", "d.zip", "--labels", "list.csv", "--out"],
    ("suggest", "out"): [
        "suggest",
        "run",
        "d.zip",
        "--budget",
        "4",
        "--labels",
        "list.csv",
        "--out",
    ],
    ("label", "out"): ["label", "d.zip", "--no-browser", "--out"],
    ("export", "out"): ["export", "run", "--to", "safetensors", "--data", "d.zip", "--out"],
    ("pretrain", "out"): ["pretrain", "d.zip", *TINY, "--out"],
    ("finetune", "out"): ["finetune", "d.zip", *SCRATCH, "--out"],
    ("compare", "out"): ["compare", "d", "--weights", "none", "run", *TINY, "--out"],
    ("swav", "dump_path"): ["swav", "--data_path", "d", "--arch", "unfreeze/tiny", "--dump_path"],
    ("predict", "sort_into"): ["predict", "run", "d", "--sort-into"],
    ("predict", "explain"): ["predict", "run", "d", "--explain"],
    ("demo", "out"): ["demo", "--epochs", "1", "--out"],
    ("init", "out"): ["init", "--out"],
}
PLACES = [
    *("d/red/000.png", "./d/../d/red/000.png", "image-link", "d.zip", "archive-link", "hard"),
    *("d.zip/new", "d", "folder-link", "list.csv", "run/model", "run/model/model.safetensors"),
    *("thesis", "thesis/chapter.tex", "project", "project/log.txt", "pipe", "dangling", "x" * 300),
]
# `scan --out` takes any folder that has no files of its names, and adds two; so do runs with
# --resume (schedulers write their logs there before a run begins), and `swav` by default
BESIDE = {"d", "folder-link", "run/model", "thesis"}
MORE = {
    "pretrain": (["--overwrite"], ["--resume"]),
    "finetune": (["--overwrite"], ["--resume", "auto"]),
    "compare": (["--overwrite"], ["--resume"]),
    "export": (["--overwrite"],),
    "init": (["--overwrite"],),
}


def call(*words):
    out, err = io.StringIO(), io.StringIO()
    code = main(list(map(str, words)), Environment(out, err))
    return code, out.getvalue(), err.getvalue()


def everything(folder):
    """Every name below with what is there."""
    found = {}
    for around, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(around, name)
            what = str(path.readlink()) if path.is_symlink() else "something"
            if path.is_file() and not path.is_symlink():
                what = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path)] = what
    return found


@pytest.fixture(scope="module")
def world(colours, tmp_path_factory):
    """A folder of data, the same as an archive, a run, other people's work, and links to them."""
    place = tmp_path_factory.mktemp("world")
    data = colours(place / "d", {"red": 6, "green": 6})
    with zipfile.ZipFile(place / "d.zip", "w") as archive:
        for file in sorted(data.rglob("*.png")):
            archive.write(file, file.relative_to(data))
    how = {"arch": "unfreeze/tiny", "weights": "none", "image_size": 16, "epochs": 1}
    finetune(str(data), out=str(place / "run"), workers=0, **how)
    (place / "list.csv").write_text("path,label\n" + "red/000.png,x\ngreen/000.png,y\n")
    (place / "thesis").mkdir()
    (place / "thesis/chapter.tex").write_text("years of work")
    (place / "project/model").mkdir(parents=True)
    (place / "project/config.toml").write_text("epochs = 1\n")
    for name in ("log.txt", "problems.csv"):
        (place / "project" / name).write_text("mine")
    (place / "image-link").symlink_to("d/red/000.png")
    (place / "archive-link").symlink_to("d.zip")
    (place / "folder-link").symlink_to("d")
    (place / "dangling").symlink_to("nowhere")
    os.link(place / "d.zip", place / "hard")
    os.mkfifo(place / "pipe")
    return place


def test_every_place_to_write_to_is_tried_here():
    there = {
        (verb, name)
        for verb in SETTINGS
        for name, (spec, _, _) in settings_of(settings_class(verb)).items()
        if spec.path == "output" and name != "data_root"
    }
    assert there == set(COMMANDS)


@pytest.mark.parametrize("verb", COMMANDS, ids=" ".join)
def test_whatever_is_there_stays_as_it_was(world, verb, monkeypatch):
    monkeypatch.chdir(world)
    before, words = everything(world), COMMANDS[verb]
    for place in PLACES:
        for more in ([], *MORE.get(verb[0], ())):
            adds = verb in (("scan", "out"), ("swav", "dump_path")) or "--resume" in more
            if adds and place in BESIDE:
                continue
            code, out, err = call(*words, place, *more)
            assert (code, out) == (2, ""), (place, more, err)
            assert len(err.splitlines()) >= 2 and "Traceback" not in err, err
            assert everything(world) == before, (place, more)


def test_a_scan_adds_two_files_and_changes_none(world, monkeypatch):
    monkeypatch.chdir(world)
    for place in BESIDE:
        before = everything(world)
        assert call(*COMMANDS["scan", "out"], place)[0] == 0
        added = set(everything(world).items()) - set(before.items())
        assert {Path(name).name for name, _ in added} == {"problems.csv", "scan.html"}
        for name, _ in added:
            Path(name).unlink()
        assert everything(world) == before


def test_an_earlier_result_is_written_anew(world, tmp_path, monkeypatch):
    monkeypatch.chdir(world)
    for verb, name in (("predict", "a.csv"), ("show", "a.html"), ("embed", "a.npz")):
        for _ in range(2):
            assert call(*COMMANDS[verb, "out"], tmp_path / name)[0] == 0
    for _ in range(2):
        assert call(*COMMANDS["scan", "out"], tmp_path / "scanned")[0] == 0
    # one command's result is not another's
    for verb, name in (("embed", "a.csv"), ("show", "a.npz"), ("predict", "a.html")):
        assert call(*COMMANDS[verb, "out"], tmp_path / name)[0] == 2
    assert call(*COMMANDS["scan", "out"], "run")[0] == 2


def test_an_earlier_result_that_is_an_input_is_kept(world, tmp_path, monkeypatch):
    monkeypatch.chdir(world)
    (tmp_path / "seen.csv").write_text(f"path,label,probability\n{world}/d/red/000.png,red,1\n")
    before = (tmp_path / "seen.csv").read_bytes()
    assert call("predict", "run", tmp_path / "seen.csv", "--out", tmp_path / "seen.csv")[0] == 2
    assert (tmp_path / "seen.csv").read_bytes() == before


def test_what_evaluate_and_report_would_write_over_is_refused_first(world, tmp_path, monkeypatch):
    monkeypatch.chdir(world)
    run = tmp_path / "run"
    assert call("finetune", "d", *SCRATCH, "--out", run)[0] == 0
    assert call("evaluate", run, "d")[0] == call("report", run)[0] == 0
    assert call("evaluate", run, "d")[0] == call("report", run)[0] == 0
    for name, verb in (("predictions.csv", "evaluate"), ("report.html", "report")):
        (run / name).write_text("mine, all mine")
        code, _, err = call(verb, run, *(["d"] if verb == "evaluate" else []))
        assert code == 2 and name in err and (run / name).read_text() == "mine, all mine"
        (run / name).unlink()


def test_a_model_beside_a_foreign_config_leaves_nothing_there(world, tmp_path, monkeypatch):
    """`model/` travels: into a project with a config.toml, say."""
    monkeypatch.chdir(world)
    (tmp_path / "config.toml").write_text("[tool]\nmine = true\n")
    (tmp_path / "predictions.csv").write_text("mine")
    (tmp_path / "model").mkdir()
    for file in Path("run/model").iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    before = everything(tmp_path)
    assert call("evaluate", tmp_path / "model", "d")[0] == 0
    assert everything(tmp_path) == before


def test_a_run_is_emptied_only_of_its_own(world, tmp_path, monkeypatch):
    monkeypatch.chdir(world)
    run = tmp_path / "run"
    again = ["finetune", "d", *SCRATCH, "--out", run]
    assert call(*again)[0] == 0
    assert call(*again, "--overwrite", "--weights", run / "model")[0] == 2
    assert (run / "model/model.safetensors").exists()
    assert call(*again, "--overwrite")[0] == 0
    export = ["export", run, "--to", "safetensors", "--out", tmp_path / "export"]
    assert call(*export)[0] == 0 and call(*export, "--overwrite")[0] == 0
    (tmp_path / "export/notes.txt").write_text("mine")
    assert call(*export, "--overwrite")[0] == 2 and (tmp_path / "export/notes.txt").exists()


def test_two_data_sets_in_one_quarantine_are_refused(colours, tmp_path, monkeypatch):
    """Their files may have the same names, and the manifest says of each where it was."""
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        colours(tmp_path / name, {"red": 2, "green": 2})
        (tmp_path / name / "red/broken.png").write_text(f"no image of {name}")
    assert call("scan", "one", "--quarantine", "q")[0] == 0
    before = everything(tmp_path)
    code, _, err = call("scan", "two", "--quarantine", "q")
    assert code == 2 and "already contains red/broken.png" in err and everything(tmp_path) == before
    assert call("scan", "one", "--undo", "q")[0] == 0
    assert (tmp_path / "one/red/broken.png").read_text() == "no image of one"
