"""The file beside an export reads images as `predict` does, without PyTorch or unfreeze."""

import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from unfreeze.data.images.decode import decode
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.exports import standalone
from unfreeze.exports.standalone import open_image, prepare

DRAW = np.random.default_rng(0)
SIZE = (70, 50)  # width, height


def noise(channels, kind=np.uint8, most=256):
    shape = (SIZE[1], SIZE[0], channels) if channels > 1 else (SIZE[1], SIZE[0])
    return DRAW.integers(0, most, shape).astype(kind)


def palette():
    image = Image.fromarray(noise(3)).quantize(7)
    image.info["transparency"] = 2
    return image


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return {"exif": exif}


IMAGES = {
    "colour.png": (lambda: Image.fromarray(noise(3)), {}),
    "photo.jpg": (lambda: Image.fromarray(noise(3)).resize(SIZE), {"quality": 90}),
    "turned.jpg": (lambda: Image.fromarray(noise(3)), turned()),
    "grey.png": (lambda: Image.fromarray(noise(1)), {}),
    "alpha.png": (lambda: Image.fromarray(noise(4)), {}),
    "grey-alpha.png": (lambda: Image.fromarray(noise(2)), {}),
    "palette.png": (palette, {"transparency": 2}),
    "cmyk.jpg": (lambda: Image.fromarray(noise(3)).convert("CMYK"), {}),
    "one-bit.png": (lambda: Image.fromarray(noise(1)).convert("1"), {}),
    "animated.gif": (lambda: Image.fromarray(noise(1)).convert("P"), {}),
    "deep.png": (lambda: Image.fromarray(noise(1, np.uint16, 65536)), {}),
    "twelve-bit.png": (lambda: Image.fromarray(noise(1, np.uint16, 4096)), {}),
    "dark.png": (lambda: Image.fromarray(noise(1, np.uint16, 5000) + np.uint16(300)), {}),
    "float.tif": (lambda: Image.fromarray(DRAW.random((50, 70)).astype(np.float32)), {}),
    "wide-float.tif": (lambda: Image.fromarray(DRAW.normal(0, 9, (50, 70)).astype(np.float32)), {}),
    "constant.tif": (lambda: Image.fromarray(np.full((50, 70), -3.0, np.float32)), {}),
}
RULES = ("auto", "image", "full", "percentile", "0:4095", "-1.5:9")


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_every_image_is_prepared_as_predict_does(name, interpolation, tmp_path):
    make, options = IMAGES[name]
    make().save(tmp_path / name, **options)
    deep = name.endswith((".tif", "deep.png", "bit.png", "dark.png"))
    for rule in RULES if deep else RULES[:1]:
        how = Preprocess(32, 40, interpolation, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), rule)
        pixels = decode((tmp_path / name).read_bytes(), rule)
        assert np.array_equal(np.asarray(open_image(tmp_path / name, rule)), pixels), rule
        ours = how.apply(pixels).numpy()
        found = prepare(tmp_path / name, how.as_dict())
        assert found.dtype == np.float32 and np.allclose(found, ours, atol=1e-6)


def test_what_it_cannot_read_in_the_same_way_it_refuses(tmp_path):
    cv2.imwrite(str(tmp_path / "deep.png"), noise(3, np.uint16, 65536))
    cv2.imwrite(str(tmp_path / "deep.tif"), noise(3, np.uint16, 65536))
    Image.fromarray(noise(3)).save(tmp_path / "plain.png")
    with pytest.raises(ValueError, match="unfreeze predict"):
        open_image(tmp_path / "deep.png")
    with pytest.raises((ValueError, OSError)):  # Pillow itself refuses most such TIFF files
        open_image(tmp_path / "deep.tif")
    with pytest.raises(ValueError, match="selected channels"):
        open_image(tmp_path / "plain.png", "image@2,1,0")


def test_it_needs_numpy_and_pillow_alone(tmp_path):
    Image.fromarray(noise(4)).save(tmp_path / "alpha.png")
    blocked = ["torch", "torchvision", "timm", "unfreeze", "cv2", "scipy", "onnxruntime"]
    how = Preprocess(16, 16).as_dict()
    code = f"""
import sys
OLD = {{name.partition(".")[0] for name in sys.modules}}
for name in {blocked!r}:
    sys.modules[name] = None
sys.path.insert(0, {str(tmp_path)!r})
import prepare
assert prepare.prepare("alpha.png", {how!r}).shape == (3, 16, 16)
others = {{name.partition(".")[0] for name in sys.modules}} - sys.stdlib_module_names
assert others <= {{"prepare", "numpy", "PIL", "__main__", *{blocked!r}}} | OLD, others
"""
    shutil.copy(standalone.__file__, tmp_path / "prepare.py")
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
