import contextlib
import csv
import io
import resource
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image
from tests.data.doubtful import doubtful

from unfreeze.data.cache.policy import PixelCachePlan
from unfreeze.data.images.decode import decode, resize_shorter_side
from unfreeze.data.index.index import build_index
from unfreeze.data.sources.open import open_source
from unfreeze.data.validate import precheck as module
from unfreeze.data.validate import worker_pool
from unfreeze.data.validate.duplicates import signature
from unfreeze.data.validate.precheck import ImageProblem, check_images, write_problems_csv
from unfreeze.data.validate.report import check_dataset
from unfreeze.data.validate.verdicts import VerdictCache
from unfreeze.errors import DataError
from unfreeze.runtime.console import QuietConsole

NAMES = tuple(f"{kind}/{number}.png" for kind in ("cat", "dog") for number in range(10))


class Listening(QuietConsole):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.steps: list[int] = []
        self.total = 0

    def say(self, text: str) -> None:
        self.said.append(text)

    @contextlib.contextmanager
    def progress(self, label: str, total: int, done: int = 0):
        self.total = total
        yield lambda steps, text="": self.steps.append(steps)


def indexed(made, **spoilt: bytes):
    members = made.members(NAMES)
    members |= {f"cat/{name.strip('_')}.png": data for name, data in spoilt.items()}
    return build_index(open_source(str(made.zip(members))))


def counted(index, monkeypatch) -> list[int]:
    """Rows that are read from now on, here or given to other processes."""
    rows: list[int] = []
    kind, given = type(index.source), worker_pool.run_in_workers
    read = kind.read
    monkeypatch.setattr(kind, "read", lambda source, row: (rows.append(row), read(source, row))[1])

    def told(work, asked, *more, **named):
        rows.extend(asked)
        return given(work, asked, *more, **named)

    monkeypatch.setattr(worker_pool, "run_in_workers", told)
    return rows


def test_unusable_files_are_left_out_with_their_reasons(made):
    index = indexed(made, _3=b"", _5=b"<html>", _7=made.encoded()[:-100])
    console = Listening()
    found = check_images(index, workers=2, console=console)
    assert [(problem.path, problem.reason) for problem in found.problems] == [
        ("cat/3.png", "empty"),
        ("cat/5.png", "not an image"),
        ("cat/7.png", "truncated"),
    ]
    assert all(problem.left_out for problem in found.problems)
    assert found.usable.tolist() == [n for n in range(20) if n not in (3, 5, 7)]
    assert set(found.heights[found.usable]) == {12}
    assert set(found.widths[found.usable]) == {16}
    assert found.heights[[3, 5, 7]].tolist() == [0, 0, 0]
    assert (found.decoded, found.known) == (20, 0)
    assert sum(console.steps) == console.total == 20
    images = found.images()
    assert len(images) == 17
    assert images.index.paths[3] == "cat/4.png"
    assert np.array_equal(images[3], made.noise(seed=4))


def test_a_second_run_reads_nothing(made, monkeypatch):
    first = check_images(indexed(made, _3=b"<html>"))
    index = indexed(made, _3=b"<html>")
    rows = counted(index, monkeypatch)
    second = check_images(index)
    assert rows == []
    assert (second.decoded, second.known) == (0, 20)
    assert second.problems == first.problems
    assert second.usable.tolist() == first.usable.tolist()
    assert second.heights.tolist() == first.heights.tolist()


def test_a_part_after_the_whole_reads_nothing_and_the_whole_after_a_part_the_rest(
    made, monkeypatch
):
    index = indexed(made)
    check_images(index.take(np.arange(5)))
    rows = counted(index, monkeypatch)
    assert check_images(index).decoded == 15
    assert sorted(rows) == sorted(index.rows[5:].tolist())
    assert check_images(index.take([7, 3])).decoded == 0


def test_other_content_is_checked_anew(made):
    assert check_images(indexed(made)).decoded == 20
    assert check_images(indexed(made, _3=made.encoded())).decoded == 20


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 and nothing more", b"text"])
def test_a_damaged_cache_is_not_believed(made, damage):
    from unfreeze.data.validate.verdicts import VerdictCache

    index = indexed(made)
    check_images(index)
    path = VerdictCache(index.source).path
    assert path.exists()
    path.write_bytes(damage)
    assert check_images(index).decoded == 20


def test_a_disk_that_fails_is_not_remembered(made):
    found = check_images(doubtful(indexed(made), {"cat/3.png": "away"}))
    assert [(p.path, p.reason) for p in found.problems] == [("cat/3.png", "unreadable")]
    again = check_images(indexed(made))
    assert (again.decoded, again.problems) == (1, [])


@pytest.mark.parametrize("store_budget", [0, 2**20])
def test_a_decoder_that_dies_hangs_or_swells_costs_its_file_alone(made, monkeypatch, store_budget):
    monkeypatch.setattr(worker_pool, "SECONDS", 3.0)
    deeds = {"cat/1.png": "crash", "cat/5.png": "hang", "dog/2.png": "memory", "dog/9.png": "exit"}
    found = check_images(doubtful(indexed(made), deeds), workers=2, store_budget=store_budget)
    assert {p.path: p.reason for p in found.problems} == {
        "cat/1.png": "crashed",
        "cat/5.png": "hung",
        "dog/2.png": "bomb",
        "dog/9.png": "crashed",
    }
    assert len(found.usable) == 16
    assert all(p.left_out for p in found.problems)
    assert "signal 11" in found.problems[0].detail
    if store_budget:
        for position, row in enumerate(found.images().index.rows.tolist()):
            assert np.array_equal(found.images()[position], made.noise(seed=row))
    assert check_images(indexed(made)).decoded == 1  # want of memory while reading may pass


def test_who_was_killed_by_another_is_left_out_of_this_run_alone(made):
    found = check_images(doubtful(indexed(made), {"cat/1.png": "killed"}))
    assert [(p.path, p.reason) for p in found.problems] == [("cat/1.png", "crashed")]
    again = check_images(indexed(made))
    assert (again.decoded, again.problems) == (1, [])


def test_processes_are_started_where_there_is_work_for_them(made, monkeypatch):
    asked = []
    monkeypatch.setattr(
        worker_pool, "run_in_workers", lambda work, rows, workers, **_: asked.append(workers) or []
    )
    check_images(indexed(made), workers=8)
    index = indexed(made)
    index.source.sizes[:] = 2**20
    check_images(index, workers=8)
    check_images(index, workers=2)
    check_images(build_index(open_source("digits")), store_budget=2**20)  # pixels: nothing to watch
    assert asked == [1, 6, 2]


def test_a_cache_that_cannot_be_written_stops_nothing(made, monkeypatch):
    (made.root / "file").write_text("in the way")
    monkeypatch.setenv("UNFREEZE_CACHE", str(made.root / "file"))
    console = Listening()
    assert len(check_images(indexed(made), console=console).usable) == 20
    assert "could not be cached" in console.said[0]


def test_what_was_found_before_an_interruption_is_kept(made):
    index = indexed(made)

    class Impatient(Listening):
        @contextlib.contextmanager
        def progress(self, label: str, total: int, done: int = 0):
            def advance(steps: int, text: str = "") -> None:
                self.steps.append(steps)
                if sum(self.steps) == 2:
                    raise KeyboardInterrupt

            yield advance

    with pytest.raises(KeyboardInterrupt):
        check_images(index, workers=1, console=Impatient())
    assert check_images(index).known == 2


def test_above_half_unusable_is_an_error(made):
    spoilt = {f"_{number}": b"<html>" for number in range(10)}
    assert len(check_images(indexed(made, **spoilt)).usable) == 10
    index = indexed(made, **spoilt, other=b"")
    with pytest.raises(DataError, match=r"11 of 21 images .* cat/0\.png, not an image"):
        check_images(index)
    assert len(check_images(index, refuse_above=None).problems) == 11


@pytest.mark.parametrize("resize_to", [None, 6])
@pytest.mark.parametrize("workers", [1, 3])
def test_the_store_equals_decoding_afresh(made, resize_to, workers):
    index = indexed(made, _3=b"<html>", _4=made.encoded(made.noise(30, 9), "JPEG"))
    found = check_images(index, workers=workers, store_budget=2**20, resize_to=resize_to)
    assert found.store is not None
    images = found.images()
    assert len(images) == 19
    for position, row in enumerate(images.index.rows.tolist()):
        assert row in found.store
        fresh = resize_shorter_side(decode(index.source.read(row)), resize_to)
        assert np.array_equal(images[position], fresh)
    assert found.heights[4] == 30  # before shrinking


def test_the_store_is_filled_also_where_verdicts_are_known(made, monkeypatch):
    index = indexed(made, _3=b"<html>")
    check_images(index)
    rows = counted(index, monkeypatch)
    found = check_images(index, store_budget=2**20)
    assert (found.decoded, found.known) == (19, 20)
    assert len(rows) == 19  # sizes are known: no headers, and the bad file is not read again
    assert found.store is not None


def test_a_store_over_the_budget_is_not_built(made, monkeypatch):
    index = indexed(made)
    one = 12 * 16 * 3
    assert check_images(index, store_budget=20 * one - 1).store is None
    exact = check_images(index, store_budget=20 * one)
    assert exact.store is not None
    assert exact.store.used == 20 * one


def test_a_store_that_outgrows_its_estimate_is_given_up(made, monkeypatch):
    index = indexed(made)
    monkeypatch.setattr("unfreeze.data.validate.precheck.mean_bytes", lambda *_: 1.0)
    console = Listening()
    found = check_images(index, store_budget=1_000, console=console)
    assert found.store is None
    assert len(found.usable) == 20
    assert "the pixel cache is off" in console.said[0]
    assert found.images()[0].shape == (12, 16, 3)


def test_sample_and_off_say_so(made, monkeypatch):
    monkeypatch.setattr(module, "SAMPLE", 8)
    console = Listening()
    index = indexed(made, **{f"_{number}": b"<html>" for number in range(4)})
    sample = check_images(index, mode="sample", seed=1, console=console, store_budget=2**20)
    assert sample.decoded == 8
    assert sample.store is None
    assert "8 of 20" in console.said[0]
    assert len(sample.usable) + len(sample.problems) == 20
    check_images(index)  # what a full check knows changes neither
    again = check_images(index, mode="sample", seed=1)
    assert again.usable.tolist() == sample.usable.tolist()
    off = check_images(index, mode="off", console=console)
    assert (len(off.usable), off.problems) == (20, [])
    assert "(--scan off): 20 images" in console.said[-1]


def test_problems_csv(made):
    problem = ImageProblem("a,b.png", "unreadable", 'said "no"', True)
    write_problems_csv(made.root / "problems.csv", [problem])
    with (made.root / "problems.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"path": "a,b.png", "reason": "unreadable", "detail": 'said "no"', "left_out": "true"}
    ]


def test_digits_need_no_decoding_but_are_held():
    found = check_images(build_index(open_source("digits")), store_budget=2**20)
    assert len(found.usable) == 1797
    assert found.store is not None
    assert found.store[1796].shape == (8, 8, 3)


def test_nasty_images_agree_with_pillow(shared, made, caplog):
    path = shared / "data" / "nasty-images.zip"
    with zipfile.ZipFile(path) as archive:
        archive.extractall(made.root / "nasty")
        manifest = next(name for name in archive.namelist() if name.endswith("manifest.csv"))
        rows = list(csv.DictReader(io.StringIO(archive.read(manifest).decode())))
        contents = {row["file"]: archive.read(f"nasty/{row['file']}") for row in rows}
    index = build_index(open_source(str(path)))
    found = check_images(index, refuse_above=None)
    assert not caplog.records
    left_out = {problem.path.rpartition("/")[2] for problem in found.problems}
    seen = {name.rpartition("/")[2] for name in index.paths}
    stages = {row["file"]: row["pil_stage"] for row in rows}
    # one bomb has neither an image's name nor a signature: it is no image at all
    assert {stages[name] for name in stages if name not in seen} == {"bomb"}
    assert all(name in left_out for name in seen if stages[name] != "ok")
    # Some that the manifest calls fine are left out: Pillow's first load() fails and only a
    # second one, which has forgotten what it did not decode, passes in silence.
    differ = {name for name in left_out if stages[name] == "ok"}
    assert len(differ) == 8
    for name in differ:
        with Image.open(io.BytesIO(contents[name])) as image, pytest.raises(OSError):
            image.load()
    reasons = {problem.path.rpartition("/")[2]: problem.reason for problem in found.problems}
    assert all(reasons[name] == "bomb" for name in seen if stages[name] == "bomb")
    # the same from a folder
    (made.root / "nasty" / manifest).unlink()
    unpacked = build_index(open_source(str(made.root / "nasty")))
    same = check_images(unpacked, refuse_above=None)
    assert same.problems == found.problems
    shutil.rmtree(made.root / "nasty")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert peak < 3, f"{peak:.1f} GiB"


def test_nasty_images_that_are_kept_are_not_black_and_held_as_decoded(shared):
    index = build_index(open_source(str(shared / "data" / "nasty-images.zip")))
    images = check_images(index, refuse_above=None, store_budget=2**30).images()
    assert images.store is not None
    for position, path in enumerate(images.index.paths):
        pixels = images[position]
        assert pixels.max() > 30 or "empty_gps_ifd" in path, path  # that one is nearly black
        assert np.array_equal(decode(index.source.read(int(images.index.rows[position]))), pixels)


def test_trashnet_is_whole(shared):
    found = check_images(build_index(open_source(str(shared / "data" / "trashnet-subset.zip"))))
    assert len(found.usable) == 720
    assert set(zip(found.heights.tolist(), found.widths.tolist(), strict=True)) == {(512, 384)}


@pytest.mark.parametrize("place", ["none", "memory", "disk"])
def test_signatures_are_made_of_what_is_decoded_anyway(made, monkeypatch, place):
    index = indexed(made, _3=b"")
    hold = PixelCachePlan(place, 2**16, 2**26, "")
    rows = counted(index, monkeypatch)
    found = check_images(index, workers=2, hold=hold, resize_to=32, sign=True)
    if place == "none":  # else headers are read first, to see how large the pixels are
        assert sorted(rows) == index.rows.tolist()
    assert found.decoded == 20
    assert found.signatures["known"].tolist() == [n != 3 for n in range(20)]
    for place_ in found.usable:
        one = signature(decode(index.source.read(int(index.rows[place_]))))
        assert one.hash == found.signatures["hash"][place_]
    rows.clear()
    again = check_images(index, hold=PixelCachePlan("none", 0, 0, ""), sign=True)
    assert (again.decoded, rows) == (0, [])
    assert np.array_equal(again.signatures, found.signatures)


def test_a_file_that_was_checked_without_a_signature_is_decoded_once_more(made):
    index = indexed(made, _3=b"")
    assert check_images(index).decoded == 20
    assert check_images(index).signatures is None
    assert check_images(index, sign=True).decoded == 19  # the broken one has none
    assert check_images(index, sign=True).decoded == 0
    signed = VerdictCache(index.source, sign=True).signed
    signed.write_bytes(signed.read_bytes()[:100])
    assert check_images(index, sign=True).decoded == 19


def test_a_scan_and_a_check_know_each_others_signatures(made):
    index = indexed(made)
    check_dataset(index, workers=2, console=Listening())
    found = check_images(index, sign=True)
    assert found.decoded == 0 and found.signatures["known"].all()


def test_a_sample_has_signatures_of_the_sample_alone(made, monkeypatch):
    monkeypatch.setattr(module, "SAMPLE", 6)
    found = check_images(indexed(made), mode="sample", sign=True)
    assert found.signatures["known"].sum() == 6
    assert not check_images(indexed(made, _3=b"x"), mode="off", sign=True).signatures["known"].any()
