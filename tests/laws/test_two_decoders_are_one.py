"""Two decoders are one: what OpenCV decodes, and what it is not given, is as Pillow alone says."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from unfreeze.data.images import decode as module
from unfreeze.data.images import jpeg
from unfreeze.data.images.decode import decode, decoded_size
from unfreeze.data.images.errors import Undecodable
from unfreeze.data.validate.checks import check_image

WRITTEN = (
    {},
    {"progressive": True},
    {"subsampling": 0},
    {"subsampling": 1},
    {"subsampling": 2, "optimize": True},
    {"quality": 20, "restart_marker_blocks": 2},
    {"progressive": True, "restart_marker_rows": 1},
    {"quality": 100, "keep_rgb": True},
    {"comment": b"\xff\xd9 \xff\xda"},
)


def seeds():
    """Small JPEG files of every kind that Pillow writes, smooth and noisy."""
    draw = np.random.default_rng(1)
    found = []
    for side in (9, 40, 97):
        noise = Image.fromarray(draw.integers(0, 256, (6, 6, 3), np.uint8))
        for image in (noise.resize((side, side + 3)), noise.resize((side + 5, side), 0)):
            exif = Image.Exif()
            exif[0x0112] = 6
            for options in (*WRITTEN, {"exif": exif}):
                held = io.BytesIO()
                image.save(held, "JPEG", **options)
                found.append(held.getvalue())
    return found


SEEDS = seeds()


def mutant(number):
    """A seed with one to three things done to it; always the same."""
    draw = np.random.default_rng((7, number))
    data = bytearray(SEEDS[int(draw.integers(len(SEEDS)))])
    for _ in range(int(draw.integers(1, 4))):
        once(data, draw)
    if draw.random() < 0.3:
        data += b"\xff\xd9"
    return bytes(data)


def once(data, draw):
    if len(data) < 8:
        return
    scan = min(max(data.find(b"\xff\xda"), 2), len(data) - 1)
    place = int(draw.integers(scan) if draw.random() < 0.4 else draw.integers(scan, len(data)))
    length = int(draw.integers(1, 9))
    match int(draw.integers(10)):
        case 0:
            data[place] ^= 1 << int(draw.integers(8))
        case 1:
            data[place : place + length] = bytes([int(draw.choice([0, 255, 127]))]) * length
        case 2:
            del data[int(draw.integers(len(data))) :]
        case 3:
            del data[place : place + length]
        case 4:
            data[place:place] = draw.bytes(length)
        case 5:
            data[place:place] = data[place : place + int(draw.integers(1, 200))]
        case 6:
            other = SEEDS[int(draw.integers(len(SEEDS)))]
            data[place : place + 16] = other[place : place + 16]
        case 7:  # a marker where there was none
            data[place:place] = bytes([255, int(draw.integers(0xC0, 0x100))])
        case 8:  # the end stays
            del data[int(draw.integers(2, len(data))) : -2]
        case 9:
            data[place] = int(draw.integers(256))


def answer(data):
    try:
        return decode(data)
    except Undecodable as error:
        return error.reason, error.detail


@pytest.fixture
def pillow_alone(monkeypatch):
    """`pillow_alone(data)`: what comes without the other decoder."""

    def asked(data):
        with monkeypatch.context() as patch:
            patch.setattr(module, "decode_jpeg_fast", lambda *_: None)
            return answer(data)

    return asked


@pytest.fixture
def quick(monkeypatch):
    """How often the other decoder's pixels were taken."""
    taken, real = [], module.decode_jpeg_fast

    def counting(data, image):
        found = real(data, image)
        taken.append(found is not None)
        return found

    monkeypatch.setattr(module, "decode_jpeg_fast", counting)
    return taken


def agrees(data, pillow_alone):
    found, expected = answer(data), pillow_alone(data)
    if isinstance(found, tuple) or isinstance(expected, tuple):
        return isinstance(found, tuple) and isinstance(expected, tuple) and found == expected
    return np.array_equal(found, expected)


def test_every_kind_that_pillow_writes(pillow_alone, quick):
    assert all(agrees(data, pillow_alone) for data in SEEDS)
    assert sum(quick) > 0.8 * len(SEEDS)


@pytest.mark.parametrize(
    "count", [3_000, pytest.param(100_000, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_broken_files(count, pillow_alone, quick, capfd):
    assert [n for n in range(count) if not agrees(mutant(n), pillow_alone)] == []
    assert sum(quick) > 0.15 * count  # damage that both decoders pass over in the same way
    capfd.readouterr()  # libjpeg says there what it passed over


def examined(data):
    found = check_image(data, "a.jpg")
    return (found.reason, found.detail) if found.reason else (found.height, found.width)


def expected_of(data):
    """Size or refusal by way of all pixels."""
    found = answer(data)
    return found if isinstance(found, tuple) else found.shape[:2]


@pytest.mark.parametrize(
    "count", [2_000, pytest.param(50_000, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_who_looks_at_a_fraction_of_the_size_refuses_the_same(count, capfd):
    assert [n for n in range(count) if examined(mutant(n)) != expected_of(mutant(n))] == []
    capfd.readouterr()


def test_the_check_refuses_the_same(capfd):
    def checked(data):
        try:
            return decoded_size(data)
        except Undecodable as error:
            return error.reason, error.detail

    assert [n for n in range(3_000) if checked(mutant(n)) != expected_of(mutant(n))] == []
    capfd.readouterr()


def test_photographs(shared, pillow_alone, quick):
    with zipfile.ZipFile(shared / "data/trashnet-subset.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")][::6]
        for name in names:
            assert agrees(archive.read(name), pillow_alone), name
    assert all(quick)


def test_difficult_images(shared, pillow_alone, quick, capfd):
    with zipfile.ZipFile(shared / "data/nasty-images.zip") as archive:
        for name in archive.namelist():
            assert agrees(archive.read(name), pillow_alone), name
    assert any(quick)
    capfd.readouterr()


@pytest.mark.parametrize("cut", [2, 3, 20, 200])
def test_what_is_cut_or_goes_on_is_named(cut, pillow_alone):
    whole = SEEDS[30]
    for data in (whole[:-cut], whole[: -cut - 2] + whole[-2:], whole + b"more"):
        assert agrees(data, pillow_alone)
    assert answer(whole[:-200])[0] == "truncated"


def test_without_the_look_at_markers_they_disagree(monkeypatch, pillow_alone, capfd):
    monkeypatch.setattr(jpeg, "is_complete_jpeg", lambda data: True)
    assert not all(agrees(mutant(n), pillow_alone) for n in range(2_000))
    capfd.readouterr()


def test_libraries_that_differ_are_not_mixed(monkeypatch, quick):
    jpeg._decoders_agree.cache_clear()
    real = jpeg._by_opencv
    monkeypatch.setattr(jpeg, "_by_opencv", lambda data: real(data) ^ 1)
    try:
        expected = np.asarray(Image.open(io.BytesIO(SEEDS[0])))
        assert np.array_equal(decode(SEEDS[0]), expected) and not any(quick)
    finally:
        jpeg._decoders_agree.cache_clear()
