"""Parquet: lists of paths, and images inside as `datasets` writes them."""

import io
import json
import pickle
import sys
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unfreeze.data.index.index import TEST, TRAIN, build_index
from unfreeze.data.sources.csv import CsvSource
from unfreeze.data.sources.open import open_source
from unfreeze.data.validate.precheck import check_images
from unfreeze.errors import DataError, ResourceError, UsageError

NAMES = ["cat", "dog"]


def of_classes(table, **columns):
    """As `datasets` notes the names of classes in a schema."""
    features = {
        name: {"names": NAMES, "_type": "ClassLabel"} if one is None else one
        for name, one in columns.items()
    }
    told = json.dumps({"info": {"features": features}})
    return table.replace_schema_metadata({"huggingface": told})


@pytest.fixture
def inside(made):
    """A table of four images, the third without bytes, with classes by number."""
    images = [
        {"bytes": made.encoded(made.noise(seed=seed)), "path": f"{seed}.png"} for seed in range(4)
    ]
    images[2]["bytes"] = None
    table = pa.table(
        {
            "image": images,
            "label": [1, 0, -1, 1],
            "split": ["train", "train", None, "test"],
            "patient": ["a", "b", None, "a"],
        }
    )
    return of_classes(table, label=None)


def test_a_list_is_what_the_same_csv_is(made):
    root = made.folder(made.members(["a/1.png", "b/2.png", "3.png"]))
    rows = [
        ("a/1.png", "x", "train", "g1"),
        ("b/2.png", "y", "train", ""),
        ("3.png", "", "test", "g1"),
    ]
    columns = dict(zip(("path", "label", "split", "group"), zip(*rows, strict=True), strict=True))
    pq.write_table(
        pa.table({name: list(told) for name, told in columns.items()}), root / "l.parquet"
    )
    lines = [",".join(row) for row in rows]
    (root / "l.csv").write_text("\n".join(["path,label,split,group", *lines]) + "\n")
    one, two = (open_source(str(root / f"l.{kind}")) for kind in ("csv", "parquet"))
    assert isinstance(one, CsvSource) and two.kind == "parquet"
    for name in ("names", "labels", "splits", "groups"):
        assert getattr(one, name) == getattr(two, name)
    assert [one.read(row) for row in range(3)] == [two.read(row) for row in range(3)]
    assert two.column("group") == ["g1", "", "g1"] and two.column("age") is None


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": ["a.png", "b.png"]}, r"row 2: the file 'b\.png' does not exist"),
        ({"path": ["a.png", "a.png"]}, "lists a.png twice, on rows 1 and 2"),
        ({"age": ["7"]}, "no column `path`; its columns are age"),
        ({"path": []}, "contains no files"),
    ],
)
def test_what_is_wrong_with_a_list_is_named_with_its_row(made, columns, message):
    root = made.folder({"a.png": b"x"})
    pq.write_table(
        pa.table({key: pa.array(v, pa.string()) for key, v in columns.items()}), root / "l.parquet"
    )
    with pytest.raises(DataError, match=message):
        open_source(str(root / "l.parquet"))


def test_images_inside_come_with_their_classes_splits_and_groups(made, inside):
    pq.write_table(inside, made.root / "d.parquet", row_group_size=2)
    source = open_source(str(made.root / "d.parquet"))
    assert source.names == ["0.png", "1.png", "2.png", "3.png"]
    wanted = [one["bytes"] or b"" for one in inside["image"].to_pylist()]
    assert [source.read(row) for row in range(4)] == wanted
    assert source.head(1, 4) == b"\x89PNG"
    assert source.labels == ["dog", "cat", "", "dog"]
    assert source.column("patient") == ["a", "b", "", "a"]
    index = build_index(source)
    assert (index.classes, index.splits.tolist()) == (("cat", "dog"), [TRAIN, TRAIN, 0, TEST])
    found = check_images(index, workers=1)
    assert [(one.path, one.reason) for one in found.problems] == [("2.png", "empty")]
    again = pickle.loads(pickle.dumps(source))
    assert [again.read(row) for row in range(4)] == wanted
    assert again.fingerprint() == source.fingerprint()


def test_pickled_where_open_files_have_no_names_it_unpacks_again(made, inside, monkeypatch):
    pq.write_table(inside, made.root / "d.parquet")
    source = open_source(str(made.root / "d.parquet"))
    monkeypatch.setattr("unfreeze.data.sources.source.PositionalFile.alias", None)
    again = pickle.loads(pickle.dumps(source))
    assert again.read(3) == source.read(3) and again._files[0] is not source._files[0]


def test_the_fingerprint_follows_the_file(made, inside):
    path = made.root / "d.parquet"
    pq.write_table(inside, path)
    before = open_source(str(path)).fingerprint()
    assert open_source(str(path)).fingerprint() == before
    pq.write_table(inside.slice(1), path)
    assert open_source(str(path)).fingerprint() != before


def test_a_folder_of_files_has_splits_by_their_names(made, inside):
    folder = made.folder({"data/README.md": b"words", "dataset_infos.json": b"{}"})
    plain = inside.drop_columns(["split"])
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"):
        pq.write_table(plain, folder / "data" / f"{name}.parquet")
    source = open_source(str(folder))
    index = build_index(source)
    assert len(index) == 12
    assert index.paths[0] == "data/train-00000-of-00002/0.png"
    assert index.splits.tolist() == [1] * 8 + [2] * 4
    pq.write_table(plain, folder / "data" / "more.parquet")
    with pytest.raises(DataError, match=r"data/more\.parquet does not"):
        open_source(str(folder))


def test_parquet_beside_images_is_another_file(made):
    folder = made.folder(made.members(["a/1.png", "b/2.png"]))
    pq.write_table(pa.table({"x": [1]}), folder / "notes.parquet")
    source = open_source(str(folder))
    assert source.kind == "folder" and len(build_index(source)) == 2


def test_names_that_rows_do_not_have_are_numbers(made):
    bytes_ = [made.encoded(made.noise(seed=seed)) for seed in range(11)]
    pq.write_table(pa.table({"img": bytes_, "fine": ["x"] * 11}), made.root / "n.parquet")
    source = open_source(str(made.root / "n.parquet"))
    assert source.names[:2] == ["00", "01"] and source.labels is None


@pytest.mark.parametrize(
    ("columns", "labels"),
    [
        ({"labels": ["x", "y"]}, ["x", "y"]),
        ({"coarse": [0, 1]}, ["cat", "dog"]),
        ({"coarse": [0, 1], "fine": [1, 0]}, None),
        ({"label": [1.0, None]}, ["1", ""]),
        ({"label": [["cat", "dog"], []]}, ["cat;dog", ""]),
        ({"label": [True, False]}, ["True", "False"]),
    ],
)
def test_what_counts_as_labels(made, columns, labels):
    images = [made.encoded(made.noise(seed=seed)) for seed in range(2)]
    table = pa.table({"image": images, **columns})
    classes = {name: None for name in columns if name in ("coarse", "fine")}
    pq.write_table(of_classes(table, **classes), made.root / "c.parquet")
    assert open_source(str(made.root / "c.parquet")).labels == labels


def test_a_class_without_a_name_and_a_broken_file(made, inside):
    table = inside.set_column(1, "label", pa.array([0, 1, 2, 0]))
    path = made.root / "d.parquet"
    pq.write_table(table.replace_schema_metadata(inside.schema.metadata), path)
    with pytest.raises(DataError, match="a label without a class name"):
        open_source(str(path))
    for cut in (0, 10, path.stat().st_size // 2):
        (made.root / "cut.parquet").write_bytes(path.read_bytes()[:cut])
        with pytest.raises(DataError, match="cannot be read as a table"):
            open_source(str(made.root / "cut.parquet"))


def test_a_disk_without_room_is_said(made, inside, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(28, "No space left on device")

    pq.write_table(inside, made.root / "d.parquet")
    monkeypatch.setattr("tempfile.TemporaryFile", Full)
    with pytest.raises(Exception, match="TMPDIR") as raised:
        open_source(str(made.root / "d.parquet"))
    assert raised.value.exit_code == 6


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk without room, by Linux")
def test_a_disk_whose_room_ends_with_the_last_bytes_is_said(made, inside, monkeypatch):
    pq.write_table(inside, made.root / "d.parquet")
    made.tar({"a.png": b"x"}, "d.tar.gz")
    monkeypatch.setattr("tempfile.TemporaryFile", partial(Path("/dev/full").open, "wb"))
    for name in ("d.parquet", "d.tar.gz"):
        with pytest.raises(ResourceError, match=r"No space left on device"):
            open_source(str(made.root / name))


def test_files_without_rows_or_images_are_read(made, inside):
    plain = inside.drop_columns(["split"])
    without = plain.slice(2, 1)  # no bytes
    for name, table in {"train-0": plain.slice(0, 0), "train-1": without, "test-0": plain}.items():
        pq.write_table(table, made.root / f"{name}.parquet")
    source = open_source(str(made.root))
    assert source.sizes.tolist()[2:] == [0, source.sizes[3], 0]
    assert source.names[3:] == ["test-0/3.png", "train-1/2.png"] and source.read(4) == b""


def test_without_pyarrow_the_extra_is_named(made, monkeypatch):
    (made.root / "d.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"unfreeze\[parquet\]"):
        open_source(str(made.root / "d.parquet"))


def test_pixels_are_those_of_the_bytes(made):
    pixels = made.noise()
    pq.write_table(pa.table({"image": [made.encoded(pixels)]}), made.root / "p.parquet")
    data = open_source(str(made.root / "p.parquet")).read(0)
    assert (made.noise() == Image.open(io.BytesIO(data))).all()
