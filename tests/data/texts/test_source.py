"""Texts are read from every usual form, byte for byte, with labels, splits and groups."""

import json

import pytest

from unfreeze.data.index.index import TEST, VAL, build_index
from unfreeze.data.texts.source import TextColumns, holds_texts, open_texts
from unfreeze.errors import DataError

ROWS = [
    ("NA", "a", "train"),
    ("null", "b", "train"),
    ('says "yes",\nand goes', "a", "train"),
    ("  spaces stay ", "b", "val"),
    ("naïve café ☕", "a", "test"),
]


def delimited(rows, separator=",", end="\n"):
    def quoted(value):
        doubled = value.replace('"', '""')
        return f'"{doubled}"'

    lines = [("text", "label", "split"), *rows]
    return end.join(separator.join(map(quoted, line)) for line in lines) + end


def read(path):
    source = open_texts(str(path))
    return list(zip(source.texts, source.labels, source.splits, strict=True))


@pytest.mark.parametrize(
    "name, separator, end, encoding",
    [
        ("plain.csv", ",", "\n", "utf-8"),
        ("bom.csv", ",", "\r\n", "utf-8-sig"),
        ("semicolons.csv", ";", "\n", "utf-8"),
        ("tabs.tsv", "\t", "\n", "utf-8"),
        ("wide.csv", ",", "\n", "utf-16"),
    ],
)
def test_tables_are_read_as_written(tmp_path, name, separator, end, encoding):
    path = tmp_path / name
    path.write_bytes(delimited(ROWS, separator, end).encode(encoding))
    assert read(path) == ROWS


def test_json_lines_and_parquet_are_read_as_written(tmp_path):
    names = ("text", "label", "split")
    lines = [json.dumps(dict(zip(names, row, strict=True))) for row in ROWS]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert read(tmp_path / "rows.jsonl") == ROWS
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = dict(zip(names, map(list, zip(*ROWS, strict=True)), strict=True))
    parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet")
    assert read(tmp_path / "rows.parquet") == ROWS


def test_windows_1252_is_read_and_named(tmp_path):
    path = tmp_path / "old.csv"
    path.write_bytes(delimited([("café – 5 €", "a", "train")]).encode("cp1252"))
    source = open_texts(str(path))
    assert source.texts == ["café – 5 €"]
    assert any("1252" in note for note in source.notes)


def test_text_files_have_the_labels_of_their_folders(tmp_path):
    for split in ("train", "test"):
        for label in ("neg", "pos"):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for number in range(2):
                file = tmp_path / "data" / split / label / f"{number}.txt"
                file.write_text(f"{label} {number}")
    assert holds_texts(str(tmp_path / "data"))
    index = build_index(open_texts(str(tmp_path / "data")))
    assert index.classes == ("neg", "pos") and len(index) == 8
    assert index.paths[0] == "test/neg/0.txt"


def test_text_files_that_are_not_utf_8_are_named(tmp_path):
    for label, text in (("a", "café"), ("b", "tea")):
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.txt").write_bytes(text.encode("cp1252"))
    source = open_texts(str(tmp_path))
    assert source.texts == ["café", "tea"]
    assert any("1 .txt files" in note and "1252" in note for note in source.notes)


def test_one_table_for_each_split(tmp_path):
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.csv").write_text(f"text,label\nof {split},a\nand {split},b\n")
    source = open_texts(str(tmp_path))
    index = build_index(source)
    assert (len(index), len(index.where(VAL)), len(index.where(TEST))) == (6, 2, 2)
    assert source.names[0] == "test.csv:1"


@pytest.mark.parametrize("header", ["review,sentiment", "Sentence,Target", "content,category"])
def test_usual_names_of_columns(tmp_path, header):
    path = tmp_path / "data.csv"
    path.write_text(f"{header}\nfine,1\npoor,0\n")
    source = open_texts(str(path))
    assert (source.texts, source.labels) == (["fine", "poor"], ["1", "0"])


def test_given_columns_and_their_absence(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("body,said,kind\na b,c d,x\n")
    source = open_texts(str(path), TextColumns(text="said", label="kind"))
    assert (source.texts, source.labels) == (["c d"], ["x"])
    with pytest.raises(DataError, match="no column 'gone'"):
        open_texts(str(path), TextColumns(text="gone"))


@pytest.mark.parametrize(
    "header, row, texts",
    [
        ("text,label", "fine,a", True),
        ("id,text,label", "7,fine,a", True),
        ("image,text,label", "1.png,fine,a", False),
        ("id,text,label", "1.png,fine,a", False),
        ("path,label", "1.png,a", False),
    ],
)
def test_texts_and_images_are_told_apart(tmp_path, header, row, texts):
    path = tmp_path / "data.csv"
    path.write_text(f"{header}\n{row}\n")
    assert holds_texts(str(path)) == texts


def test_damaged_json_names_its_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": "b"}\n{"text": \n')
    with pytest.raises(DataError, match="line 2"):
        open_texts(str(path))
