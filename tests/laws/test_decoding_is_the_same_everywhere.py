"""A file gives the same pixels in training, prediction, embedding, evaluation, export and show."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import unfreeze
from unfreeze.commands.predict import _inputs as asked
from unfreeze.commands.show import intensity_rule
from unfreeze.config.commands import ExportSettings, ShowSettings
from unfreeze.data.augment.multicrop import multicrop
from unfreeze.data.cache.policy import PixelCachePlan
from unfreeze.data.images.decode import decode
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.data.index.index import build_index
from unfreeze.data.sources.open import open_source
from unfreeze.data.validate.precheck import check_images
from unfreeze.runs.exporting.inputs import _images
from unfreeze.runs.inference import readers_of
from unfreeze.transfer.predictor import _pixels

SIDES = (40, 30)


def gradient(low, high, kind):
    return np.linspace(low, high, SIDES[0] * SIDES[1]).reshape(SIDES).astype(kind)


def encoded(image, kind, **options):
    held = io.BytesIO()
    image.save(held, kind, **options)
    return held.getvalue()


def odd_images():
    colour = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIDES, 3), np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    alpha = colour.convert("RGBA")
    alpha.putalpha(Image.fromarray(gradient(0, 255, np.uint8)))
    return {
        "exif.jpg": encoded(colour, "JPEG", exif=turned),
        "grey.png": encoded(colour.convert("L"), "PNG"),
        "alpha.png": encoded(alpha, "PNG"),
        "palette.png": encoded(colour.convert("P"), "PNG", transparency=3),
        "cmyk.jpg": encoded(colour.convert("CMYK"), "JPEG"),
        "deep.png": encoded(Image.fromarray(gradient(0, 3_000, np.uint16)), "PNG"),
        "dark.png": encoded(Image.fromarray(gradient(500, 560, np.uint16)), "PNG"),
        "float.tif": encoded(Image.fromarray(gradient(-3, 9, np.float32)), "TIFF"),
        "animated.gif": encoded(
            colour.convert("P"), "GIF", save_all=True, append_images=[Image.new("P", SIDES[::-1])]
        ),
    }


@pytest.fixture
def root(tmp_path):
    for name, data in odd_images().items():
        for kind in ("a", "b"):
            path = tmp_path / "data" / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return tmp_path / "data"


@pytest.mark.parametrize("how", ["auto", "full", "percentile", "50:3000"])
def test_every_way_to_a_image_gives_the_same_pixels(root, how):
    source = open_source(str(root))
    source.intensity = how
    index = build_index(source)
    expected = [decode((root / path).read_bytes(), how) for path in index.paths]
    assert expected[index.paths.index("a/exif.jpg")].shape == (SIDES[1], SIDES[0], 3)

    def same(found):
        found = list(found)
        assert len(found) == len(expected)
        for path, one, other in zip(index.paths, found, expected, strict=True):
            assert np.array_equal(one, other), path

    for place in ("none", "memory", "disk"):  # training
        images = check_images(index, hold=PixelCachePlan(place, 1, 2**30, ""), workers=1).images()
        same(images[position] for position in range(len(index)))
    same(read() for read in readers_of(index))  # evaluate, embed
    same(image.read() for image in asked(str(root), "data", how))  # predict a folder
    same(next(asked(str(root / path), "data", how)).read() for path in index.paths)  # and files
    same(_pixels(root / path, how) for path in index.paths)  # load(RUN).predict
    want = Preprocess(24, 24, intensity=how)
    subject = SimpleNamespace(preprocess=want, with_preprocessing=False)
    chosen, _ = _images(ExportSettings(run="none", data=str(root)), subject)
    places = np.unique(np.linspace(0, len(index) - 1, len(chosen)).astype(int))
    for one, place in zip(chosen, places, strict=True):
        assert np.array_equal(one, expected[place])
    assert intensity_rule(ShowSettings(data=str(root), range=how)) == how


def test_encoded_bytes_and_pixels_give_the_same_views():
    data = list(odd_images().values())
    given = {"ids": range(len(data)), "epoch": 1, "seed": 2, "sizes": (16,), "counts": (2,)}
    given |= {"scales": ((0.3, 1.0),)}
    for one, other in zip(
        multicrop(data, **given), multicrop([decode(d) for d in data], **given), strict=True
    ):
        assert torch.equal(one, other)


def test_the_rules_differ_only_where_there_is_something_to_say():
    for name, data in odd_images().items():
        auto, full, percentile = (decode(data, how) for how in ("auto", "full", "percentile"))
        deep = name in ("deep.png", "dark.png", "float.tif")
        assert np.array_equal(auto, percentile) != deep, name
        assert np.array_equal(auto, full) != (name in ("deep.png", "dark.png")), name
        assert min(auto.max(), percentile.max()) > 100, name  # never black


@pytest.mark.parametrize("how", ["percentile", "0:4095"])
def test_a_run_keeps_its_rule_and_every_verb_goes_by_it(root, tmp_path, how):
    given = {"arch": "unfreeze/tiny", "image_size": 24, "epochs": 1, "device": "cpu"}
    run = tmp_path / "run"
    unfreeze.finetune(str(root), out=str(run), weights="none", range=how, val=0, **given)
    model = unfreeze.load(str(run))
    assert model.preprocess.intensity == how
    files = sorted(str(path) for path in root.rglob("*.*"))
    images = [decode(Path(file).read_bytes(), how) for file in files]
    inputs = torch.stack([model.preprocess.apply(image) for image in images])
    with torch.inference_mode():
        chances = model(inputs).softmax(dim=1).max(dim=1).values.tolist()
    for found in (
        model.predict(files),
        unfreeze.predict(str(run), files),
        unfreeze.predict(str(run), str(root)),
    ):
        assert [one.path for one in found] == files
        assert [one.probability for one in found] == pytest.approx(chances, abs=1e-5)
    unfreeze.embed(str(run), str(root), out=str(tmp_path / "f.npz"))
    with np.load(tmp_path / "f.npz") as held:
        features = held["features"]
    other = unfreeze.finetune(
        str(root), out=str(tmp_path / "next"), weights=str(run), val=0, **given
    )
    # what begins from these weights reads images as they were read
    assert unfreeze.load(other.run).preprocess.intensity == how
    unfreeze.embed(str(run), files[0].rsplit("/", 1)[0], out=str(tmp_path / "g.npz"))
    with np.load(tmp_path / "g.npz") as held:
        assert np.allclose(held["features"], features[: len(files) // 2], atol=1e-5)
