"""Lists as spreadsheets and other systems write them, and what is none."""

import gzip
import io
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unfreeze.data.sources.delimited import read_delimited
from unfreeze.errors import DataError

ROWS = [
    ("path", "label"),
    ("a/1.png", "s\u00fc\u00df, rot"),
    ("b/2.png", "caf\u00e9"),
    ("c/3.png", "two\nlines"),
]
COLUMNS = {"path": [row[0] for row in ROWS[1:]], "label": [row[1] for row in ROWS[1:]]}
SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|"}


def written(separator, ends="\n", *, quoted=False):
    def field(text):
        special = quoted or separator in text or "\n" in text
        return f'"{text}"' if special else text

    return ends.join(separator.join(map(field, row)) for row in ROWS) + ends


@pytest.fixture
def read(tmp_path):
    def read(data, name="list.csv", **more):
        path = tmp_path / name
        path.write_bytes(data)
        return read_delimited(path, **more)

    return read


@pytest.mark.parametrize("separator", SEPARATORS.values(), ids=SEPARATORS)
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"], ids=["unix", "windows", "old mac"])
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"]
)
def test_every_separator_line_end_and_encoding(read, separator, ends, encoding):
    found = read(written(separator, ends).encode(encoding))
    assert found.columns == COLUMNS
    assert bool(found.notes) == (encoding == "cp1252")


def test_what_is_guessed_is_said(read, tmp_path):
    (note,) = read(written(";").encode("cp1252")).notes
    assert note == f"{tmp_path / 'list.csv'} is not UTF-8: read as Windows-1252."


def test_names_that_are_no_text_are_kept_where_such_files_are_there(read):
    data = b"path,label\n\xfc.png,cat\n"
    assert read(data).columns["path"] == ["\u00fc.png"]
    assert read(data, exists=lambda n: n == r"\xfc.png").columns["path"] == [r"\xfc.png"]
    # no text in Windows-1252 either
    assert read(b"path\n\x81\xff.png\n").columns["path"] == [r"\x81\xff.png"]


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\npath;label\n1.png;a\n",  # Excel's own word for it
        "path,label,,\n1.png,a,,\n,,,\n\n",  # columns and rows of nothing
        ",path,label\n0,1.png,a\n",  # the row numbers that pandas writes
        "\ufeffpath , label\n 1.png , a\n",
        "path,label\n1.png,a\n\x1a",  # the end of a file as DOS has it
        "path,label\n1.png,a,\n",
    ],
)
def test_what_spreadsheets_add_is_passed_over(read, text):
    assert read(text.encode()).columns == {"path": ["1.png"], "label": ["a"]}


def test_a_packed_list(read):
    assert read(gzip.compress(written(",").encode()), "list.csv.gz").columns == COLUMNS


def excel():
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as book:
        book.writestr("xl/worksheets/sheet1.xml", "<x/>")
    return data.getvalue()


def archive():
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as packed:
        packed.writestr("a/1.png", "x")
    return data.getvalue()


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (excel(), "an Excel workbook (.xlsx)"),
        (gzip.compress(excel()), "an Excel workbook (.xlsx)"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), "an Excel workbook (.xls)"),
        (archive(), "a zip archive"),
        (b"SQLite format 3\x00" + bytes(99), "an SQLite database"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "an image (PNG)"),
        (b'[{"path": "1.png"}]', "JSON"),
        (b"<html><body>Log in</body></html>", "HTML or XML"),
        (b"path\x00\x1b[31mlabel\n\x07", "binary data"),
        (bytes(range(256)), "binary data"),
    ],
    ids=range(11),
)
def test_what_is_no_text_is_refused_as_what_it_is(read, data, what):
    with pytest.raises(DataError) as raised:
        read(data)
    assert f"is {what}, not a CSV" in raised.value.sentence
    assert "CSV" in raised.value.next_step


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("path,label,label\n1.png,a,b\n", "two columns named 'label'"),
        ("a/1.png,cat\na/2.png,dog\n", "contains no column names: a/1.png, cat"),
        ("path,label\n1.png\n", "line 2: 1 fields, but the header has 2"),
        ("path;label\n1.png;a;b\n2.png;a\n", "line 2: 3 fields"),
        ('path,label\n"1.png,a\n2.png,b\n', "1 fields, but the header has 2"),
    ],
)
def test_what_is_wrong_with_a_list(read, text, message):
    with pytest.raises(DataError, match=message):
        read(text.encode())


def test_a_packed_list_that_is_cut(read):
    with pytest.raises(DataError, match="is a truncated or corrupt gzip file"):
        read(gzip.compress(written(",").encode() * 99)[:60])


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_a_list_or_a_data_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(data)
    try:
        found = read_delimited(path)
    except DataError as error:
        assert str(path) in error.sentence and error.next_step
        return
    assert {len(column) for column in found.columns.values()} <= {len(found.lines)}


def test_fields_as_they_are(read):
    assert read(b"path\n a.png \n", strip=False).columns == {"path": [" a.png "]}


def test_a_list_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_delimited(tmp_path / "absent.csv")
