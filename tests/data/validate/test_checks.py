"""What one image shows when it is decoded once."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFilter

from unfreeze.data.images.decode import decode, reduced_with_warnings
from unfreeze.data.validate.checks import ImageChecker, ImageNote, check_image


def scene(side=96, seed=0):
    """An image with something in it: blurred noise, not flat."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def notes(data, name="a"):
    found = check_image(data, name)
    assert found.reason is None
    return {note.reason for note in found.notes}


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(scene(), "JPEG", exif=exif)


@pytest.mark.parametrize(
    "data, expected",
    [
        (saved(scene(), "PNG"), set()),
        (saved(scene(), "JPEG"), set()),
        (saved(scene().convert("L"), "PNG"), {"grey"}),
        (saved(scene().convert("1"), "PNG"), {"grey"}),
        (saved(scene().convert("CMYK"), "JPEG"), {"CMYK"}),
        (saved(scene().quantize(16), "PNG"), {"palette"}),
        (saved(scene().convert("RGBA"), "PNG"), {"alpha"}),
        (turned(6), {"rotated"}),
        (turned(1), set()),
        (
            saved(Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)), "PNG"),
            {"16-bit"},
        ),
        (saved(Image.fromarray(np.random.rand(8, 8).astype(np.float32)), "TIFF"), {"float"}),
        (saved(scene().resize((100, 20)), "PNG"), {"extreme shape"}),
        (
            saved(scene(), "GIF", save_all=True, append_images=[scene(seed=1)]),
            {"animated", "palette"},
        ),
    ],
    ids=[
        "png",
        "jpeg",
        "grey",
        "1-bit",
        "cmyk",
        "palette",
        "alpha",
        "turned",
        "upright",
        "deep",
        "float",
        "long",
        "animated",
    ],
)
def test_oddities_are_named_and_used_all_the_same(data, expected):
    assert notes(data) == expected


@pytest.mark.parametrize(
    "name, odd",
    [("a.jpg", True), ("a.jpeg", True), ("a.png", False), ("a.PNG", False), ("a", False)],
)
def test_the_extension_is_held_to_the_content(name, odd):
    found = notes(saved(scene(), "PNG"), name)
    assert ("wrong extension" in found) == odd


def test_what_the_decoder_says_is_kept():
    data = saved(scene(), "TIFF")
    whole = saved(scene(), "JPEG")
    assert notes(data) == set()
    assert ImageNote("decoder warning", "complete, but the end-of-file marker is missing") in (
        check_image(whole[:-2] + b"\0" * 80, "a").notes
    )


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "empty"),
        (b"<html>not found</html>", "not an image"),
        (saved(scene(), "JPEG")[:300], "truncated"),
        (saved(scene(), "PNG")[:300], "truncated"),
    ],
)
def test_what_is_broken_has_its_reason(data, reason):
    assert check_image(data, "a.jpg").reason == reason


def test_sizes_are_those_of_what_is_used_and_pixels_hold_the_same():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(scene().resize((40, 20)), "JPEG", exif=exif)
    found = check_image(data, "a.jpg")
    assert (found.height, found.width) == decode(data).shape[:2] == (40, 20)
    assert check_image(decode(data), "a").signature.hash == found.signature.hash


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_image_is_looked_at_small_and_upright(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(scene(200).resize((408, 304)), kind, exif=exif)
    shorter = 100 if kind == "JPEG" else 50  # of every n-th pixel twice as many are left
    small, size, _ = reduced_with_warnings(data, lambda image: None, shorter)
    whole = cv2.cvtColor(decode(data), cv2.COLOR_RGB2GRAY)
    assert size == whole.shape
    step = 2 if kind == "JPEG" else 3  # JPEG can be halved
    height, width = size[0] // step, size[1] // step
    assert small.shape == (height, width)
    blocks = whole[: step * height, : step * width].reshape(height, step, width, step)
    assert np.abs(blocks.mean(axis=(1, 3)) - small).mean() < 4  # a smooth scene


def test_a_grey_image_that_is_half_transparent_is_looked_at_on_white():
    grey = np.full((40, 40), 90, np.uint8)
    data = saved(Image.fromarray(grey), "PNG", transparency=90)
    assert (reduced_with_warnings(data, lambda image: None, 100)[0] == 255).all()


def test_a_look_survives_another_size_and_another_save_but_not_another_image():
    def apart(one, two):
        return (
            check_image(one, "a").signature.hash ^ check_image(two, "a").signature.hash
        ).bit_count()

    for seed in range(10):
        image = scene(256, seed)
        original = saved(image, "PNG")
        assert apart(original, saved(image.resize((128, 128)), "PNG")) <= 4
        assert apart(original, saved(image, "JPEG", quality=40)) <= 4
        assert apart(original, saved(image.filter(ImageFilter.GaussianBlur(2)), "PNG")) <= 4
        assert apart(original, saved(scene(256, seed + 100), "PNG")) > 12


def test_a_flat_image_looks_like_nothing():
    assert (
        check_image(saved(Image.new("RGB", (64, 64), "white"), "PNG"), "a").signature.thumb is None
    )


def test_camera_images_without_jfif_are_counted_as_the_rule_of_others_has_it():
    data = saved(scene(), "JPEG")
    assert not check_image(data, "a.jpg").keras
    app0 = data.index(b"\xff\xe0")
    length = int.from_bytes(data[app0 + 2 : app0 + 4], "big")
    camera = data[:app0] + data[app0 + 2 + length :]
    found = check_image(camera, "a.jpg")
    assert found.keras and found.reason is None


def test_what_cannot_be_read_is_not_held_against_the_image(tmp_path):
    from unfreeze.data.sources.open import open_source

    (tmp_path / "a.png").write_bytes(saved(scene(), "PNG"))
    source = open_source(str(tmp_path))
    (tmp_path / "a.png").unlink()
    found = ImageChecker(source)(0)
    assert (found.reason, found.passing) == ("unreadable", True)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP", "JPEG"])
def test_looking_does_not_change_what_is_decoded(kind):
    from unfreeze.data.validate import checks as module

    many = {} if kind == "JPEG" else {"save_all": True, "append_images": [scene(seed=1)]}
    data = saved(scene().quantize(32).convert("RGB"), kind, **many)
    grey, size, _ = reduced_with_warnings(
        data, lambda image: module._header_notes(image, data, "a"), 96
    )
    expected = cv2.cvtColor(decode(data), cv2.COLOR_RGB2GRAY)
    apart = np.abs(grey.astype(int) - expected)  # a JPEG's grey is not by way of its colours
    assert apart.max() <= (40 if kind == "JPEG" else 0) and apart.mean() < 1
    assert size == (96, 96)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
def test_flipped_bytes_are_usable_or_named(kind):
    from typing import get_args

    from unfreeze.data.images.errors import Reason

    data, draw = saved(scene(40), kind), np.random.default_rng(0)
    ends = set()
    for _ in range(150):
        flipped = bytearray(data)
        for place in draw.integers(0, len(data), 4):
            flipped[place] ^= 1 << int(draw.integers(8))
        found = check_image(bytes(flipped), "a")
        assert found.reason is None or (found.reason in get_args(Reason) and found.detail)
        ends.add(found.reason)
    assert len(ends) > 1 or kind == "BMP"  # some are broken by it: BMP hardly notices
