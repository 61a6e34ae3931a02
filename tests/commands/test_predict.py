import csv
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from unfreeze.cli.main import main
from unfreeze.cli.output import plain
from unfreeze.commands.finetune import finetune
from unfreeze.commands.predict import WrittenPredictions, load, predict, run_predict
from unfreeze.config.commands import PredictSettings
from unfreeze.config.layering import build
from unfreeze.errors import DataError, ResourceError, UsageError
from unfreeze.runs.predictions_out import sort_into
from unfreeze.runtime.console import QuietConsole

TINY = {"arch": "unfreeze/tiny", "weights": "none", "augment": "none", "precision": "fp32"}


class Heard(QuietConsole):
    """A console that remembers."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)

    def progress(self, label, total, done=0):
        return super().progress(label, total, done)


@pytest.fixture(scope="module")
def run(colours, tmp_path_factory):
    folder = tmp_path_factory.mktemp("done")
    data = colours(folder / "colours", {"red": 8, "green": 8})
    return data, finetune(str(data), out=str(folder / "run"), epochs=3, **TINY).run


def test_files_folders_and_archives_give_the_same(run, tmp_path):
    data, model = run
    files = sorted(map(str, data.rglob("*.png")))
    packed = tmp_path / "packed.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for file in files:
            archive.write(file, file.removeprefix(f"{data}/"))
    one_by_one = predict(model, files)
    assert [p.label for p in one_by_one] == ["green"] * 8 + ["red"] * 8
    for collection in (data, packed):
        found = predict(model, str(collection), batch_size=5)
        assert [p.path.split("/", collection.as_posix().count("/") + 1)[-1] for p in found] == [
            p.path.removeprefix(f"{data}/") for p in one_by_one
        ]
        assert [p.label for p in found] == [p.label for p in one_by_one]
        assert np.allclose([p.probability for p in found], [p.probability for p in one_by_one])


def test_an_unreadable_file_is_told_and_the_rest_predicted(run, tmp_path):
    data, model = run
    bad, good = tmp_path / "cat.jpg", str(data / "red/000.png")
    bad.write_text("I am not an image")
    console = Heard()
    settings = build(PredictSettings, {"run": model, "images": [str(bad), good]})
    found = run_predict(settings, console)
    assert [p.path for p in found] == [good]
    assert any(str(bad) in line and "not an image" in line for line in console.lines)
    with pytest.raises(DataError, match=r"cat\.jpg"):
        predict(model, str(bad))
    with pytest.raises(DataError, match="no folder or file"):
        predict(model, str(tmp_path / "nowhere.jpg"))
    with pytest.raises(UsageError, match="No images to predict"):
        predict(model, [])


def test_out_is_a_csv(run, tmp_path):
    data, model = run
    out = tmp_path / "found.csv"
    settings = build(PredictSettings, {"run": model, "images": [str(data)], "out": str(out)})
    assert run_predict(settings, Heard()) == WrittenPredictions(str(out), 16)
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert list(rows[0]) == ["path", "label", "probability"] and len(rows) == 16


def test_the_model_folder_alone_is_enough(run, tmp_path):
    data, model = run
    alone = shutil.copytree(f"{model}/model", tmp_path / "alone")
    assert predict(str(alone), str(data / "red/000.png"))[0].label == "red"


def test_rotated_grey_alpha_and_deep_images_are_read_as_in_training(run, tmp_path):
    data, model = run
    image = Image.open(data / "red/000.png")
    turned = Image.new("RGB", (3, 3))
    exif = turned.getexif()
    exif[0x0112] = 6
    lying = image.rotate(90, expand=True)
    lying.save(tmp_path / "turned.png", exif=exif)
    see_through = image.convert("RGBA")
    see_through.save(tmp_path / "alpha.png")
    plain = predict(model, str(data / "red/000.png"))[0]
    for name in ("turned.png", "alpha.png"):
        found = predict(model, str(tmp_path / name))[0]
        assert (found.label, found.probability) == (plain.label, pytest.approx(plain.probability))
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(tmp_path / "deep.png")
    assert len(predict(model, str(tmp_path / "deep.png"))) == 1


def test_arrays_are_predicted_by_position(run):
    data, model = run
    pixels = np.asarray(Image.open(data / "green/000.png"))
    found = load(model).predict([pixels, pixels])
    assert [p.path for p in found] == ["0", "1"] and {p.label for p in found} == {"green"}


def test_a_folder_in_the_way_of_the_csv_is_said_before_the_work(run, tmp_path):
    for setting in ("out", "sort_into", "explain"):
        (tmp_path / "file").write_text("of somebody")
        target = tmp_path if setting == "out" else tmp_path / "file"
        with pytest.raises(UsageError, match=r"is a folder|is a file|not an empty folder"):
            predict(run[1], "no such image", **{setting: str(target)})


def test_the_paths_of_a_list_are_those_of_its_files(run, tmp_path):
    data, model = run
    name = next((data / "red").iterdir()).name
    (data / "list.csv").write_text(f"path\nred/{name}\n")
    assert predict(model, str(data / "list.csv"))[0].path == str(data / "red" / name)


def test_one_image_needs_no_list_and_paths_are_as_good_as_text(run, tmp_path):
    data, model = run
    file = sorted(data.rglob("red/*.png"))[0]
    (one,) = predict(model, [str(file)])
    assert predict(model, file) == predict(model, str(file)) == predict(model, [file]) == [one]
    (alone,) = load(model).predict(str(file))
    assert load(model).predict(file) == [alone] and alone.label == one.label


def test_a_prediction_reads_as_json_shows_it(run):
    data, model = run
    (one,) = predict(model, [str(sorted(data.rglob("red/*.png"))[0])])
    assert dict(one) == plain(one) and one["label"] == one.label == "red"
    assert repr(one) == (
        f"Prediction(path={one.path!r}, label='red', probability={one.probability!r})"
    )
    with pytest.raises(KeyError):
        one["class"]


def test_the_most_likely_classes_and_every_probability(run, tmp_path):
    data, model = run
    files = sorted(map(str, data.rglob("*.png")))[6:10]
    plain_ones = predict(model, files)
    found = predict(model, files, top=2, probabilities=True)
    for one, with_more in zip(plain_ones, found, strict=True):
        assert set(dict(one)) == {"path", "label", "probability"}
        assert (with_more.label, with_more.probability) == (one.label, one.probability)
        first, second = with_more["top"]
        assert first == {"label": one.label, "probability": one.probability}
        assert second["probability"] == pytest.approx(1 - one.probability, abs=1e-6)
        assert set(with_more.probabilities) == {"green", "red"}
        assert sum(with_more.probabilities.values()) == pytest.approx(1, abs=1e-6)
        assert plain(with_more) == dict(with_more)
    # more than there are: all
    assert [len(p["top"]) for p in load(model).predict(files, top=9)] == [2] * 4
    out = tmp_path / "p.csv"
    words = ["--top", "5", "--probabilities", "--out", str(out)]
    assert main(["predict", str(model), *files, *words]) == 0
    with out.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    columns = ["path", "label", "probability", "label_2", "probability_2"]
    assert list(rows[0]) == [*columns, "probability:green", "probability:red"]
    for row, one in zip(rows, found, strict=True):
        assert row["label_2"] == one.top[1]["label"] != row["label"]
        assert float(row["probability:red"]) == pytest.approx(one.probabilities["red"], abs=1e-6)
    # written again over the table of an earlier prediction
    assert main(["predict", str(model), *files, *words]) == 0


def test_images_are_copied_into_the_folders_of_their_classes(run, tmp_path, capsys):
    data, model = run
    packed = tmp_path / "packed.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for colour in ("red", "green"):
            archive.write(data / colour / "000.png", f"{colour}/000.png")
            archive.write(data / colour / "001.png", f"more/{colour}/000.PNG")
        archive.writestr("broken.png", b"no image")
    out = tmp_path / "sorted"
    assert main(["predict", str(model), str(packed), "--sort-into", str(out)]) == 0
    found = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.*")}
    assert set(found) == {
        f"{colour}/{name}" for colour in ("red", "green") for name in ("000.png", "000-2.PNG")
    }
    assert found["red/000-2.PNG"] == (data / "red/001.png").read_bytes()
    # never into what is there
    for target in (out, data / "new"):
        assert main(["predict", str(model), str(data), "--sort-into", str(target)]) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert not (data / "new").exists()
    with pytest.raises(UsageError, match="arrays have none"):
        predict(model, np.zeros((8, 8, 3), np.uint8), sort_into=str(tmp_path / "arrays"))


def test_names_of_classes_become_names_of_folders(tmp_path):
    labels = ["a/b", "a_b", "..", "A_B", "con: x"]
    copies = [lambda: b"1"] * len(labels)
    sort_into(tmp_path / "out", ["x.png"] * len(labels), copies, labels)
    folders = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert folders == ["A_B-3", "_", "a_b", "a_b-2", "con_ x"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_full_disk_while_sorting_is_said(tmp_path, monkeypatch):
    def full(place, data):
        raise ResourceError("The disk is full: x could not be written.", "continue with --resume")

    monkeypatch.setattr("unfreeze.runs.predictions_out.write_bytes", full)
    with pytest.raises(ResourceError, match="disk is full") as error:
        sort_into(tmp_path / "out", ["x.png"], [lambda: b"1"], ["a"])
    assert error.value.next_step == "Free some space, and name a new folder."
