import tarfile
import zipfile

import numpy as np
from PIL import Image

from unfreeze.data.index.index import build_index
from unfreeze.data.sources.open import open_source
from unfreeze.data.validate.duplicates import (
    SIGNATURE,
    TrainedImages,
    content_keys,
    load_trained_images,
    save_trained_images,
    signature,
)


def keys(data):
    index = build_index(open_source(str(data)))
    return dict(zip(index.paths, content_keys(index).tolist(), strict=True))


def test_equal_files_have_equal_keys_in_every_container(tmp_path):
    folder = tmp_path / "images"
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


def test_a_longer_file_with_the_same_start_is_another_image(tmp_path):
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
            image = Image.fromarray(pixels).convert(mode)
            image.save(tmp_path / f"{mode}-{number}.bmp")
    assert len(set(keys(tmp_path).values())) == 9


def test_arrays_are_told_by_their_pixels():
    index = build_index(open_source("digits"))
    first = content_keys(index, range(50))
    assert len(set(first.tolist())) == 50
    assert np.array_equal(first[[3, 7]], content_keys(index, [3, 7]))


def signed(*images):
    table = np.zeros(len(images), SIGNATURE)
    for place, one in enumerate(images):
        signature(one).into(table, place)
    return table


def image(seed, side=64):
    draw = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return np.array(Image.fromarray(draw).resize((side, side), Image.Resampling.BICUBIC))


def test_what_was_seen_is_written_and_read(tmp_path):
    path = tmp_path / "model/seen_images.npz"
    flat = np.full((64, 64, 3), 200, np.uint8)
    keys = np.array([3, 1, 2], np.uint64)
    table = signed(image(0), flat, image(1))
    save_trained_images(path, TrainedImages(keys, np.array([], np.uint64), table))
    found = load_trained_images(path)
    assert found.train.tolist() == [1, 2, 3] and len(found.val) == 0
    assert len(found.signatures) == 2  # a flat image is known by its bytes alone
    none = np.array([9, 9, 1], np.uint64)
    judged = signed(image(0, 90), image(2), flat)
    assert found.leaked(none, judged).tolist() == [True, False, True]
    assert load_trained_images(tmp_path / "none.npz") is None


def test_without_signatures_only_the_same_bytes_are_known(tmp_path):
    save_trained_images(
        tmp_path / "a.npz", TrainedImages(np.array([1], np.uint64), np.array([], np.uint64))
    )
    found = load_trained_images(tmp_path / "a.npz")
    assert found.signatures is None
    judged = np.array([1, 2], np.uint64)
    assert found.leaked(judged, signed(image(0), image(0))).tolist() == [True, False]


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
