import numpy as np
import pytest

from unfreeze.data.images.errors import Undecodable
from unfreeze.data.images.intensity import (
    ValueRange,
    count_clipped,
    extent,
    parse_intensity,
    parse_range,
    shared_range,
    to_uint8,
)


@pytest.mark.parametrize(
    ("values", "white"),
    [
        ([0, 100, 255], 255),
        ([0, 300, 1023], 1023),
        ([0, 2_000, 4_095], 4095),
        ([0, 9_000, 16_000], 16383),
        ([257, 514, 65_535], 65535),
    ],
)
def test_whole_numbers_are_scaled_by_the_smallest_depth_that_holds_them(values, white):
    found = to_uint8(np.array(values, np.uint16))
    assert found.tolist() == np.rint(np.array(values) * 255 / white).astype(int).tolist()


def test_sixteen_bits_are_divided_by_257():
    values = np.arange(0, 65_536, 257, dtype=np.uint16)
    assert to_uint8(values).tolist() == list(range(256))


def test_fractions_within_0_and_1_are_scaled_by_255():
    values = np.array([0, 0.2, 0.4, 0.8])
    assert to_uint8(values.astype(np.float32)).tolist() == [0, 51, 102, 204]


@pytest.mark.parametrize(
    "values",
    [
        np.array([-1.0, 0.0, 1.0]),
        np.array([0.0, 1e4, 2e4]),
        np.array([1e-6, 2e-6, 3e-6]),
        np.array([-5, 0, 5], np.int32),
        np.array([100_000, 200_000, 300_000], np.int32),
        np.array([0, 15, 30], np.uint16),
    ],
)
def test_everything_else_is_stretched(values):
    low, middle, high = to_uint8(values).tolist()
    assert (low, high) == (0, 255)
    assert middle in (127, 128)


@pytest.mark.parametrize(("value", "grey"), [(7e3, 128), (-1.0, 128), (0.0, 0), (1.0, 255)])
def test_images_of_one_value(value, grey):
    assert to_uint8(np.full((2, 2), value)).tolist() == [[grey] * 2] * 2


def test_what_is_not_finite_takes_the_nearer_end():
    values = np.array([np.nan, -np.inf, 0.0, 1.0, np.inf])
    assert to_uint8(values).tolist() == [0, 0, 0, 255, 255]
    with pytest.raises(Undecodable, match="finite"):
        to_uint8(np.full(3, np.nan))


def test_the_full_range_of_the_type():
    dark = np.array([0, 100, 4_000], np.uint16)
    assert to_uint8(dark, "full").tolist() == [0, 0, 16]
    assert to_uint8(np.array([0.0, 0.05, 0.1]), "full").tolist() == [0, 13, 26]
    # beyond it: as in auto, never cut off
    for values in (np.array([0, 100_000, 200_000]), np.array([-1.0, 0.0, 1.0])):
        assert to_uint8(values, "full").tolist() == to_uint8(values).tolist() == [0, 128, 255]


def test_percentiles_of_the_image_itself():
    values = np.arange(1_001, dtype=np.uint16)
    values[-1] = 60_000  # one hot pixel
    found = to_uint8(values, "percentile")
    assert found[[0, 5, 500, 995, 1000]].tolist() == [0, 0, 128, 255, 255]
    assert to_uint8(values)[500] == 2
    mostly = np.zeros(1_000, np.uint16)
    mostly[:3] = 65_535
    assert to_uint8(mostly, "percentile").tolist() == to_uint8(mostly).tolist()
    assert to_uint8(np.array([np.nan, 1.0, 2.0, np.inf]), "percentile").tolist()[1:] == [
        0,
        255,
        255,
    ]


def test_a_fixed_range_is_the_same_for_every_image():
    dark, bright = np.array([0, 100, 200], np.uint16), np.array([0, 2_000, 5_000], np.uint16)
    assert to_uint8(dark, "0:4095").tolist() == [0, 6, 12]
    assert to_uint8(bright, "0:4095").tolist() == [0, 125, 255]  # cut off beyond it
    assert to_uint8(np.array([-1000.0, 0, 1000, np.nan]), "-1000:1000").tolist() == [0, 128, 255, 0]


@pytest.mark.parametrize("word", ["0:0", "5:1", "a:b", "1:", ":1", "0:inf", "nan:1", "0-4095"])
def test_what_is_no_range(word):
    assert parse_range(word) is None
    with pytest.raises(ValueError, match="is not a valid range"):
        parse_intensity(word)


def extents(*highs, low=0.0, whole=True):
    return [ValueRange(whole, low, high) for high in highs]


@pytest.mark.parametrize(
    ("found", "rule"),
    [
        (extents(170, 180, 2_700, 2_800), "0:4095"),  # classes that differ in brightness
        (extents(200, 250), "0:255"),
        (extents(900), "0:1023"),
        (extents(12_000, 9_000), "0:16383"),
        (extents(60_000, 30_000, 20_000), "0:65535"),
        (extents(0.3, 0.9, whole=False), "0:1"),
        (extents(20, 30), "0:30"),  # nowhere near any white: their own values, all together
        (extents(1_000, 3_000, low=-1_000), "-1000:3000"),
        (extents(100_000, 90_000), "0:100000"),
        (extents(30, 30, 30, 60_000), "image"),  # most would be black
        (extents(5, 5, low=5), "image"),
    ],
)
def test_one_range_for_a_dataset_where_its_values_allow_it(found, rule):
    chosen, reason = shared_range(found)
    assert chosen == rule
    assert ("brightness" in reason) == (rule == "image")


def test_an_extent_leaves_single_pixels_out():
    values = np.full((100, 100), 900, np.uint16)
    values[0, :5] = 65_535
    assert extent(values) == ValueRange(True, 900, 900)
    assert extent(np.full(3, np.nan)) is None
    assert extent(np.array([np.nan, 0.5])) == ValueRange(False, 0.5, 0.5)
    assert count_clipped("0:1023", extents(900, 1_024, 4_000)) == 2
    assert count_clipped("image", extents(900)) == 0
