"""`scan`: every problem is named, nothing is read twice, nothing is lost."""

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

import unfreeze
from unfreeze.cli.main import main
from unfreeze.data.index.index import build_index
from unfreeze.data.sources.open import open_source
from unfreeze.data.validate import report as clinic_module
from unfreeze.data.validate import worker_pool
from unfreeze.data.validate.checks import ImageChecker
from unfreeze.data.validate.precheck import check_images
from unfreeze.data.validate.report import check_dataset
from unfreeze.runtime.console import QuietConsole


def scene(seed, side=64):
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


def saved(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


FILES = {
    "train/cat/1.png": saved(scene(1)),
    "train/cat/2.png": saved(scene(2)),
    "train/cat/same.png": saved(scene(1)),
    "train/dog/3.png": saved(scene(3)),
    "train/dog/cat.png": saved(scene(2, 48)),  # a cat under another label, and smaller
    "test/cat/leak.jpg": saved(scene(2), "JPEG", quality=80),
    "test/dog/4.png": saved(scene(4)),
    "test/dog/cut.png": saved(scene(5))[:200],
    "train/cat/empty.jpg": b"",
    "train/cat/page.jpg": b"<html>not found</html>",
    "train/cat/named.jpg": saved(scene(6)),
    "readme.txt": b"words",
}


@pytest.fixture
def folder(tmp_path):
    for name, data in FILES.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "data"


@pytest.fixture
def archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as packed:
        for name, data in FILES.items():
            packed.writestr(name, data)
    return tmp_path / "data.zip"


def by_path(result):
    found = {}
    for problem in result.problems:
        found.setdefault(problem["path"], set()).add(problem["reason"])
    return found


def test_everything_is_named(folder):
    result = unfreeze.scan(str(folder), workers=2)
    assert (result.files, result.pictures, result.usable, result.other) == (12, 11, 8, 1)
    assert by_path(result) == {
        "train/cat/empty.jpg": {"empty"},
        "train/cat/page.jpg": {"not an image"},
        "test/dog/cut.png": {"truncated"},
        "train/cat/named.jpg": {"wrong extension"},
        "train/cat/same.png": {"duplicate"},
        "train/cat/2.png": {"near-duplicate"},
        "train/dog/cat.png": {"near-duplicate", "two labels"},
        "test/cat/leak.jpg": {"across splits"},
    }
    assert result.duplicates == [["train/cat/1.png", "train/cat/same.png"]]
    assert result.near_duplicates == [["test/cat/leak.jpg", "train/cat/2.png", "train/dog/cat.png"]]
    left_out = {p["path"] for p in result.problems if p["left_out"]}
    assert left_out == {"train/cat/empty.jpg", "train/cat/page.jpg", "test/dog/cut.png"}


def test_an_archive_says_what_its_folder_says(folder, archive):
    one, other = unfreeze.scan(str(folder)), unfreeze.scan(str(archive))
    assert one.problems == other.problems and one.near_duplicates == other.near_duplicates


def reads(index, monkeypatch):
    """Rows that are read from now on, here or given to other processes."""
    rows, kind, given = [], type(index.source), worker_pool.run_in_workers
    read = kind.read
    monkeypatch.setattr(kind, "read", lambda source, row: (rows.append(row), read(source, row))[1])

    def told(work, asked, *more, **named):
        rows.extend(asked)
        return given(work, asked, *more, **named)

    monkeypatch.setattr(worker_pool, "run_in_workers", told)
    return rows


def test_a_second_scan_and_the_first_training_read_nothing_twice(archive, monkeypatch):
    first = unfreeze.scan(str(archive))
    assert first.decoded == 11
    index = build_index(open_source(str(archive)))
    rows = reads(index, monkeypatch)
    again = unfreeze.scan(str(archive))
    assert again.decoded == 0 and again.problems == first.problems
    found = check_images(index)
    assert (found.decoded, found.known, rows) == (0, 11, [])
    assert len(found.usable) == first.usable
    left_out = {p["path"] for p in first.problems if p["left_out"]}
    assert {p.path for p in found.problems} == left_out


class Deadly(ImageChecker):
    """A decoder that is brought down by some files, and stuck in another."""

    def __call__(self, row):
        name = self.source.names[row]
        if name.endswith("3.png"):
            os.abort()
        if name.endswith("4.png"):
            import time

            time.sleep(600)
        return super().__call__(row)


def test_a_decoder_that_dies_or_hangs_is_named_and_costs_one_file(folder, monkeypatch):
    index = build_index(open_source(str(folder)))
    with monkeypatch.context() as patch:
        patch.setattr(clinic_module, "ImageChecker", Deadly)
        found = check_dataset(index, workers=2, console=QuietConsole(), seconds=1.5)
    reasons = {p.path: (p.reason, p.left_out) for p in found.problems}
    assert reasons["train/dog/3.png"] == ("crashed", True)
    assert reasons["test/dog/4.png"] == ("hung", True)
    assert len(found.usable) == 6
    trained = check_images(
        build_index(open_source(str(folder)))
    )  # what is known keeps training alive
    assert len(trained.usable) == 6 and trained.decoded == 0


def test_an_interrupted_scan_keeps_what_it_had(folder, monkeypatch):
    real, seen = worker_pool.run_in_workers, []

    def cut(*given, **named):
        for place, answer in enumerate(real(*given, **named)):
            if place == 4:
                raise KeyboardInterrupt
            seen.append(answer[0])
            yield answer

    with monkeypatch.context() as patch:
        patch.setattr(worker_pool, "run_in_workers", cut)
        with pytest.raises(KeyboardInterrupt):
            unfreeze.scan(str(folder))
    assert unfreeze.scan(str(folder)).decoded == 11 - len(seen) == 7


def test_quarantine_and_undo_by_the_command_line(folder, tmp_path, capsys):
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    aside = tmp_path / "aside"
    assert main(["scan", str(folder), "--quarantine", str(aside), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["quarantined"] == 3 and said["usable"] == 8
    assert sum(p.is_file() for p in folder.rglob("*")) == len(before) - 3
    after = unfreeze.scan(str(folder))
    assert (after.pictures, after.usable, after.decoded) == (8, 8, 0)  # nothing is read again
    assert main(["scan", str(folder), "--undo", str(aside), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["restored"] == 3 and said["decoded"] == 0
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_an_archives_list_is_honoured_by_later_runs(archive, tmp_path, monkeypatch):
    aside = tmp_path / "aside"
    bytes_before = archive.read_bytes()
    unfreeze.scan(str(archive), quarantine=str(aside))
    assert archive.read_bytes() == bytes_before
    shutil.rmtree(os.environ["UNFREEZE_CACHE"])  # the list alone says it
    listed = tmp_path / "data.zip.left-out.csv"
    with listed.open("a") as lines:
        lines.write("train/cat/1.png,mine,\n")
    index = build_index(open_source(str(archive)))
    rows = reads(index, monkeypatch)
    found = check_images(index)
    assert len(rows) == 7 and len(found.usable) == 7
    assert {p.reason for p in found.problems} == {"left out"}
    unfreeze.scan(str(archive), undo=str(aside))
    assert listed.read_text().splitlines()[1:] == ["train/cat/1.png,mine,"]


def test_the_page_and_the_table(folder, tmp_path):
    result = unfreeze.scan(str(folder), out=str(tmp_path / "out"))
    page = (tmp_path / "out/scan.html").read_text()
    assert result.page == str(tmp_path / "out/scan.html")
    for word in ("cut.png", "truncated", "two labels", "across splits", "data:image/jpeg;base64"):
        assert word in page
    assert "http" not in page.replace("http-equiv", "")
    rows = (tmp_path / "out/problems.csv").read_text().splitlines()
    assert len(rows) == 1 + len(result.problems)


def test_other_tools_rules_are_counted_and_not_followed(tmp_path):
    camera = saved(scene(1), "JPEG")
    start = camera.index(b"\xff\xe0")
    length = int.from_bytes(camera[start + 2 : start + 4], "big")
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a.jpg").write_bytes(camera[:start] + camera[start + 2 + length :])
    (tmp_path / "d/noending").write_bytes(saved(scene(2)))
    result = unfreeze.scan(str(tmp_path / "d"))
    assert result.usable == 2 and sorted(result.rules.values()) == [1, 1]


@pytest.mark.parametrize(
    "words, code",
    [
        (["scan", "nowhere"], 3),
        (["scan", "DATA", "--undo", "nowhere"], 3),
        (["scan", "DATA", "--quarantine", "DATA/inside"], 2),
        (["scan", "DATA", "--undo", "a", "--quarantine", "b"], 2),
        (["scan", "digits", "--quarantine", "OUT"], 2),
    ],
)
def test_what_makes_no_sense_is_one_sentence(folder, tmp_path, capsys, words, code):
    words = [w.replace("DATA", str(folder)).replace("OUT", str(tmp_path / "q")) for w in words]
    assert main(words) == code
    assert capsys.readouterr().err.count("error: ") == 1
    assert not (folder / "inside").exists()


def test_torch_is_not_there(folder, tmp_path):
    asked = (
        "import sys, unfreeze; unfreeze.scan(sys.argv[1], out=sys.argv[2]); "
        "sys.exit('torch' in sys.modules)"
    )
    words = [sys.executable, "-c", asked, str(folder), str(tmp_path / "out")]
    assert subprocess.run(words, timeout=60).returncode == 0


def test_images_in_memory_too():
    result = unfreeze.scan("digits")
    assert (result.pictures, result.usable, result.duplicates) == (1797, 1797, [])


def test_the_difficult_images(shared, tmp_path, monkeypatch):
    archive = shared / "data/nasty-images.zip"
    packed = unfreeze.scan(str(archive))
    assert (packed.files, packed.pictures) == (142, 140)
    with zipfile.ZipFile(archive) as members:
        members.extractall(tmp_path)
    unpacked = unfreeze.scan(str(tmp_path))
    strip = [{**p, "path": p["path"].removeprefix("nasty/")} for p in packed.problems]
    assert [{**p, "path": p["path"].removeprefix("nasty/")} for p in unpacked.problems] == strip
    known = {p["path"] for p in packed.problems if p["left_out"]}
    monkeypatch.setenv("UNFREEZE_CACHE", str(tmp_path / "empty"))  # judged afresh
    direct = check_images(
        build_index(open_source(str(archive)), strange_classes=True), refuse_above=None
    )
    assert known == {p.path for p in direct.problems} and packed.usable == len(direct.usable)
