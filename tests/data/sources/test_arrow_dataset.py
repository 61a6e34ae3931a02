"""Data sets that Hugging Face `datasets` saved: read in place from their Arrow files."""

import json
import os
import pickle
import subprocess
import sys

import pyarrow as pa
import pytest

from unfreeze.data.index.index import TEST, TRAIN, build_index
from unfreeze.data.sources.open import open_source
from unfreeze.data.validate.precheck import check_images
from unfreeze.errors import DataError


def schema_of(names):
    features = {
        "image": {"_type": "Image"},
        "label": {"names": names, "_type": "ClassLabel"},
    }
    told = json.dumps({"info": {"features": features}})
    inner = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [("image", inner), ("label", pa.int64()), ("patient", pa.string())]
    return pa.schema(fields, metadata={"huggingface": told})


@pytest.fixture
def saved(made):
    """`saved(folder, labels, files)`: as `save_to_disk` writes it, in batches of two rows."""

    def save(folder, labels, files=1, names=("cat", "dog"), options=None):
        folder.mkdir(parents=True, exist_ok=True)
        listed = [f"data-{number:05}-of-{files:05}.arrow" for number in range(files)]
        for number, name in enumerate(listed):
            rows = [
                {
                    "image": {"bytes": made.encoded(made.noise(seed=place)), "path": None},
                    "label": label,
                    "patient": f"p{place % 2}",
                }
                for place, label in enumerate(labels)
                if place % files == number
            ]
            table = pa.Table.from_pylist(rows, schema_of(list(names)))
            with (
                pa.OSFile(str(folder / name), "wb") as file,
                pa.ipc.new_stream(file, table.schema, options=options) as writer,
            ):
                writer.write_table(table, max_chunksize=2)
        state = {"_data_files": [{"filename": name} for name in listed], "_split": None}
        (folder / "state.json").write_text(json.dumps(state))
        (folder / "dataset_info.json").write_text("{}")
        return folder

    return save


def test_images_are_read_in_place_with_their_classes(made, saved):
    folder = saved(made.root / "set", [0, 1, 1, 0, -1], files=2)
    source = open_source(str(folder))
    assert source.names[:3] == [f"data-00000-of-00002/{row}" for row in range(3)]
    order = [0, 2, 4, 1, 3]  # of the rows that were saved, file by file
    wanted = [made.encoded(made.noise(seed=seed)) for seed in order]
    assert [source.read(row) for row in range(5)] == wanted
    assert source.labels == ["cat", "dog", "", "dog", "cat"]
    assert source.splits is None and source.column("patient") == ["p0", "p0", "p0", "p1", "p1"]
    again = pickle.loads(pickle.dumps(source))
    assert [again.read(row) for row in range(5)] == wanted
    assert not check_images(build_index(source), workers=1).problems


def test_splits_are_folders_and_strange_ones_are_named(made, saved):
    root = made.root / "dict"
    for name, labels in (("train", [0, 1, 0]), ("test", [1]), ("extra", [0, 0])):
        saved(root / name, labels)
    (root / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test", "extra"]}))
    source = open_source(str(root))
    index = build_index(source)
    assert index.splits.tolist() == [TRAIN] * 3 + [TEST]
    assert index.paths[-1] == "test/data-00000-of-00001/0"
    assert any("ignored: extra." in note for note in index.notes)
    assert len(open_source(str(root / "extra"))) == 2


def test_the_fingerprint_follows_the_files(made, saved):
    folder = saved(made.root / "set", [0, 1])
    before = open_source(str(folder)).fingerprint()
    assert open_source(str(folder)).fingerprint() == before
    saved(folder, [0, 1, 1])
    assert open_source(str(folder)).fingerprint() != before


def test_what_is_broken_is_named(made, saved):
    folder = saved(made.root / "set", [0, 1, 1, 0])
    file = folder / "data-00000-of-00001.arrow"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read as a table"):
        open_source(str(folder))
    file.unlink()
    with pytest.raises(DataError, match="which does not exist"):
        open_source(str(folder))
    (folder / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"state\.json cannot be read"):
        open_source(str(folder))


@pytest.mark.parametrize("outside", ["/etc/passwd", "../other.arrow"])
def test_files_outside_of_the_folder_are_not_read(made, saved, outside):
    (made.root / "other.arrow").write_bytes(b"")
    folder = saved(made.root / "set", [0, 1])
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": outside}]}))
    with pytest.raises(DataError, match="outside the archive"):
        open_source(str(folder))


def test_compressed_files_and_other_columns_are_refused_with_a_next_step(made, saved):
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    folder = saved(made.root / "packed", [0, 1], options=options)
    with pytest.raises(DataError, match="is compressed and cannot be read in place"):
        open_source(str(folder))
    folder = saved(made.root / "text", [0, 1])
    table = pa.table({"text": ["a", "b"]})
    file = pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb")
    with file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match=r"no encoded images; its columns are text"):
        open_source(str(folder))


def test_the_file_format_of_arrow_is_read_too(made, saved):
    folder = saved(made.root / "set", [0, 1])
    path = folder / "data-00000-of-00001.arrow"
    with pa.memory_map(str(path)) as file:
        table = pa.ipc.open_stream(file).read_all()
    stretched = pa.Table.from_pylist(table.to_pylist(), table.schema)
    del table
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, stretched.schema) as writer:
        writer.write_table(stretched)
    assert open_source(str(folder)).read(1) == made.encoded(made.noise(seed=1))


def test_a_file_that_shrinks_later_is_named(made, saved):
    folder = saved(made.root / "set", [0, 1, 1])
    file = folder / "data-00000-of-00001.arrow"
    source = open_source(str(folder))
    os.truncate(file, 600)
    found = check_images(build_index(source), workers=1, refuse_above=None)
    assert {one.reason for one in found.problems} == {"truncated"}
    file.unlink()
    assert source.head(0, 4) == b""


IMPORTED = """
import pickle, sys
source = pickle.load(sys.stdin.buffer)
print(len(source.read(0)), "pyarrow" in sys.modules)
"""


def test_other_processes_read_without_the_library(made, saved):
    source = open_source(str(saved(made.root / "set", [0, 1])))
    told = subprocess.run(
        [sys.executable, "-c", IMPORTED],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        input=pickle.dumps(source), capture_output=True, check=True,
    )  # fmt: skip
    assert told.stdout.decode().split() == [str(source.sizes[0]), "False"]
