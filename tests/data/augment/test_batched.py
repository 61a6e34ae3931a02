"""Views of a whole batch at once agree with those that are cut one by one.

Within rounding: on 99 of 100 values 2 levels of 255 at most, 0.5 in the mean. A level of difference
before saturation or contrast is a few behind it.
"""

import cv2
import numpy as np
import pytest
import torch

from unfreeze.data.augment import batched, color, random_resized_crop
from unfreeze.data.augment.batched import crop_batch
from unfreeze.data.augment.config import CropSpec, preset
from unfreeze.data.augment.multicrop import make_crops
from unfreeze.data.augment.parameters import DRAWS, TAPS, CropParameters, parameter_table, uniforms


def images(count, low, high, seed=0):
    """Smooth coloured images of many sizes."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        height, width = (int(side) for side in rng.integers(low, high + 1, 2))
        coarse = rng.integers(0, 256, (6, 8, 3), np.uint8)
        found.append(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))
    return found


def padded(shots, rest=0):
    """`[N, 3, H, W]`: the smaller ones in the corner, `rest` around them."""
    height, width = np.array([shot.shape[:2] for shot in shots]).max(0)
    joined = torch.full((len(shots), 3, height, width), rest, dtype=torch.uint8)
    for place, shot in zip(joined, shots, strict=True):
        place[:, : shot.shape[0], : shot.shape[1]] = torch.tensor(shot).permute(2, 0, 1)
    return joined


def sides(shots):
    return np.array([shot.shape[:2] for shot in shots], np.int64)


def drawn(shots, spec, *, epoch=1, seed=7, view=0):
    ids = np.arange(len(shots)) + 100
    return CropParameters(
        torch.from_numpy(parameter_table(sides(shots), ids, epoch, seed, [(view, spec)]))
    )


def both(shots, spec, **keyed):
    """(one by one, at once), int."""
    how = {"epoch": 1, "seed": 7, **keyed}
    ids = np.arange(len(shots)) + 100
    alone = make_crops(shots, ids, how["epoch"], how["seed"], [spec])[0]
    at_once = crop_batch(padded(shots), drawn(shots, spec, **how), spec)
    assert at_once.dtype == torch.uint8 and at_once.shape == alone.shape
    return alone.int(), at_once.int()


def assert_close(alone, at_once):
    apart = (alone - at_once).abs().float()
    assert apart.mean() < 0.5 and apart.quantile(0.99) <= 2
    assert apart.mean(dim=(1, 2, 3)).max() < 3  # no image is another one


@pytest.mark.parametrize("name", ["photo", "small", "mono", "digits"])
@pytest.mark.parametrize("size, scale", [(32, (0.2, 1.0)), (24, (0.05, 0.3))])
def test_every_preset_agrees(name, size, scale):
    assert_close(*both(images(60, 20, 64), preset(name, size, scale)))


def test_bare_crops_agree_to_rounding():
    bare = CropSpec(32, (0.05, 1.0), jitter=0, grey=0, blur=0)
    for low, high in ((8, 30), (33, 64), (16, 64)):  # enlarged, shrunk, both
        alone, at_once = both(images(60, low, high), bare)
        apart = (alone - at_once).abs()
        assert apart.max() <= 2 and (apart > 0).float().mean() < 0.25


@pytest.mark.parametrize("turn", [0, 5, 51, 128, 205, 255])
def test_hue_agrees_to_the_bit_with_opencvs(turn):
    rng = np.random.default_rng(turn)
    pixels = rng.integers(0, 256, (64, 64, 3), np.uint8)
    pixels[:8] = pixels[:8, :, :1]  # grey ones have no hue
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(turn)
    expected = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL).astype(int)
    found = batched.adjust_hue_batch(padded([pixels]).float(), torch.tensor([float(turn)]))
    apart = np.abs(found[0].permute(1, 2, 0).numpy() - expected)
    assert apart.max() <= 1 and apart.mean() < 1e-3


@pytest.mark.parametrize("sigma", [0.1, 0.4, 1.0, 1.6, 2.0])
def test_blur_agrees_and_repeats_the_edges(sigma):
    spec = CropSpec(32, (1.0, 1.0), (1.0, 1.0), 0, jitter=0, grey=0, blur=1.0, sigma=(sigma,) * 2)
    shots = images(6, 32, 32)
    found = batched.gaussian_blur_batch(padded(shots).float(), drawn(shots, spec)["taps"])
    for shot, own in zip(shots, found, strict=True):
        expected = color.gaussian_blur(shot, sigma).astype(int)
        assert np.abs(own.permute(1, 2, 0).numpy() - expected).max() <= 1


def test_the_table_holds_what_the_host_draws():
    spec, shots = preset("photo", 32, (0.2, 1.0)), images(50, 20, 64)
    found = drawn(shots, spec, epoch=3, seed=5, view=2)
    draws = uniforms(5, 3, np.arange(50) + 100, 2, DRAWS)
    assert np.array_equal(
        found["box"].numpy(), random_resized_crop.random_boxes(sides(shots), draws, spec)
    )
    assert np.array_equal(found["flip"].numpy(), draws[:, random_resized_crop.DRAWS] < 0.5)
    orders = [color.ORDERS[int(row[random_resized_crop.DRAWS + 7] * 24)] for row in draws]
    assert np.array_equal(found["order"].numpy(), orders)
    assert found["taps"].shape == (50, TAPS)
    assert found["taps"].sum(1).numpy() == pytest.approx(np.ones(50))


def test_views_are_keyed_by_seed_epoch_id_and_view():
    spec, shots = preset("small", 32, (0.2, 1.0)), images(8, 32, 32)
    one = both(shots, spec)[1]
    for other in ({"seed": 8}, {"epoch": 2}):
        assert not torch.equal(one, both(shots, spec, **other)[1])
    view = crop_batch(padded(shots), drawn(shots, spec, view=1), spec)
    assert not torch.equal(one, view.int())


def test_company_and_what_lies_beside_a_image_do_not_matter():
    spec, shots = preset("photo", 24, (0.2, 1.0)), images(12, 20, 40)
    for name in ("photo", "digits"):
        spec = preset(name, 24, (0.2, 1.0))
        whole = crop_batch(padded(shots), drawn(shots, spec), spec)
        white = crop_batch(padded(shots, rest=255), drawn(shots, spec), spec)
        assert torch.equal(whole, white)


def test_nothing_asks_the_device_for_a_value():
    """On the device `meta` there are no values: whoever asks for one raises."""
    shots = images(5, 20, 40)
    for name in ("photo", "digits"):
        spec = preset(name, 24, (0.2, 1.0))
        nowhere = CropParameters(drawn(shots, spec).table.to("meta"))
        view = crop_batch(padded(shots).to("meta"), nowhere, spec)
        assert view.shape == (5, 24, 24, 3) and view.device.type == "meta"
    with pytest.raises(RuntimeError):
        bool(nowhere["flip"].any())
