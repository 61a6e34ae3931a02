"""Where pixels are held changes no weight: memory, a memory map, or decoded each time."""

import contextlib
import io
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file

from unfreeze.cli.main import main
from unfreeze.data.cache.folder import PIXEL_CACHE
from unfreeze.data.cache.memory_map import MappedPixelCache
from unfreeze.runtime.terminal import Environment

QUICK = "--arch unfreeze/tiny --image-size 16 --epochs 1 --batch-size 8 --device cpu"


def run(verb, photos, out, *more):
    world = Environment(io.StringIO(), io.StringIO())
    code = main([verb, str(photos), "--out", str(out), *QUICK.split(), *more], world)
    assert code == 0, world.stderr.getvalue()
    return load_file(out / "model/model.safetensors"), world.stderr.getvalue()


@pytest.fixture
def photos(coloured):
    return coloured("photos", {"train/red": 14, "train/blue": 14}, side=40)


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_runs_are_the_same_wherever_pixels_are_held(verb, photos, tmp_path):
    more = ("--weights", "none") if verb == "finetune" else ()
    plain, said = run(verb, photos, tmp_path / "off", "--store", "off", *more)
    assert "decoded in every epoch, as requested" in said
    for store, told in (
        ("memory", "memory: "),
        ("disk", f"memory-mapped in {PIXEL_CACHE.folder}: decoded"),
    ):
        found, said = run(verb, photos, tmp_path / store, "--store", store, *more)
        assert told in said
        assert found.keys() == plain.keys()
        assert all((found[name] == plain[name]).all() for name in plain)
    assert list(PIXEL_CACHE.folder.glob("*/*.safetensors"))
    again, said = run(verb, photos, tmp_path / "again", "--store", "disk", *more)
    assert "reused from an earlier run" in said
    assert all((again[name] == plain[name]).all() for name in plain)


def _maps(rank, photos, out):
    """Trains as one of two processes; the pixel files that it has mapped, by the kernel's word."""
    found = []
    before = MappedPixelCache.__getitem__

    def looked(self, row):
        if not found:
            lines = Path("/proc/self/maps").read_text().splitlines()
            found.append(sorted({line.split()[-1] for line in lines if "/pixels/" in line}))
        return before(self, row)

    MappedPixelCache.__getitem__ = looked
    with contextlib.redirect_stdout(io.StringIO()):
        world = Environment(io.StringIO(), io.StringIO())
        code = main(["pretrain", str(photos), "--out", str(out), *QUICK.split()], world)
    return code, found, os.getpid(), world.stderr.getvalue()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the kernel tells it on Linux")
def test_two_processes_map_the_same_files(photos, tmp_path, processes):
    first, second = processes(2, _maps, photos, tmp_path / "run")
    assert first[0] == second[0] == 0, first[3] + second[3]
    assert first[1] == second[1] != []
    assert first[1][0]
    assert first[2] != second[2]
    assert "shared by 2 processes" in first[3]
