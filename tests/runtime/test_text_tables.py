"""Tables hold any name, and are read back as they were."""

import csv
import os

from hypothesis import given
from hypothesis import strategies as st

from unfreeze.runtime.text_layout import csv_text, read_csv, read_records, write_csv
from unfreeze.text import as_text

CELLS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@given(rows=st.lists(st.tuples(CELLS.filter(bool), CELLS), max_size=5))
def test_any_text_comes_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("t") / "t.csv"
    write_csv(path, ("path", "label"), rows)
    assert read_csv(path) == [["path", "label"], *map(list, rows)]
    with path.open(encoding="utf-8", newline="") as file:  # as anybody reads it
        assert list(csv.reader(file))[1:] == [list(row) for row in rows]


def test_ordinary_rows_look_ordinary():
    assert csv_text([("a", 1, 0.5), ("b c", "", "d,e")]) == 'a,1,0.5\nb c,,"d,e"\n'


def test_names_that_are_no_utf_8_stand_as_text(tmp_path):
    raw = os.fsdecode(b"caf\xe9\r")
    write_csv(tmp_path / "t.csv", ["path"], [[raw]])
    assert (tmp_path / "t.csv").read_bytes() == b'path\n"caf\\xe9\r"\n'
    assert read_records(tmp_path / "t.csv") == [{"path": as_text(raw)}]
    (tmp_path / "typed.csv").write_bytes(b"\xef\xbb\xbfpath\r\ncaf\xe9\r\n")
    assert read_records(tmp_path / "typed.csv") == [{"path": r"caf\xe9"}]
