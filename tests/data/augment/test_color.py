import cv2
import numpy as np
import pytest
from PIL import Image, ImageFilter
from torchvision.transforms import functional as tv

from unfreeze.data.augment import color
from unfreeze.data.augment.config import CropSpec


@pytest.fixture(scope="module")
def image():
    rng = np.random.default_rng(2)
    small = rng.integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(small, (64, 48), interpolation=cv2.INTER_CUBIC)


def gap(mine, theirs):
    return np.abs(mine.astype(int) - np.asarray(theirs).astype(int))


@pytest.mark.parametrize("factor", [0.2, 0.7, 1.0, 1.3, 1.8])
@pytest.mark.parametrize(
    "mine, theirs",
    [
        (color.adjust_brightness, tv.adjust_brightness),
        (color.adjust_contrast, tv.adjust_contrast),
        (color.adjust_saturation, tv.adjust_saturation),
    ],
)
def test_factors_equal_pillows(image, mine, theirs, factor):
    # the mean luminance behind contrast may round to the neighbouring level
    assert gap(mine(image, factor), theirs(Image.fromarray(image), factor)).max() <= 2


@pytest.mark.parametrize("turn", [-0.2, -0.05, 0.0, 0.1, 0.2])
def test_hue_equals_pillows_but_for_8_bit_hsv(image, turn):
    difference = gap(color.adjust_hue(image, turn), tv.adjust_hue(Image.fromarray(image), turn))
    assert difference.mean() < 1.5 and np.quantile(difference, 0.99) <= 8


def test_grey_equals_pillows(image):
    theirs = Image.fromarray(image).convert("L").convert("RGB")
    assert gap(color.to_greyscale(image), theirs).max() <= 1


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_blur_equals_pillows(image, sigma):
    theirs = Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma))
    difference = gap(color.gaussian_blur(image, sigma), theirs)
    # Pillow puts three box blurs in the place of the Gaussian
    assert difference.mean() < 1 and difference.max() <= 8


def test_rates_are_those_of_the_spec(image):
    rng = np.random.default_rng(0)
    spec = CropSpec(blur=0.0)
    draws = rng.random((2000, color.DRAWS))
    views = [color.augment_colour(image, row, spec) for row in draws]
    same = np.mean([np.array_equal(view, image) for view in views])
    grey = np.mean([bool((np.ptp(view, axis=2) == 0).all()) for view in views])
    assert abs(same - 0.2 * 0.8) < 3.5 * np.sqrt(0.16 * 0.84 / 2000)
    # besides the drawn ones, a view can turn grey by saturation near 0
    assert abs(grey - 0.2) < 3.5 * np.sqrt(0.16 / 2000) + 0.005


def test_orders_of_the_jitter_are_all_met(image):
    spec = CropSpec()
    results = {
        color.colour_jitter(image, np.array([0.95, 0.9, 0.95, 0.9, k / 24]), spec).tobytes()
        for k in range(24)
    }
    assert len(results) > 12
