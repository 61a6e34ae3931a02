"""Whatever a Python program holds an image in is read as its file is, or refused."""

import io

import numpy as np
import pytest
from PIL import Image

from unfreeze.data.images.decode import decode
from unfreeze.data.images.in_memory import as_image_list, is_path, pixels_of
from unfreeze.errors import UsageError

COLOUR = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def encoded(image, kind="PNG", **more):
    held = io.BytesIO()
    image.save(held, kind, **more)
    return held.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "1", "CMYK", "I;16", "I", "F"])
def test_an_image_of_pillows_is_what_its_file_would_be(mode):
    image = Image.fromarray(COLOUR)
    if mode == "I;16":
        image = Image.fromarray(COLOUR[..., 0].astype(np.uint16) * 200)
    else:
        image = image.convert(mode)
    kind = "TIFF" if mode in ("CMYK", "F", "I") else "PNG"
    data = encoded(image, kind)
    assert (pixels_of(image, "auto") == decode(data)).all()
    assert (pixels_of(data, "auto") == decode(data)).all()
    assert (pixels_of(bytearray(data), "auto") == decode(data)).all()


def test_an_image_of_pillows_is_turned_as_its_file_is():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(COLOUR), exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        assert (pixels_of(image, "auto") == decode(data)).all()
        assert pixels_of(image, "auto").shape == (7, 5, 3)


def test_arrays_of_every_kind():
    grey = COLOUR[..., 0]
    three = np.repeat(grey[..., None], 3, axis=2)
    deep = grey.astype(np.uint16) * 257
    assert (pixels_of(COLOUR, "auto") == COLOUR).all()
    for same in (grey, grey[..., None], grey.astype(np.int64), deep, grey / 255):
        assert (pixels_of(same, "auto") == three).all()
    assert (pixels_of(COLOUR.astype(np.int32), "auto") == COLOUR).all()
    assert (pixels_of(grey > 99, "auto") == np.where(three > 99, 255, 0)).all()
    see_through = np.dstack([COLOUR, grey])
    assert (pixels_of(see_through, "auto") == decode(encoded(Image.fromarray(see_through)))).all()
    wide = np.dstack([COLOUR.astype(np.int64), np.full(grey.shape, 255)])
    assert (pixels_of(wide, "auto") == COLOUR).all()
    assert (pixels_of(COLOUR, "auto@2,1,0") == COLOUR[..., ::-1]).all()


def test_one_image_is_a_list_of_one(tmp_path):
    image = Image.fromarray(COLOUR)
    for one in ("a.png", tmp_path, b"a.png", encoded(image), image, COLOUR, COLOUR[..., 0]):
        (found,) = as_image_list(one)
        assert found is one


def test_anything_to_go_through_is_gone_through():
    paths = ["a.png", "b.png"]
    for many in (paths, tuple(paths), iter(paths), (p for p in paths)):
        assert as_image_list(many) == paths
    assert as_image_list(np.array(paths)) == paths
    assert [x.shape for x in as_image_list(np.stack([COLOUR, COLOUR]))] == [(5, 7, 3)] * 2
    assert is_path("a") and is_path(b"a.png") and not is_path(encoded(Image.fromarray(COLOUR)))


@pytest.mark.parametrize(
    "wrong",
    [
        *([], (), iter([]), (x for x in ()), np.zeros((0, 5, 5, 3), np.uint8)),
        *(None, 3, {}, {"a": 1}, {"a.png"}, object(), np.zeros(()), np.zeros(4), [None], [3], [[]]),
        *(np.zeros((3, 8, 8), np.uint8), np.zeros((9, 9, 5)), np.zeros((0, 9, 3), np.uint8)),
        *(np.zeros((2, 2, 2, 2)), [np.zeros((4, 4), complex)], ["a.png", 1], [("a.png", 0)]),
    ],
    ids=lambda wrong: type(wrong).__name__,
)
def test_everything_else_is_refused_and_never_nothing(wrong):
    with pytest.raises(UsageError) as caught:
        as_image_list(wrong)
    assert caught.value.next_step


def test_tensors_are_refused():
    import torch

    for tensor in (torch.zeros(3, 4, 4), [torch.zeros(4, 4, 3)]):
        with pytest.raises(UsageError, match="Tensor"):
            as_image_list(tensor)
