"""Pixels in a memory map: equal to decoding afresh, built side by side, resumable, shared."""

import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tests.data.doubtful import doubtful

from unfreeze.data.cache import builder
from unfreeze.data.cache import policy as held_by
from unfreeze.data.cache.folder import PIXEL_CACHE
from unfreeze.data.cache.memory_map import (
    MappedPixelCache,
    pixel_cache_key,
    read_chunk,
)
from unfreeze.data.cache.policy import plan_pixel_cache
from unfreeze.data.images.decode import decode, resize_shorter_side
from unfreeze.data.index.index import build_index
from unfreeze.data.sources.open import open_source
from unfreeze.data.validate.precheck import check_images
from unfreeze.data.validate.verdicts import UNUSABLE, VerdictCache
from unfreeze.data.validate.worker_pool import LostTask
from unfreeze.errors import ResourceError
from unfreeze.runtime.console import QuietConsole

NAMES = tuple(f"{kind}/{number:02}.png" for kind in ("cat", "dog") for number in range(20))
BROKEN = {"cat/03.png": b"<html>", "dog/00.png": b""}


class Saying(QuietConsole):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def members(made):
    wide = {"dog/07.png": made.encoded(made.noise(40, 9), "JPEG")}
    return made.members(NAMES) | BROKEN | wide


def indexed(path):
    return build_index(open_source(str(path)))


def disk(index, resize_to=6, **options):
    return plan_pixel_cache(index.source, index.rows, resize_to, store="disk", **options)


def checked(index, resize_to=6, console=None, **options):
    hold = disk(index, resize_to)
    return check_images(
        index, hold=hold, resize_to=resize_to, console=console, workers=2, **options
    )


def equals_decoding(index, scan, resize_to):
    images = scan.images()
    assert len(images) == len(index) - len(scan.problems)
    for position, row in enumerate(images.index.rows.tolist()):
        assert row in scan.store
        fresh = resize_shorter_side(decode(index.source.read(row)), resize_to)
        assert np.array_equal(images[position], fresh)


@pytest.mark.parametrize("pack", ["folder", "zip", "tar", "tar.gz"])
def test_the_map_equals_decoding_afresh(made, members, pack):
    path = made.tar(members, "data.tar.gz") if "." in pack else getattr(made, pack)(members)
    index = indexed(path)
    scan = checked(index)
    assert isinstance(scan.store, MappedPixelCache)
    assert (scan.decoded, scan.known) == (40, 0)
    assert {problem.path: problem.reason for problem in scan.problems} == {
        "cat/03.png": "not an image",
        "dog/00.png": "empty",
    }
    assert scan.heights[index.paths.index("dog/07.png")] == 40  # before shrinking
    equals_decoding(index, scan, 6)
    plain = check_images(index, resize_to=6)
    assert plain.problems == scan.problems
    assert plain.decoded == 0  # what the store found out is known


def test_a_later_run_decodes_nothing_and_other_pixels_are_another_store(made, members):
    path = made.zip(members)
    checked(indexed(path))
    again = checked(indexed(path))
    assert (again.decoded, again.known) == (0, 40)
    equals_decoding(again.index, again, 6)
    whole = checked(indexed(path), None)
    assert whole.decoded == 38  # the bad ones are known
    equals_decoding(whole.index, whole, None)
    assert len(list(PIXEL_CACHE.folder.iterdir())) == 2
    changed = made.zip(members | {"cat/01.png": made.encoded()})
    assert checked(indexed(changed)).decoded == 40


def test_damaged_and_foreign_chunks_are_named_and_made_again(made, members):
    path = made.zip(members)
    files = sorted(checked(indexed(path)).store.want.store.folder.glob("*.safetensors"))
    assert len(files) == 14
    whole = [file.read_bytes() for file in files]
    files[1].write_bytes(whole[1][:-3])
    files[2].write_bytes(whole[0])
    table = bytearray(whole[4])
    table[-20] ^= 1  # in the table of shapes
    files[4].write_bytes(table)
    files[5].write_bytes(b"")
    files[7].unlink()
    console = Saying()
    again = checked(indexed(path), console=console)
    assert sum("damaged" in line for line in console.said) == 4
    made_again = sum(len(again.store.want.part(number)) for number in (1, 2, 4, 5, 7))
    assert again.decoded == made_again - 1  # a bad one among them is known
    equals_decoding(again.index, again, 6)
    assert [file.read_bytes() for file in files] == whole


def test_processes_share_the_pages_and_nobody_changes_the_file(made, members):
    index = indexed(made.zip(members))
    store = checked(index).store
    before = store[1].copy()
    store[1][:] = 0  # torch may take it for writable
    assert not store[1].any()
    there = pickle.loads(pickle.dumps(store))
    assert np.array_equal(there[1], before)
    assert len(pickle.dumps(store)) < 20_000
    with pytest.raises(KeyError):
        store[int(index.rows[index.paths.index("dog/00.png")])]


KILLED = """
import os, sys
from unfreeze.data.cache import builder
from unfreeze.data.validate.worker_pool import run_in_workers
from unfreeze.data.cache.policy import plan_pixel_cache
from unfreeze.data.index.index import build_index
from unfreeze.data.validate.precheck import check_images
from unfreeze.data.sources.open import open_source

def some(*given, **named):
    made = set()
    for chunk, done in run_in_workers(*given, **named):
        yield chunk, done
        made.add(chunk.number)
        if len(made) == 7:  # of which the last has just begun
            os.kill(os.getpid(), 9)

builder.run_in_workers = some
index = build_index(open_source(sys.argv[1]))
hold = plan_pixel_cache(index.source, index.rows, 6, store="disk")
check_images(index, hold=hold, resize_to=6, workers=1)
"""


def test_a_killed_build_goes_on(made, members):
    path = made.zip(members)
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL
    index = indexed(path)
    want = pixel_cache_key(index.source, index.rows, 6, 0)
    deadline = time.monotonic() + 10
    while list(want.store.folder.glob(".*")) and time.monotonic() < deadline:
        time.sleep(0.05)  # the worker ends after its chunk
    made_before = len(want.store.existing())
    assert 6 <= made_before < 14
    scan = checked(index)
    left = sum(len(want.part(number)) for number in range(14)) - scan.decoded
    assert left >= 6 * 2  # not decoded again
    equals_decoding(index, scan, 6)


def test_files_that_bring_their_process_down_are_left_out(made, members, monkeypatch):
    monkeypatch.setattr(builder, "_SECONDS", 3.0)
    # two in one chunk, and one that is stuck
    deeds = {"cat/06.png": "exit", "cat/07.png": "crash", "dog/11.png": "hang"}
    index = doubtful(indexed(made.zip(members)), deeds)
    scan = checked(index)
    assert isinstance(scan.store, MappedPixelCache)
    reasons = {problem.path: problem.reason for problem in scan.problems}
    assert [reasons.pop(name) for name in deeds] == ["crashed", "crashed", "hung"]
    assert set(reasons.values()) == {"not an image", "empty"}
    equals_decoding(index, scan, 6)
    assert scan.decoded == 40
    states = VerdictCache(index.source).states  # and no later run meets them again
    assert all(states[index.source.names.index(name)] == UNUSABLE for name in deeds)


def test_processes_that_end_at_the_disk_are_an_error_where_it_was_asked_for(
    made, members, monkeypatch
):
    def gone(work, todo, *more, **named):
        yield todo.popleft(), LostTask("hung", "not done within 120 s")

    monkeypatch.setattr(builder, "run_in_workers", gone)
    index = indexed(made.zip(members))
    with pytest.raises(ResourceError, match="could not be cached on disk: not done within"):
        checked(index)
    console = Saying()
    hold = held_by.PixelCachePlan("disk", 1, 2**30, "")  # not asked for: the run goes on without
    scan = check_images(index, hold=hold, resize_to=6, workers=2, console=console)
    assert scan.store is None
    assert len(scan.usable) == 38
    assert "Decoded images are not cached" in console.said[0]


def test_where_pixels_are_held_and_why(made, members, monkeypatch):
    index = indexed(made.zip(members))

    def where(**options):
        found = plan_pixel_cache(index.source, index.rows, None, **options)
        return found.place, found.reason

    assert where() == ("memory", "0.00 GiB of pixels, decoded once")
    place, why = where(processes=4)
    assert place == "disk"
    assert "shared by 4 processes" in why
    assert str(PIXEL_CACHE.folder) in why
    monkeypatch.setattr(held_by, "MEMORY", 1000)
    assert where()[0] == "disk"
    assert where(store="memory")[0] == "memory"
    assert where(store="off") == ("none", "decoded in every epoch, as requested")
    assert where(gibibytes=0)[0] == "none"
    assert where(gibibytes=1e-6) == (
        "none",
        "decoded in every epoch: 0.00 GiB of pixels, --store-budget is 1e-06",
    )
    assert "--scan sample" in where(scan="sample")[1]
    checked(index, None)
    assert "reused from an earlier run" in where()[1]
    monkeypatch.setattr(held_by, "free_bytes", lambda place: 2**20)
    assert where()[0] == "disk"  # what is there needs no room
    index = index.take(np.arange(20))
    place, why = where()
    assert (place, "do not fit" in why) == ("none", True)
    with pytest.raises(ResourceError, match="do not fit"):
        where(store="disk")


def test_older_stores_make_room(made, members):
    path = made.zip(members)
    index = indexed(path)
    first = checked(index, 4).store.want.store.folder
    (PIXEL_CACHE.folder / "not-ours").mkdir()
    (PIXEL_CACHE.folder / "not-ours" / "letter.txt").write_text("mine")
    long_ago = time.time() - 7200
    for file in [*first.iterdir(), PIXEL_CACHE.folder / "not-ours" / "letter.txt"]:
        os.utime(file, (long_ago, long_ago))
    hold = held_by.PixelCachePlan("disk", 1, 1, "", asked=True)
    console = Saying()
    second = check_images(index, hold=hold, resize_to=5, console=console).store.want.store.folder
    assert not first.exists()
    assert (PIXEL_CACHE.folder / "not-ours").exists()
    assert second.exists()
    assert f"Removed old pixel cache {first.name}" in console.said[0]


def test_a_cache_that_cannot_be_written_stops_nothing(made, members, monkeypatch):
    (made.root / "file").write_text("in the way")
    monkeypatch.setenv("UNFREEZE_CACHE", str(made.root / "file"))
    index = indexed(made.zip(members))
    console = Saying()
    hold = held_by.PixelCachePlan("disk", 1, 2**30, "")
    scan = check_images(index, hold=hold, resize_to=6, console=console)
    assert scan.store is None
    assert len(scan.usable) == 38
    assert "Decoded images are not cached" in console.said[0]


def test_the_number_of_chunks_is_that_of_the_files(made, members):
    index = indexed(made.zip(members))

    def chunks(resize_to, total_bytes):
        return pixel_cache_key(index.source, index.rows, resize_to, total_bytes).store.chunks

    assert checked(index).store.want.store.chunks == 14  # of 3 images: 16 would be uneven
    assert chunks(6, 10 * 2**30) == 14
    assert chunks(7, 10 * 2**30) == 40  # one image each
    assert chunks(7, 20 * 64 * 2**20) == 20


def test_a_chunk_has_the_pixels_and_sizes_of_its_rows(made, members):
    index = indexed(made.zip(members))
    want = checked(index).store.want
    with pytest.raises(FileNotFoundError):
        read_chunk(pixel_cache_key(index.source, index.rows, 8, 0), 0)
    pixels, offsets, shapes = read_chunk(want, 1)  # the first of its rows is unusable
    assert shapes.tolist() == [[0, 0, 0, 0], [6, 8, 12, 16], [6, 8, 12, 16]]
    assert offsets.tolist() == [0, 0, 144]
    assert len(pixels) == 288
