"""TIFF files of many channels and deep colour: what is used is what is stored, and is said."""

import io
import struct
import sys

import cv2
import numpy as np
import pytest
import tifffile

from unfreeze.data.images import multichannel as module
from unfreeze.data.images.decode import decode, header_size
from unfreeze.data.images.errors import Undecodable
from unfreeze.data.images.intensity import format_intensity, parse_intensity, to_uint8
from unfreeze.data.images.multichannel import read_tiff_header
from unfreeze.data.validate.checks import check_image
from unfreeze.errors import UsageError

SIDES = (20, 24)


def fitting(packed, kind):
    # tifffile writes predictors of fractions with imagecodecs alone
    return {
        name: one for name, one in packed.items() if kind is not np.float32 or name != "predictor"
    }


def noise(channels, kind=np.uint16, high=65536, seed=0):
    drawn = np.random.default_rng(seed).integers(0, high, (*SIDES, channels))
    return (drawn / high).astype(kind) if kind in (np.float32, np.float64) else drawn.astype(kind)


def tiff(values, **options):
    buffer = io.BytesIO()
    if options.setdefault("planarconfig", "contig") == "separate":
        values = np.moveaxis(values, 2, 0).copy()
    options.setdefault("photometric", "minisblack")
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


PACKED = [
    {},
    {"planarconfig": "separate"},
    {"compression": "zlib"},
    {"compression": "zlib", "predictor": True},
    {"tile": (16, 16)},
    {"rowsperstrip": 3},
    {"byteorder": ">"},
    {"bigtiff": True},
]


@pytest.mark.parametrize("packed", PACKED, ids=str)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_of_many_the_first_three_are_used(packed, kind):
    high = 256 if kind is np.uint8 else 65536
    values = noise(7, kind, high)
    expected = values[..., :3] if kind is np.uint8 else to_uint8(values[..., :3])
    data = tiff(values, **fitting(packed, kind))
    assert (decode(data) == expected).all()
    assert header_size(data) == SIDES
    found = check_image(data, "a.tif")
    assert found.reason is None and (found.height, found.width) == SIDES
    assert ("channels", "7 channels; only the first three are used") in found.notes


@pytest.mark.parametrize("packed", PACKED, ids=str)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_colour_is_never_read_wrongly_however_it_is_packed(packed, kind):
    high = 256 if kind is np.uint8 else 4096 if kind is np.uint16 else 65536
    values = noise(3, kind, high)  # twelve bits in sixteen: upper bytes alone are nearly black
    expected = values if kind is np.uint8 else to_uint8(values)
    assert (decode(tiff(values, photometric="rgb", **fitting(packed, kind))) == expected).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("options", [{}, {"planarconfig": "separate"}], ids=str)
def test_deep_colour_is_turned_once(orientation, options):
    values = noise(3)
    tags = [(274, "H", 1, orientation, True)]
    deep = decode(tiff(values, photometric="rgb", extratags=tags, **options))
    eight = decode(tiff(to_uint8(values), photometric="rgb", extratags=tags))
    assert (deep == eight).all()


def test_deep_png_goes_by_the_rule_too():
    dark = noise(3, high=2048)
    data = cv2.imencode(".png", dark[..., ::-1])[1].tobytes()
    assert (decode(data) == to_uint8(dark)).all() and decode(data).max() > 120
    assert (decode(data, "full") == to_uint8(dark, "full")).all()
    assert any(note.reason == "16-bit" for note in check_image(data, "a.png").notes)
    with pytest.raises(Undecodable) as raised:
        decode(data[: len(data) // 2])
    assert raised.value.reason == "truncated"


def test_deep_alpha_is_put_on_white():
    values = noise(4)
    values[..., 3] = [0, 65535] * (SIDES[1] // 2)
    data = cv2.imencode(".png", values[..., [2, 1, 0, 3]])[1].tobytes()
    expected = to_uint8(values[..., :3])
    expected[:, ::2] = 255
    for one in (data, tiff(values, photometric="rgb", extrasamples=["unassalpha"])):
        assert (decode(one) == expected).all()
    spare = tiff(values, photometric="rgb", extrasamples=["unspecified"])
    assert (decode(spare) == to_uint8(values[..., :3])).all()
    assert ("channels", "4 channels; only the first three are used") in check_image(
        spare, "a.tif"
    ).notes


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_two_channels_are_the_first_as_grey(kind):
    values = noise(2, kind, 256 if kind is np.uint8 else 65536)
    one = values[..., :1] if kind is np.uint8 else to_uint8(values[..., :1])
    data = tiff(values)
    assert (decode(data) == np.repeat(one, 3, axis=2)).all()
    assert ("channels", "2 channels; only the first is used") in check_image(data, "a.tif").notes


@pytest.mark.parametrize("chosen", [(6, 0, 3), (2,), (1, 1, 1)])
@pytest.mark.parametrize("options", [{}, {"planarconfig": "separate"}], ids=str)
def test_chosen_channels_are_those(chosen, options):
    values = noise(7)
    picked = to_uint8(values[..., list(chosen)])
    picked = np.repeat(picked, 3 // len(chosen), axis=2)
    word = format_intensity(None, chosen)
    assert (decode(tiff(values, **options), word) == picked).all()


def test_pages_may_be_chosen_as_channels():
    pages = noise(5)
    data = tiff(np.moveaxis(pages, 2, 0).copy(), planarconfig=None)
    expected = to_uint8(pages[..., [4, 0, 2]])
    assert (decode(data, "auto@4,0,2") == expected).all()
    with pytest.raises(Undecodable, match="channel 7 does not exist: the image has 5") as raised:
        decode(data, "auto@0,1,7")
    assert raised.value.reason == "channels"


def test_chosen_channels_of_other_formats(made):
    pixels = made.noise()
    assert (decode(made.encoded(pixels), "auto@2,1,0") == pixels[..., ::-1]).all()
    assert (decode(made.encoded(pixels), "auto@1") == pixels[..., 1:2]).all()
    grey = made.encoded(pixels[..., 0])
    assert (decode(grey, "auto@0") == pixels[..., :1]).all()
    with pytest.raises(Undecodable, match="channel 2 does not exist: the image has 1"):
        decode(grey, "auto@0,1,2")


def test_the_word_that_a_model_keeps():
    assert format_intensity(None, None) == "auto" and parse_intensity("auto") == ("auto", None)
    assert format_intensity("percentile", (3, 2, 1)) == "percentile@3,2,1"
    assert parse_intensity("percentile@3,2,1") == ("percentile", (3, 2, 1))
    assert format_intensity(None, None, "full@4") == "full@4"
    assert format_intensity("auto", None, "full@4") == "auto@4"
    assert format_intensity(None, (1,), "full@4") == "full@1"
    with pytest.raises(UsageError, match="one or three numbers, not 2"):
        format_intensity(None, (1, 2))
    for wrong in ("dark", "auto@", "auto@1,2", "auto@x", "auto@-1", "auto@1,2,3,4"):
        with pytest.raises(ValueError):
            parse_intensity(wrong)


def test_without_tifffile_the_extra_is_named_and_nothing_is_shown_wrongly(monkeypatch):
    monkeypatch.setattr(module, "INSTALLED", False)
    for values, options in (
        (noise(13), {}),
        (noise(3), {"planarconfig": "separate", "photometric": "rgb"}),
        (noise(3, np.float32), {"photometric": "rgb"}),
    ):
        with pytest.raises(Undecodable, match=r"unfreeze\[tiff\]") as raised:
            decode(tiff(values, **options))
        assert raised.value.reason == "channels"
    deep = noise(3)
    assert (decode(tiff(deep, photometric="rgb")) == to_uint8(deep)).all()


def test_a_packing_that_takes_imagecodecs_names_the_extra(monkeypatch):
    data = tiff(noise(6), metadata=None)
    # compression: none becomes LZW
    entry = struct.pack("<HHI", 259, 3, 1)
    data = data.replace(entry + struct.pack("<I", 1), entry + struct.pack("<I", 5))
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(Undecodable, match=r"unfreeze\[tiff\]") as raised:
        decode(data)
    assert raised.value.reason == "channels"


@pytest.mark.parametrize("tenth", range(10))
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}], ids=str)
def test_cut_files_are_named(tenth, options):
    data = tiff(noise(6), metadata=None, **options)
    with pytest.raises(Undecodable) as raised:
        decode(data[: len(data) * tenth // 10])
    assert raised.value.reason in ("empty", "truncated", "unreadable", "not an image")
    if tenth > 1:
        assert raised.value.reason == "truncated"


def test_mutated_files_never_escape():
    draw = np.random.default_rng(0)
    seeds = [
        tiff(noise(6)),
        tiff(noise(5, np.float32), compression="zlib"),
        tiff(noise(3), photometric="rgb"),
    ]
    for number in range(300):
        data = bytearray(seeds[number % 3])
        for place in draw.integers(0, 300 if number % 2 else len(data), 1 + number % 4):
            data[place] = draw.integers(0, 256)
        try:
            pixels = decode(bytes(data), "auto@0,1,2" if number % 5 == 0 else "auto")
        except Undecodable:
            continue
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


def test_what_claims_too_much_is_a_bomb():
    data = bytearray(tiff(noise(6), metadata=None))
    found = read_tiff_header(bytes(data))
    assert found is not None and (found.channels, found.bits, found.whole) == (6, 16, True)
    data = bytes(data).replace((20).to_bytes(4, "little"), (60_000).to_bytes(4, "little"), 1)
    data = data.replace((24).to_bytes(4, "little"), (60_000).to_bytes(4, "little"), 1)
    huge = read_tiff_header(data)
    assert huge is not None
    with pytest.raises(Undecodable) as raised:
        decode(data)
    assert raised.value.reason in ("bomb", "truncated")
