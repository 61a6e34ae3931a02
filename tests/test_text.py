"""Every name has one text, every text is UTF-8 and means one name."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unfreeze.text import (
    as_name,
    as_text,
    clean_all,
    decode_text,
    for_screen,
    path_argument,
    without_surrogates,
)

NAMES = st.binary(min_size=1, max_size=40).filter(lambda raw: not set(raw) & {0, 47})
LIKE_OURS = st.lists(
    st.sampled_from([b"\\", b"x", b"e9", b"5c", b"\xe9", b"\xc3\xa9", b"\\x5c", b"\\xff", b"7f"]),
    min_size=1,
    max_size=8,
).map(b"".join)


@given(NAMES | LIKE_OURS)
def test_names_of_any_bytes_are_texts_and_come_back(raw):
    name = os.fsdecode(raw)
    text = as_text(name)
    text.encode("utf-8")
    assert os.fsencode(as_name(text)) == raw
    assert as_text(as_name(text)) == text


@given(st.lists(NAMES | LIKE_OURS, min_size=2, max_size=2, unique=True))
def test_two_names_have_two_texts(pair):
    one, other = (as_text(os.fsdecode(raw)) for raw in pair)
    assert one != other


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\\\0"), min_size=1))
def test_what_is_utf_8_is_its_own_text(name):
    assert as_text(name) == name == as_name(name) == without_surrogates(name)


def test_the_texts_are_those_that_are_documented():
    assert as_text(os.fsdecode(b"caf\xe9.png")) == r"caf\xe9.png"
    assert as_text(r"caf\xe9.png") == r"caf\x5cxe9.png"
    assert as_text("C:\\new\\x1.png") == "C:\\new\\x1.png"
    assert as_text("\ud800") == r"\xed\xa0\x80"  # no name here, but JSON and Python know it


def test_a_text_of_ours_can_be_typed_and_a_home_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    raw = os.fsdecode(b"caf\xe9")
    assert path_argument(r"caf\xe9") == r"caf\xe9"  # there is neither: as it stands
    (tmp_path / raw).mkdir()
    assert path_argument(r"caf\xe9") == raw == path_argument(raw)
    (tmp_path / r"caf\xe9").mkdir()
    assert path_argument(r"caf\xe9") == r"caf\xe9"  # there is such a name
    assert path_argument(r"caf\x5cxe9") == r"caf\xe9"
    assert path_argument("~/run") == str(tmp_path / "home/run")
    assert path_argument("~") == str(tmp_path / "home") and path_argument("./~") == "./~"


def test_everything_in_a_value_becomes_text():
    raw = os.fsdecode(b"\xff")
    made = clean_all({raw: [raw, 1, None, {"a": (raw, r"\xff")}]})
    assert made == {r"\xff": [r"\xff", 1, None, {"a": [r"\xff", r"\xff"]}]}


def test_colours_may_stay():
    assert for_screen("\x1b[1;31ma\x1b[0m\x1b[2J", coloured=True) == "\x1b[1;31ma\x1b[0m\\x1b[2J"
    assert for_screen("\x1b[1ma") == "\\x1b[1ma"


def test_nothing_in_a_name_moves_the_cursor():
    assert for_screen("a\x1b[2J\rb\x07\x85\u2028é🐱\n\tc\x7f") == (
        r"a\x1b[2J\x0db\x07\x85\x2028é🐱" + "\n\t" + r"c\x7f"
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_files_of_every_editor_are_read(encoding):
    marks = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}
    assert decode_text(marks.get(encoding, b"") + "é = 1\r\n".encode(encoding)) == "é = 1\r\n"


@pytest.mark.parametrize("locale", ["C", "en_US.ISO-8859-1"])
def test_the_texts_are_the_same_in_every_locale(tmp_path, locale):
    raws = [b"caf\xc3\xa9", b"caf\xe9", "강🐶".encode(), rb"a\xe9"]
    for raw in raws:
        (tmp_path / os.fsdecode(raw)).mkdir()
    code = (
        "import os, sys\n"
        "from unfreeze.text import as_name, as_text\n"
        f"texts = sorted(map(as_text, os.listdir({str(tmp_path)!r})))\n"
        f"assert all(os.path.isdir(os.path.join({str(tmp_path)!r}, as_name(t))) for t in texts)\n"
        "sys.stdout.buffer.write('/'.join(texts).encode('utf-8'))"
    )
    env = {**os.environ, "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == "/".join(sorted(as_text(os.fsdecode(raw)) for raw in raws))
