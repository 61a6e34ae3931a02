"""Nothing is deleted, nothing is written over, and a crash at any moment can be gone on from."""

import os
from pathlib import Path

import pytest

from unfreeze.data.sources.open import open_source
from unfreeze.data.validate import quarantine as module
from unfreeze.data.validate.quarantine import (
    MANIFEST,
    add_to_ignore_list,
    quarantine,
    read_manifest,
    undo,
)
from unfreeze.data.validate.verdicts import ignore_list_path, read_ignore_list, write_ignore_list
from unfreeze.errors import DataError, UsageError
from unfreeze.text import as_text

BROKEN = [
    ("cat/1.png", "truncated", "image file is truncated"),
    ('cat/4, and "5".png', "empty", "the file has no bytes"),
    ("dog/deep/er/2.png", "unreadable", "a\nline"),
    ("7.png", "bomb", ""),
]


def everything(folder):
    """Path -> (bytes, time of change) of each file below."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def data(tmp_path):
    names = [*(path for path, *_ in BROKEN), "cat/good.png", "dog/deep/good.png"]
    for place, name in enumerate(names):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(50 + 10 * place))
    return tmp_path / "data"


def test_there_and_back_byte_for_byte(data, tmp_path):
    before, aside = everything(data), tmp_path / "aside"
    moved = quarantine(data, aside, BROKEN)
    assert [(line.path, line.reason, line.detail) for line in moved] == BROKEN
    assert set(everything(data)) == {"cat/good.png", "dog/deep/good.png"}
    kept = everything(aside)
    assert kept.pop(MANIFEST) and kept == {path: before[path] for path, *_ in BROKEN}
    assert read_manifest(aside) == moved
    back, said = undo(aside)
    assert (len(back), said) == (4, [])
    assert everything(data) == before and not aside.exists()


class Crash(BaseException):
    pass


def crash_at(monkeypatch, n):
    """The n-th change of the disk does not happen, and nothing after it."""
    left = [n]

    def armed(owner, name):
        real = getattr(owner, name)

        def call(*given, **named):
            left[0] -= 1
            if left[0] <= 0:
                raise Crash
            return real(*given, **named)

        monkeypatch.setattr(owner, name, call)

    armed(module.os, "link")
    armed(module.Path, "unlink")
    armed(module.Path, "rmdir")
    armed(module.Path, "replace")
    armed(module.shutil, "copy2")
    return left


@pytest.mark.parametrize("other_disk", [False, True])
@pytest.mark.parametrize("how", ["there", "back"])
def test_a_crash_at_any_moment_loses_nothing(data, tmp_path, monkeypatch, how, other_disk):
    before, aside = everything(data), tmp_path / "aside"
    link = os.link

    def refused(*given, **named):
        raise OSError(18, "Invalid cross-device link")

    crashes = 0
    for n in range(1, 60):
        with monkeypatch.context() as patch:
            patch.setattr(module.os, "link", refused if other_disk else link)
            if how == "back":
                quarantine(data, aside, BROKEN)
            with patch.context() as broken:
                left = crash_at(broken, n)
                try:
                    if how == "there":
                        quarantine(data, aside, BROKEN)
                    else:
                        undo(aside)
                except Crash:
                    crashes += 1
            whole = {**everything(data), **(everything(aside) if aside.exists() else {})}
            assert {name: whole[name] for name in before} == before  # each file is somewhere
            if how == "there":
                quarantine(data, aside, BROKEN)  # goes on
                assert set(everything(data)) == {"cat/good.png", "dog/deep/good.png"}
            if aside.exists() and (aside / MANIFEST).exists():
                assert undo(aside)[1] == []
            assert {n: v for n, v in everything(data).items() if ".tmp" not in n} == before
        if left[0] > 0:
            break
    assert crashes > 8 and left[0] > 0  # the last turn met no crash


def test_a_file_that_took_the_place_stays(data, tmp_path):
    aside = tmp_path / "aside"
    quarantine(data, aside, BROKEN)
    (data / "7.png").write_bytes(b"new")
    back, said = undo(aside)
    assert len(back) == 3 and len(said) == 1 and "7.png" in said[0]
    assert (data / "7.png").read_bytes() == b"new"
    assert [line.path for line in read_manifest(aside)] == ["7.png"]  # and it is still kept
    (data / "7.png").unlink()
    assert len(undo(aside)[0]) == 1 and not aside.exists()


def test_a_second_quarantine_adds_to_the_first(data, tmp_path):
    before, aside = everything(data), tmp_path / "aside"
    quarantine(data, aside, BROKEN[:2])
    assert len(quarantine(data, aside, BROKEN[2:])) == 4
    assert len(undo(aside)[0]) == 4 and everything(data) == before


def test_links_stay(data, tmp_path):
    (data / "link.png").symlink_to("cat/good.png")
    assert quarantine(data, tmp_path / "aside", [("link.png", "unreadable", "")]) == []


def test_places_that_make_no_sense_are_refused(data, tmp_path):
    with pytest.raises(UsageError, match="inside the data"):
        quarantine(data, data / "aside", BROKEN)
    with pytest.raises(DataError, match="not a quarantine folder"):
        undo(tmp_path / "nothing")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / MANIFEST).write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="manifest"):
        undo(tmp_path / "odd")


def test_names_that_are_no_text(tmp_path):
    data = tmp_path / os.fsdecode(b"d\xe4ta")
    data.mkdir()
    names = [os.fsdecode(b"caf\xe9.png"), r"caf\xe9.png", 'a\r"\n,.png', " .png", "🐶.png"]
    for name in names:
        (data / name).write_bytes(name.encode("utf-8", "surrogateescape"))
    quarantine(data, tmp_path / "aside", [(as_text(name), "unreadable", "") for name in names])
    for name in names:
        moved = (tmp_path / "aside" / name).read_bytes()
        assert moved == name.encode("utf-8", "surrogateescape")
    assert not any(data.iterdir())
    assert len(undo(tmp_path / "aside")[0]) == len(names)
    assert sorted(path.name for path in data.iterdir()) == sorted(names)


def test_of_an_archive_a_list_is_kept_and_peoples_own_lines_stay(made, tmp_path):
    source = open_source(str(made.zip(made.members(["a/1.png", "a/2.png", "b/3.png"]))))
    listed = ignore_list_path(source)
    write_ignore_list(listed, {"b/3.png": ("ugly", "")})
    moved = add_to_ignore_list(source, tmp_path / "aside", [("a/1.png", "truncated", "why")])
    assert [line.path for line in moved] == ["a/1.png"]
    assert set(read_ignore_list(listed)) == {"a/1.png", "b/3.png"}
    undo(tmp_path / "aside")
    assert (
        read_ignore_list(listed) == {"b/3.png": ("ugly", "")} and not (tmp_path / "aside").exists()
    )
    write_ignore_list(listed, {})
    assert not Path(listed).exists()


def test_what_has_no_files_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no files to move"):
        add_to_ignore_list(open_source("digits"), tmp_path / "aside", [])
