import csv
import errno
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from unfreeze.checkpoints.model_file import load_model, save_model
from unfreeze.checkpoints.state import load_state
from unfreeze.cli.main import main
from unfreeze.commands.evaluate import evaluate
from unfreeze.commands.finetune import finetune
from unfreeze.commands.predict import load, predict
from unfreeze.data.index.splits import read_split_csv
from unfreeze.errors import DataError, UsageError, WeightsError
from unfreeze.reports.examples import read_examples
from unfreeze.runtime.run_folder import read_metrics

TINY = {
    **{"arch": "unfreeze/tiny", "weights": "none", "augment": "none", "precision": "fp32"},
    "select": "accuracy",  # though few images are held out
}
FIELDS = {"balanced_accuracy", "macro_f1", "calibration_error", "test_uses", "last", "temperature"}
FIELDS |= {"n", "split", "seen_in_training", "accuracy", "top5", "loss", "classes", "confusion"}


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


def test_a_part_of_the_training_images_is_counted_but_is_no_split(run, tmp_path):
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
    assert model.classes == ("green", "red")
    with pytest.raises(UsageError, match="No images to predict"):
        model.predict([])  # an iterator that is used up must not pass for a result


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
    monkeypatch.setattr("unfreeze.commands.evaluate.write_json", refused)
    assert evaluate(result.run, str(data)).n == 4


@pytest.fixture(scope="module")
def hard(colours, tmp_path_factory):
    """A run on labels of which a third is wrong, so that it makes mistakes and is too sure."""
    folder = tmp_path_factory.mktemp("hard")
    counts = {f"{s}/{c}": n for s, n in (("train", 12), ("val", 9), ("test", 9)) for c in COLOURS}
    data = colours(folder / "data", counts)
    for split in ("train", "val", "test"):
        for number in range(3):
            places = [data / split / c / f"{number:03}.png" for c in COLOURS]
            held = [place.read_bytes() for place in places]
            for place, image in zip(places, held[1:] + held[:1], strict=True):
                place.write_bytes(image)
    settings = {**TINY, "epochs": 6, "optimizer": "sgd", "lr": 0.3}
    return data, finetune(str(data), out=str(folder / "run"), **settings)


def table(path):
    return list(csv.DictReader(path.read_text().splitlines()))


COLOURS = ("blue", "green", "red")


def test_pain_25_the_uses_of_the_test_images_are_counted(hard, tmp_path):
    data, result = hard
    run = shutil.copytree(result.run, tmp_path / "run")
    assert evaluate(str(run), str(data), split="val").test_uses == 0
    assert evaluate(str(run), str(data)).test_uses == 1
    assert evaluate(str(run), str(data), split="all").test_uses == 2  # test is in it
    assert evaluate(str(run), str(data), split="train").test_uses == 2
    assert evaluate(str(run / "model"), str(data)).test_uses == 3  # the same run
    uses = json.loads((run / "test_uses.json").read_text())["uses"]
    assert [(u["split"], u["n"]) for u in uses] == [("test", 27), ("all", 90), ("test", 27)]
    alone = shutil.copytree(result.model, tmp_path / "alone")
    assert evaluate(str(alone), str(data)).test_uses is None
    (run / "test_uses.json").write_text("{")
    with pytest.raises(DataError, match="counts evaluations on the test set"):
        evaluate(str(run), str(data))


def test_images_from_elsewhere_are_test_images(run, coloured, tmp_path):
    _, result = run
    own = shutil.copytree(result.run, tmp_path / "run")
    (own / "test_uses.json").unlink(missing_ok=True)
    other = coloured("other", {"green": 3, "red": 4}, side=14)
    assert [evaluate(str(own), str(other)).test_uses for _ in range(2)] == [1, 2]


def test_the_last_epoch_stands_beside_the_selected(hard):
    data, result = hard
    both = evaluate(result.run, str(data), split="val")
    assert both.epoch == result.best_epoch < 5 == both.last.epoch
    assert both.accuracy == result.val_accuracy
    val = [m for m in read_metrics(result.run) if m["split"] == "val"]
    assert both.last.accuracy == val[-1]["accuracy"] != both.accuracy
    assert both.last.loss == pytest.approx(val[-1]["loss"], rel=1e-6)
    alone = evaluate(result.run, str(data), split="val", weights_of="best")
    assert alone.last is None and alone.confusion == both.confusion
    last = evaluate(result.run, str(data), split="val", weights_of="last")
    assert (last.epoch, last.accuracy, last.last) == (5, both.last.accuracy, None)


def test_the_model_alone_does_not_know_its_last_epoch(hard, tmp_path):
    data, result = hard
    alone = shutil.copytree(result.model, tmp_path / "alone")
    assert evaluate(str(alone), str(data)).last is None
    with pytest.raises(UsageError, match="last epoch"):
        evaluate(str(alone), str(data), weights_of="last")


@pytest.mark.real_charts
def test_mistakes_are_named_worst_first_with_their_images(hard, tmp_path):
    data, result = hard
    run = shutil.copytree(result.run, tmp_path / "run")
    found = evaluate(str(run), str(data), weights_of="best")
    rows = table(run / "predictions.csv")
    assert len(rows) == found.n
    assert sum(r["label"] == r["predicted"] for r in rows) / found.n == found.accuracy
    said = {r["path"]: r for r in rows}
    for one in predict(str(run), [str(data / "test")]):
        row = said[str(Path(one.path).relative_to(data))]
        assert row["predicted"] == one.label
        assert float(row["probability"]) == pytest.approx(one.probability, abs=2e-6)
    wrong = table(run / "mistakes.csv")
    assert {r["path"] for r in wrong} == {r["path"] for r in rows if r["label"] != r["predicted"]}
    chances = [float(r["probability"]) for r in wrong]
    assert chances == sorted(chances, reverse=True) and len(wrong) >= 5
    assert [m.path for m in found.mistakes] == [r["path"] for r in wrong][:20]
    assert all(m.probability_of_label < m.probability for m in found.mistakes)
    shown = read_examples(run / "examples.npz")
    assert [e.path for e in shown if e.kind == "wrong"] == [m.path for m in found.mistakes]
    assert {e.kind for e in shown} == {"wrong", "unsure", "right"}
    assert all((e.label == e.predicted) == (said[e.path] not in wrong) for e in shown)
    html = (run / "report.html").read_text()  # drawn again
    assert "Wrong" in html and wrong[0]["path"] in html
    assert "balanced accuracy" in html and "The test images were evaluated once." in html


def test_what_was_written_is_named_and_only_that(hard, tmp_path, capsys, monkeypatch):
    data, result = hard
    shutil.copytree(result.run, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "run", str(data), "--weights-of", "best"]) == 0
    out = capsys.readouterr().out
    written = ("report.html", "predictions.csv", "mistakes.csv", "evaluation.json")
    assert all(f"run/{name}" in out and Path("run", name).is_file() for name in written)
    assert out.endswith("Next:\n  unfreeze predict run IMAGE...\n")
    shutil.copytree("run/model", "alone")
    assert main(["evaluate", "alone", str(data)]) == 0
    assert "report.html" not in capsys.readouterr().out


def test_a_report_that_cannot_be_drawn_fails_nothing(hard, tmp_path, monkeypatch, capsys):
    from unfreeze.commands import report as module

    def broken(run):
        raise ValueError("no colours")

    data, result = hard
    run = shutil.copytree(result.run, tmp_path / "run")
    monkeypatch.setattr(module, "report", broken)
    assert main(["evaluate", str(run), str(data), "--weights-of", "best"]) == 0
    assert "warning: The report could not be written (ValueError: no colours)" in (
        capsys.readouterr().err
    )


def sharpened(run, folder):
    """A copy whose scores are four times as large: just as right, far too sure."""
    shutil.copytree(run, folder)
    tensors, card = load_model(folder)
    tensors |= {name: 4 * tensors[name] for name in ("head.weight", "head.bias")}
    save_model(folder / "model", tensors, card)
    return folder


def test_a_temperature_comes_from_validation_and_never_from_test(hard, tmp_path):
    data, result = hard
    run = sharpened(result.run, tmp_path / "run")
    plain = evaluate(str(run), str(data), weights_of="best")
    assert plain.temperature is None
    warm = evaluate(str(run), str(data), weights_of="best", temperature="fit").temperature
    assert warm.value > 2 and not warm.kept and not warm.bounded and warm.n == 27
    assert warm.loss < plain.loss and warm.calibration_error < plain.calibration_error
    softer = evaluate(result.run, str(data), temperature="fit").temperature
    assert warm.value == pytest.approx(4 * softer.value)
    on_val = evaluate(str(run), str(data), split="val", temperature="fit").temperature
    assert on_val.value == warm.value
    # other test images, the same temperature; other validation images, another one
    other = shutil.copytree(data, tmp_path / "other")
    for path in sorted((other / "test" / "red").iterdir())[:5]:
        path.unlink()
    found = evaluate(str(run), str(other), temperature="fit").temperature
    assert found.value == warm.value and found.loss != warm.loss
    for path in sorted((other / "val" / "red").iterdir())[:3]:
        path.unlink()
    assert evaluate(str(run), str(other), temperature="fit").temperature.value != warm.value
    shutil.rmtree(other / "val")
    with pytest.raises(DataError, match="no validation images"):
        evaluate(str(run), str(other / "test"), temperature="fit")


def test_a_temperature_is_kept_only_if_asked(hard, tmp_path):
    data, result = hard
    run, images = sharpened(result.run, tmp_path / "run"), [str(data / "test")]
    before = predict(str(run), images)
    plain = evaluate(str(run), str(data), weights_of="best")
    evaluate(str(run), str(data), temperature="fit")
    assert predict(str(run), images) == before
    kept = evaluate(str(run), str(data), weights_of="best", temperature="keep")
    value = kept.temperature.value
    after = predict(str(run), images)
    assert [a.label for a in after] == [b.label for b in before]
    assert np.mean([a.probability for a in after]) < np.mean([b.probability for b in before])
    later = evaluate(str(run), str(data), weights_of="best", temperature="fit")
    assert later.temperature.value == pytest.approx(value)  # not of what was scaled already
    assert later.loss == pytest.approx(kept.temperature.loss) != plain.loss
    assert later.accuracy == plain.accuracy
    with pytest.raises(UsageError, match="needs the selected epoch"):
        evaluate(str(run), str(data), weights_of="last", temperature="keep")


def test_select_is_what_picks_the_best(hard, tmp_path):
    data, result = hard
    val = [m for m in read_metrics(result.run) if m["split"] == "val"]
    settings = {**TINY, "epochs": 6, "optimizer": "sgd", "lr": 0.3, "select": "loss"}
    chosen = finetune(str(data), out=str(tmp_path / "run"), **settings)
    assert chosen.best_epoch == min(range(6), key=lambda e: val[e]["loss"]) != result.best_epoch
    assert chosen.val_accuracy == val[chosen.best_epoch]["accuracy"]
    again = [m for m in read_metrics(chosen.run) if m["split"] == "val"]
    assert again == val  # what is chosen by changes no training
    best = load_state(Path(chosen.run) / "checkpoints" / "best.ckpt")
    assert best["epoch"] == chosen.best_epoch + 1
    assert best["callbacks"]["validation"]["best"]["score"] == -val[chosen.best_epoch]["loss"]
    assert torch.equal(load(chosen.run).network.head.weight, best["model"]["head.weight"])
