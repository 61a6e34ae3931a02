import io
import os
import pickle
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from unfreeze.data.images import decode as module
from unfreeze.data.images import errors as silence
from unfreeze.data.images.decode import (
    decode,
    decoded_size,
    header_size,
    reduced_with_warnings,
    resize_shorter_side,
)
from unfreeze.data.images.errors import Undecodable


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF", "TGA"])
def test_lossless_formats_give_the_pixels_back(made, kind):
    pixels = made.noise()
    if kind == "GIF":
        pixels = np.repeat(pixels[..., :1], 3, axis=2)  # at most 256 colours
    options = {"lossless": True} if kind == "WEBP" else {}
    found = decode(made.encoded(pixels, kind, **options))
    assert found.dtype == np.uint8
    assert np.array_equal(found, pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_is_applied_as_pillow_applies_it(made, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(made.noise()), kind, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    found = decode(data)
    assert np.array_equal(found, expected)
    assert found.flags.c_contiguous
    assert found.shape[:2] == ((16, 12) if orientation > 4 else (12, 16))


def test_a_broken_exif_block_does_not_spoil_a_image(made):
    data = saved(Image.fromarray(made.noise()), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode(data).shape == (12, 16, 3)


@pytest.mark.parametrize("orientation", [0, 9, 255, 65535])
def test_an_orientation_that_nobody_knows_turns_nothing(made, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("JPEG", "PNG"):
        data = saved(Image.fromarray(made.noise()), kind, exif=exif)
        assert decode(data).shape[:2] == decoded_size(data) == (12, 16)
        assert reduced_with_warnings(data, lambda image: None, 128)[1] == (12, 16)


@pytest.mark.parametrize(("mode", "kind"), [("L", "PNG"), ("1", "PNG"), ("L", "JPEG")])
def test_grey_is_repeated(made, mode, kind):
    image = Image.fromarray(made.noise()).convert(mode)
    found = decode(saved(image, kind))
    assert (found == found[..., :1]).all()
    assert found.shape == (12, 16, 3)


def test_alpha_is_laid_on_white(made):
    pixels = np.dstack([made.noise(), np.full((12, 16), 64, np.uint8)])
    pixels[:6, :, 3] = 0
    found = decode(saved(Image.fromarray(pixels), "PNG"))
    assert (found[:6] == 255).all()
    expected = pixels[6:, :, :3] * (64 / 255) + 255 * (191 / 255)
    assert np.abs(found[6:] - expected).max() <= 1


def test_transparent_palette_entries_are_white(made):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 10, 10])
    image.putpixel((0, 0), 0)
    for transparency in (0, b"\x00\xff"):
        found = decode(saved(image, "PNG", transparency=transparency))
        assert found[0, 0].tolist() == [255] * 3
        assert found[1, 1].tolist() == [200, 10, 10]


def test_a_transparent_colour_is_white():
    image = Image.new("RGB", (2, 2), (9, 9, 9))
    image.putpixel((0, 0), (1, 2, 3))
    found = decode(saved(image, "PNG", transparency=(1, 2, 3)))
    assert found[0].tolist() == [[255] * 3, [9] * 3]


def test_cmyk_is_inverted(made):
    flat = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for kind in ("JPEG", "TIFF"):
        assert np.abs(decode(saved(flat, kind)).mean((0, 1)) - [255, 0, 0]).max() < 3


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_many(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (decode(data) == [255, 0, 0]).all()


def test_sixteen_bits_and_fractions_are_not_black():
    ramp = np.linspace(0, 1, 256).reshape(16, 16)
    deep = decode(saved(Image.fromarray((ramp * 65_535).astype(np.uint16)), "PNG"))
    assert deep[..., 0].ravel().tolist() == list(range(256))
    for scale in (1, 1_000):
        data = saved(Image.fromarray((ramp * scale).astype(np.float32)), "TIFF")
        assert decode(data)[..., 0].ravel().tolist() == list(range(256))


def test_pixels_pass_through(made):
    pixels = made.noise()
    assert decode(pixels) is pixels


def bomb_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = (
        chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1_000))) + chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("own_limit", [True, False])
def test_bombs_are_refused_before_decoding(monkeypatch, own_limit):
    if own_limit:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(Image.Image, "load", None)
    with pytest.raises(Undecodable) as raised:
        decode(bomb_png(20_000, 20_000))
    assert raised.value.reason == "bomb"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>404</html>", "not an image"),
        (bytes(5_000), "not an image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
    ],
)
def test_reasons(data, reason):
    with pytest.raises(Undecodable) as raised:
        decode(data)
    assert raised.value.reason == reason
    assert raised.value.exit_code == 3
    again = pickle.loads(pickle.dumps(raised.value))
    assert (again.reason, again.detail) == (raised.value.reason, raised.value.detail)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("tenth", range(1, 10))
def test_files_cut_at_each_tenth_are_truncated(made, kind, tenth):
    data = made.encoded(made.noise(64, 64), kind)
    with pytest.raises(Undecodable) as raised:
        decode(data[: len(data) * tenth // 10])
    assert raised.value.reason == "truncated"


def test_any_exception_of_a_decoder_becomes_a_reason(made, monkeypatch):
    errors = [OSError, SyntaxError, ValueError, TypeError, struct.error, zlib.error, IndexError]
    for error in [*errors, MemoryError, RecursionError, ZeroDivisionError]:

        def fail(self, error=error):
            raise error

        monkeypatch.setattr(Image.Image, "getexif", fail)
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
        with pytest.raises(Undecodable):
            decode(made.encoded())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_changed_bytes_give_pixels_or_a_reason(made, kind):
    data = made.encoded(kind=kind)
    random = np.random.default_rng(0)
    for _ in range(60):
        changed = bytearray(data)
        for place in random.integers(0, len(data), random.integers(1, 8)):
            changed[place] = random.integers(256)
        try:
            found = decode(bytes(changed))
        except Undecodable:
            continue
        assert found.dtype == np.uint8
        assert found.ndim == 3
        assert found.shape[2] == 3


def test_warnings_of_pillow_never_escape_and_filters_are_left_as_they_were(made, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow warns above it
    data = made.encoded()
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(data))
    before = list(warnings.filters)
    caught: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(50):
                decode(data)
        except BaseException as error:
            caught.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not caught
    assert list(warnings.filters) == before
    assert silence._Silence.users == 0


@pytest.mark.parametrize(
    ("shape", "shorter", "expected"),
    [
        ((12, 16), None, (12, 16)),
        ((12, 16), 12, (12, 16)),
        ((12, 16), 20, (12, 16)),
        ((12, 16), 6, (6, 8)),
        ((1000, 10), 5, (500, 5)),
        ((3, 7), 2, (2, 5)),
    ],
)
def test_shrinking(made, shape, shorter, expected):
    assert resize_shorter_side(made.noise(*shape), shorter).shape == (*expected, 3)


def test_shrinking_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    inside = resize_shorter_side(stripes, 16)[:, 2:-2]
    assert np.abs(inside.astype(int) - 128).max() < 12


def test_header_size(made):
    assert header_size(made.encoded()) == (12, 16)
    with pytest.raises(Undecodable):
        header_size(b"text")


def test_a_fork_while_others_decode_can_decode(made):
    data = made.encoded()
    decode(data)
    with silence.pillow_silenced(), silence._Silence.lock, module._large_image_lock:
        child = os.fork()
        if not child:
            os._exit(decode(data).shape != (12, 16, 3))
    assert os.waitpid(child, 0)[1] == 0
