import errno
import json
import shutil
import zipfile
from pathlib import Path

import pytest

from unfreeze.api.evaluate import evaluate
from unfreeze.api.finetune import finetune
from unfreeze.api.load import load
from unfreeze.data.splits import read_split_csv
from unfreeze.errors import DataError, WeightsError
from unfreeze.runtime.runfolder import read_metrics

TINY = {"arch": "unfreeze/tiny", "weights": "none", "augment": "none", "precision": "fp32"}
FIELDS = {"n", "split", "seen_in_training", "accuracy", "top5", "loss", "classes", "confusion"}


@pytest.fixture(scope="module")
def run(colours, tmp_path_factory):
    folder = tmp_path_factory.mktemp("done")
    data = colours(folder / "colours", {"red": 10, "green": 10})
    return data, finetune(str(data), out=str(folder / "run"), epochs=2, **TINY)


def test_the_rows_held_out_are_taken_and_score_as_in_training(run):
    data, result = run
    found = evaluate(result.run, str(data))
    assert set(vars(found)) >= FIELDS
    assert (found.split, found.n, found.seen_in_training) == ("val", 4, 0)
    assert found.used_for_choosing and found.accuracy == result.val_accuracy
    val = [m for m in read_metrics(result.run) if m["split"] == "val"]
    assert found.loss == pytest.approx(val[result.best_epoch]["loss"], rel=1e-6)
    assert sum(map(sum, found.confusion)) == found.n
    assert found.interval[0] < found.accuracy <= found.interval[1]
    assert json.loads(Path(result.run, "evaluation.json").read_text())["n"] == 4


def test_all_counts_what_was_seen(run):
    data, result = run
    found = evaluate(result.run, str(data), split="all")
    assert (found.split, found.n, found.seen_in_training) == ("all", 20, 16)
    found = evaluate(result.run, str(data), split="train")
    assert (found.split, found.n, found.seen_in_training) == ("train", 16, 16)
    with pytest.raises(DataError, match="no split 'test'"):
        evaluate(result.run, str(data), split="test")


def test_other_files_are_evaluated_whole_and_unseen(run, coloured):
    _, result = run
    other = coloured("other", {"green": 3, "red": 4}, side=14)
    found = evaluate(result.run, str(other))
    assert (found.split, found.n, found.seen_in_training) == ("all", 7, 0)
    assert not found.used_for_choosing


def test_a_test_split_comes_first_and_classes_are_matched_by_name(run, coloured):
    _, result = run
    other = coloured("other", {"train/red": 2, "train/blue": 2, "test/red": 3, "val/red": 2})
    found = evaluate(result.run, str(other))
    assert (found.split, found.n) == ("test", 3)
    assert found.classes == ["green", "red"]
    assert [sum(row) for row in found.confusion] == [0, 3]
    assert evaluate(result.run, str(other), split="val").n == 2
    with pytest.raises(DataError, match="does not know the class 'blue'"):
        evaluate(result.run, str(other), split="train")


def test_the_model_folder_alone_is_enough(run, tmp_path):
    data, result = run
    alone = shutil.copytree(result.model, tmp_path / "elsewhere")
    found = evaluate(str(alone), str(data))
    assert (found.split, found.n, found.seen_in_training) == ("val", 4, 0)


def test_what_was_seen_is_known_under_other_names_and_in_another_archive(run, tmp_path):
    data, result = run
    with zipfile.ZipFile(tmp_path / "again.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(data.rglob("*.*")):
            name = f"new/{path.parent.name}/renamed-{path.name}"
            archive.writestr(zipfile.ZipInfo(name, (2001, 1, 1, 0, 0, 0)), path.read_bytes())
    found = evaluate(result.run, str(tmp_path / "again.zip"))
    assert (found.split, found.n, found.seen_in_training) == ("val", 4, 0)
    found = evaluate(result.run, str(tmp_path / "again.zip"), split="all")
    assert (found.n, found.seen_in_training, found.used_for_choosing) == (20, 16, True)


def test_a_part_of_the_training_pictures_is_counted_but_is_no_split(run, tmp_path):
    data, result = run
    for label in ("red", "green"):
        some = sorted((data / label).iterdir())[:6]
        (tmp_path / "part" / label).mkdir(parents=True)
        for path in some:
            shutil.copyfile(path, tmp_path / "part" / label / path.name)
    used = {r.path: r.split for r in read_split_csv(Path(result.run, "split.csv"))}
    there = [used[f"{p.parent.name}/{p.name}"] for p in (tmp_path / "part").rglob("*.*")]
    found = evaluate(result.run, str(tmp_path / "part"))
    assert (found.split, found.n) == ("all", 12)
    assert found.seen_in_training == there.count("train") > 0


def test_no_labels_and_no_classes_are_said(run, coloured, tmp_path):
    _, result = run
    with pytest.raises(DataError, match="no labels"):
        evaluate(result.run, str(coloured("flat", {".": 3})))
    with pytest.raises(WeightsError):
        evaluate(str(tmp_path), str(coloured("flat", {".": 3})))


def test_unreadable_files_are_left_out(run, coloured):
    _, result = run
    other = coloured("other", {"green": 3, "red": 4})
    (other / "red" / "000.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    assert evaluate(result.run, str(other)).n == 6


def test_load_gives_a_module_with_classes_and_predict(run):
    data, result = run
    model = load(result.run)
    paths = sorted(map(str, data.rglob("*.png")))
    found = model.predict(paths, batch_size=7)
    assert [one.path for one in found] == paths and not model.training
    truth = [path.split("/")[-2] for path in paths]
    right = sum(one.label == name for one, name in zip(found, truth, strict=True))
    assert right / 20 == evaluate(result.run, str(data), split="all").accuracy
    assert all(0.5 <= one.probability <= 1 for one in found)
    assert model.predict([]) == [] and model.classes == ("green", "red")


@pytest.mark.parametrize("beside", [{}, {"test/red": 3, "test/green": 3}])
def test_what_was_held_out_of_train_is_found_where_the_data_has_no_val(coloured, tmp_path, beside):
    data = str(coloured("cut", {"train/red": 6, "train/green": 6, **beside}))
    result = finetune(data, out=str(tmp_path / "run"), epochs=1, **TINY)
    found = evaluate(result.run, data, split="val")
    assert (found.split, found.n, found.seen_in_training) == ("val", 2, 0)
    assert found.used_for_choosing and found.accuracy == result.val_accuracy
    usual = evaluate(result.run, data)
    assert (usual.split, usual.n) == (("test", 6) if beside else ("val", 2))


def test_a_run_that_may_only_be_read_is_evaluated_too(run, monkeypatch):
    def refused(path, value):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    data, result = run
    monkeypatch.setattr("unfreeze.api.evaluate.write_json", refused)
    assert evaluate(result.run, str(data)).n == 4
