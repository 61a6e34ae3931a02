import os
import pickle

import numpy as np
import pytest

from unfreeze.data.images.decode import decode
from unfreeze.data.index.index import build_index
from unfreeze.data.loading import dataset as module
from unfreeze.data.loading.dataset import FileLost, ImageDataset
from unfreeze.data.sources.open import open_source

NAMES = ("a/1.png", "a/2.png", "b/3.png")


def made_images(made, **options) -> ImageDataset:
    return ImageDataset(build_index(open_source(str(made.folder(made.members(NAMES))))), **options)


def test_images_are_decoded_on_demand(made):
    images = made_images(made)
    members = made.members(NAMES)
    assert len(images) == 3
    for position, name in enumerate(NAMES):
        assert np.array_equal(images[position], decode(members[name]))
    assert made_images(made, resize_to=6)[0].shape == (6, 8, 3)


def test_a_file_that_fails_is_read_twice_more(made, monkeypatch):
    monkeypatch.setattr(module, "_PAUSES", (0, 0))
    images = made_images(made)
    source, calls = images.index.source, []
    read = source.read

    def shaky(row: int) -> bytes:
        calls.append(row)
        if len(calls) < 3:
            raise OSError("the network is away")
        return read(row)

    monkeypatch.setattr(source, "read", shaky)
    assert images[1].shape == (12, 16, 3)
    assert calls == [1, 1, 1]


@pytest.mark.parametrize("loss", ["gone", "spoilt"])
def test_a_file_that_is_lost_is_named(made, monkeypatch, loss):
    monkeypatch.setattr(module, "_PAUSES", (0, 0))
    images = made_images(made)
    path = made.root / "data" / "a/2.png"
    path.unlink() if loss == "gone" else path.write_bytes(b"<html>")
    with pytest.raises(FileLost, match=r"a/2\.png could not be read") as raised:
        images[1]
    assert raised.value.exit_code == 3
    again = pickle.loads(pickle.dumps(raised.value))  # it comes back from worker processes
    assert (str(again), again.path) == (str(raised.value), "a/2.png")


def test_a_forked_process_reads_the_same(made):
    images = made_images(made)
    expected = [images[position].sum() for position in range(3)]
    child = os.fork()
    if not child:
        os._exit([images[position].sum() for position in range(3)] != expected)
    assert os.waitpid(child, 0)[1] == 0
