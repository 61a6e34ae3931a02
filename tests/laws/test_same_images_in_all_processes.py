"""Each process lists images for itself, maybe from a disk of its own: they must be the same."""

import os

import numpy as np
import pytest
from PIL import Image

import unfreeze
from unfreeze.errors import UnfreezeError

TINY = {
    "epochs": 1,
    "batch_size": 8,
    "arch": "unfreeze/tiny",
    "image_size": 16,
    "watch_every": 0,
    "device": "cpu",
}


@pytest.fixture
def disks(tmp_path):
    """Two folders of 20 equal images, of different times."""
    for disk in (1, 2):
        for number in range(20):
            name = tmp_path / f"{disk}/{'ab'[number % 2]}/{number}.png"
            name.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(number).integers(0, 255, (16, 16, 3), np.uint8)
            Image.fromarray(noise).save(name)
            os.utime(name, (disk * 10_000, disk * 10_000))
    return tmp_path / "1", tmp_path / "2"


def pretrains(rank, disks, out, resume):
    try:
        return unfreeze.pretrain(data=str(disks[rank]), out=str(out), resume=resume, **TINY).steps
    except UnfreezeError as error:
        return error.sentence


def tunes(rank, disks, out):
    given = {"epochs": 1, "batch_size": 8, "image_size": 16, "weights": "none", "device": "cpu"}
    try:
        unfreeze.finetune(data=str(disks[rank]), out=str(out), arch="unfreeze/tiny", **given)
    except UnfreezeError as error:
        return error.sentence


@pytest.mark.parametrize("what", ["fewer", "other"])
def test_other_images_in_one_process_are_refused_by_all(processes, disks, tmp_path, what):
    (disks[1] / "a/4.png").rename(disks[1] / "b/44.png")
    if what == "fewer":
        (disks[1] / "b/44.png").unlink()
    one, two = processes(2, pretrains, disks, tmp_path / "run", None)
    said = {"fewer": "Rank 1 has 19 usable", "other": "Rank 1 has other 20 usable"}[what]
    assert one == two and said in one
    assert not (tmp_path / "run").exists()
    one, two = processes(2, tunes, disks, tmp_path / "tuned")
    assert one == two and "Rank 1 has" in one


def test_copies_on_two_disks_are_the_same_images(processes, disks, tmp_path):
    assert processes(2, pretrains, disks, tmp_path / "run", None) == [2, 2]
    assert processes(2, pretrains, disks, tmp_path / "run", "yes") == [2, 2]
