"""Tables and shards through the verbs, as people type them."""

import io
import json
import tarfile

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unfreeze.cli.main import main
from unfreeze.runtime.terminal import Environment

TINY = ("--arch", "unfreeze/tiny", "--weights", "none", "--epochs", "2", "--augment", "none")


def called(*words):
    """(exit code, the JSON document, what people were told)."""
    world = Environment(io.StringIO(), io.StringIO())
    code = main([*map(str, words), "--json"], world)
    text = world.stdout.getvalue()
    return code, json.loads(text) if text else None, world.stderr.getvalue()


@pytest.fixture(scope="module")
def images(colours, tmp_path_factory):
    """(bytes, colour, split) of each."""
    folder = tmp_path_factory.mktemp("colours")
    colours(folder, {"train/red": 8, "train/blue": 8, "test/red": 3, "test/blue": 3})
    return [
        (path.read_bytes(), path.parent.name, path.parent.parent.name)
        for path in sorted(folder.rglob("*.png"))
    ]


@pytest.fixture(scope="module")
def table(images, tmp_path_factory):
    classes = {"_type": "ClassLabel", "names": ["blue", "red"]}
    features = {"colour": classes, "shade": classes}
    columns = {
        "image": [{"bytes": data, "path": None} for data, _, _ in images],
        "colour": [int(colour == "red") for _, colour, _ in images],
        "shade": [0] * len(images),
        "split": [split for _, _, split in images],
    }
    told = json.dumps({"info": {"features": features}})
    path = tmp_path_factory.mktemp("table") / "colours.parquet"
    pq.write_table(pa.table(columns).replace_schema_metadata({"huggingface": told}), path)
    return path


@pytest.fixture(scope="module")
def shards(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for split in ("train", "test"):
        with tarfile.open(folder / f"{split}-000.tar", "w") as archive:
            for place, (data, colour, own) in enumerate(images):
                if own != split:
                    continue
                for name, content in ((f"{place}.png", data), (f"{place}.cls", colour.encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return folder


@pytest.fixture(scope="module")
def run(table, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    code, found, told = called("finetune", table, "--labels", "colour", *TINY, "--out", out)
    assert code == 0, told
    return out, found


def test_a_table_is_learned_from_and_shards_of_the_same_are_known_again(run, table, shards):
    out, found = run
    assert found["classes"] == ["blue", "red"]
    code, scores, _ = called("evaluate", out, shards)
    assert (code, scores["split"], scores["n"], scores["seen_in_training"]) == (0, "test", 6, 0)
    _, again, _ = called("evaluate", out, table, "--labels", "colour")
    assert again["confusion"] == scores["confusion"]
    _, everything, _ = called("evaluate", out, shards, "--split", "all")
    assert everything["n"] == 22 and everything["seen_in_training"] == found["images"]


def test_two_columns_of_classes_are_not_guessed_between(table, tmp_path):
    code, _, told = called("finetune", table, *TINY, "--out", tmp_path / "r")
    assert code == 3 and "has no classes" in told


def test_predict_embed_and_scan_read_them(run, table, shards, tmp_path):
    pattern = f"{shards}/{{train,test}}-000.tar"
    code, found, _ = called("predict", run[0], table, pattern)
    assert code == 0 and len(found) == 44
    assert found[0]["path"] == f"{table}/00" and found[-1]["path"].startswith(pattern)
    code, found, _ = called("embed", run[0], shards, "--out", tmp_path / "f.npz", "--split", "test")
    assert (code, found["images"]) == (0, 6)
    code, found, _ = called("scan", shards, table)
    assert (code, found["pictures"], len(found["duplicates"])) == (0, 44, 22)
    assert found["other"] == 22  # a class beside each image of the shards


def test_what_cannot_be_used_inside_a_table_is_left_out_and_may_be_listed(table, tmp_path):
    broken = tmp_path / "broken.parquet"
    one = pq.read_table(table).slice(0, 6)
    rows = one["image"].to_pylist()
    rows[1]["bytes"], rows[4]["bytes"] = b"<html>", None
    pq.write_table(one.set_column(0, "image", pa.array(rows)), broken)
    code, found, _ = called("scan", broken, "--quarantine", tmp_path / "q")
    assert (code, found["usable"], found["quarantined"]) == (0, 4, 2)
    assert {(p["path"], p["reason"]) for p in found["problems"] if p["left_out"]} == {
        ("1", "not an image"),
        ("4", "empty"),
    }
    assert broken.with_name("broken.parquet.left-out.csv").is_file()
    _, found, _ = called("scan", broken)
    assert [p["reason"] for p in found["problems"] if p["left_out"]] == ["left out"] * 2
    called("scan", broken, "--undo", tmp_path / "q")
    assert not broken.with_name("broken.parquet.left-out.csv").exists()


def test_an_address_is_as_good_as_a_file(run, table, tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe("here/colours.parquet", table.read_bytes())
    address = "memory://here/colours.parquet"
    words = ["--labels", "colour", *TINY, "--out", tmp_path / "r"]
    code, _, told = called("finetune", address, *words, "--dry-run")
    assert code == 3 and "a dry run downloads nothing" in told
    code, scores, told = called("evaluate", run[0], address, "--labels", "colour")
    assert (code, scores["n"]) == (0, 6), told
    code, found, told = called("finetune", address, *words)
    assert code == 0 and found["images"] == run[1]["images"]
    assert "Using the cached copy" in told
    code, _, told = called("scan", address, "--quarantine", tmp_path / "q")
    assert code == 2 and "Use a local folder or archive" in told
    memory.rm("/", recursive=True)
    code, _, told = called("pretrain", address, "--out", tmp_path / "p")
    assert code == 3 and "There is no file at" in told


def test_labels_for_a_folder_may_stand_in_a_parquet_file(images, tmp_path):
    folder = tmp_path / "flat"
    folder.mkdir()
    for place, (data, _, _) in enumerate(images):
        (folder / f"{place:02}.png").write_bytes(data)
    names = [f"{place:02}.png" for place in range(len(images))]
    labels = [colour for _, colour, _ in images]
    pq.write_table(pa.table({"path": names, "label": labels}), tmp_path / "l.parquet")
    words = ["--labels", tmp_path / "l.parquet", "--dry-run"]
    code, found, told = called("finetune", folder, *TINY, *words)
    assert code == 0, told
    assert found["counts"] == {"blue": {"all": 11}, "red": {"all": 11}}


def test_several_labels_to_a_image_end_with_3_or_are_said(images, run, tmp_path):
    for place, (data, _, _) in enumerate(images[:6]):
        (tmp_path / f"{place}.png").write_bytes(data)
    labels = ["red", "red|blue", "blue", "red", "blue|red", "blue"]
    lines = [f"{place}.png,{label}" for place, label in enumerate(labels)]
    (tmp_path / "l.csv").write_text("\n".join(["path,label", *lines]) + "\n")
    single = ("--task", "classification")
    for words in (
        ("finetune", tmp_path / "l.csv", *TINY, *single, "--out", tmp_path / "r"),
        ("compare", tmp_path / "l.csv", *single, "--weights", "none", run[0], "--out",
         tmp_path / "c"),
        ("evaluate", run[0], tmp_path / "l.csv"),
    ):  # fmt: skip
        code, _, told = called(*words)
        assert code == 3 and "2 of 6 images have several labels" in told, words
        assert "finetune --task multilabel" in told
    code, found, told = called("finetune", tmp_path / "l.csv", *TINY, "--dry-run")
    assert code == 0 and "blue 4, red 4" in told and found["classes"] == ["blue", "red"]
    code, found, _ = called("scan", tmp_path / "l.csv")
    assert code == 0 and any("labels are ignored here" in note for note in found["notes"])
    words = ["--arch", "unfreeze/tiny", "--epochs", 0, "--device", "cpu", "--out", tmp_path / "p"]
    code, found, told = called("pretrain", tmp_path / "l.csv", *words)
    assert (code, found["images"]) == (0, 6) and "labels are ignored here" in told
