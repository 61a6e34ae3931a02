import tarfile
import zipfile

import numpy as np
from PIL import Image

from unfreeze.data.content import content_keys, load_keys, save_keys
from unfreeze.data.index import build_index
from unfreeze.data.sources.open import open_source


def keys(data):
    index = build_index(open_source(str(data)))
    return dict(zip(index.paths, content_keys(index).tolist(), strict=True))


def test_equal_files_have_equal_keys_in_every_container(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(5):
        Image.fromarray(rng.integers(0, 256, (200, 150, 3), np.uint8)).save(folder / f"{k}.bmp")
    with (
        zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as packed,
        tarfile.open(tmp_path / "a.tar", "w") as plain,
    ):
        for path in sorted(folder.iterdir()):
            packed.write(path, path.name)
            plain.add(path, path.name)
    found = keys(folder)
    assert len(set(found.values())) == 5
    assert keys(tmp_path / "a.zip") == keys(tmp_path / "a.tar") == found


def test_a_longer_file_with_the_same_start_is_another_picture(tmp_path):
    (tmp_path / "a.bmp").write_bytes(b"BM" + bytes(70_000))
    (tmp_path / "b.bmp").write_bytes(b"BM" + bytes(70_001))
    assert len(set(keys(tmp_path).values())) == 2


def test_files_that_begin_with_a_border_are_told_apart(tmp_path):
    """Bitmaps are not compressed, and their bottom lines come first: here a white table."""
    draw = np.random.default_rng(0)
    for mode in ("L", "RGB", "RGBA"):
        for number in range(3):
            pixels = np.full((300, 300, 4), 255, np.uint8)
            pixels[:30] = draw.integers(0, 256, (30, 300, 4))
            picture = Image.fromarray(pixels).convert(mode)
            picture.save(tmp_path / f"{mode}-{number}.bmp")
    assert len(set(keys(tmp_path).values())) == 9


def test_arrays_are_told_by_their_pixels():
    index = build_index(open_source("digits"))
    first = content_keys(index, range(50))
    assert len(set(first.tolist())) == 50
    assert np.array_equal(first[[3, 7]], content_keys(index, [3, 7]))


def test_keys_are_written_and_read(tmp_path):
    path = tmp_path / "model/pictures.npz"
    save_keys(path, {"train": np.array([3, 1], np.uint64), "val": np.array([], np.uint64)})
    assert load_keys(path)["train"].tolist() == [1, 3] and len(load_keys(path)["val"]) == 0
    assert load_keys(tmp_path / "none.npz") == {}


def test_a_damaged_member_has_a_key_and_stops_nothing(tmp_path):
    path = tmp_path / "a.zip"
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for k in range(2):
            archive.writestr(f"{k}.bmp", b"BM" + rng.bytes(3000))
    data = bytearray(path.read_bytes())
    data[40:1000] = bytes(960)
    path.write_bytes(data)
    assert len(set(keys(path).values())) == 2
