"""`--fit`: the whole image, the same in training, evaluate, predict, embed and export."""

import json

import numpy as np
import pytest
from PIL import Image

import unfreeze
from unfreeze.cli.main import main
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.exports.standalone import prepare
from unfreeze.transfer.augment import view_maker_of

TINY = {"arch": "unfreeze/tiny", "weights": "none", "device": "cpu", "precision": "fp32"}
TINY |= {"image_size": 32, "batch_size": 8, "val": 0.25}


def strip(draw, mark):
    """3:1 noise whose only mark is at its left or right edge."""
    pixels = draw.integers(90, 130, (32, 96, 3)).astype(np.uint8)
    pixels[8:24, {"left": slice(0, 12), "right": slice(84, 96)}[mark]] = (250, 30, 30)
    return pixels


@pytest.fixture(scope="module")
def strips(tmp_path_factory):
    folder, draw = tmp_path_factory.mktemp("strips"), np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 10)):
        for mark in ("left", "right"):
            (folder / split / mark).mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(strip(draw, mark))
                image.save(folder / split / mark / f"{number:02}.png")
    return str(folder)


# a mirrored image has the other label
LEARNS = {**TINY, "augment": "none", "epochs": 12, "lr": 0.05}


def test_a_mark_at_the_edge_is_learned_by_default_and_lost_by_a_crop(strips, tmp_path):
    found = unfreeze.finetune(strips, out=str(tmp_path / "whole"), **LEARNS)
    assert not [w for w in found.warnings if w.code == "cropped_away"]
    card = json.loads((tmp_path / "whole/model/model.json").read_text())
    assert card["preprocess"]["fit"] == "squash"
    assert unfreeze.evaluate(found.run, strips).accuracy == 1
    cropped = unfreeze.finetune(strips, out=str(tmp_path / "crop"), fit="crop", **LEARNS)
    assert "cropped_away" in {warning.code for warning in cropped.warnings}
    assert unfreeze.evaluate(cropped.run, strips).accuracy < 0.8


@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_every_command_sees_the_same_image(strips, tmp_path, fit):
    run, out = tmp_path / "run", tmp_path / "exported"
    options = {**LEARNS, "epochs": 2}
    unfreeze.finetune(strips, out=str(run), fit=fit, **options)
    model = unfreeze.load(str(run))
    assert model.preprocess.fit == fit
    predicted = unfreeze.predict(str(run), f"{strips}/test")
    by_hand = model.predict([one.path for one in predicted])
    assert [dict(one) for one in predicted] == [dict(one) for one in by_hand]
    right = sum(one.label in one.path for one in predicted)
    assert unfreeze.evaluate(str(run), strips).accuracy == pytest.approx(right / 20)
    unfreeze.export(str(run), to="safetensors", out=str(out))
    how = json.loads((out / "export.json").read_text())["preprocess"]
    for one in predicted[:3]:
        with Image.open(one.path) as image:
            pixels = np.asarray(image.convert("RGB"))
        wanted = model.preprocess.apply(pixels).numpy()
        assert np.allclose(prepare(one.path, how), wanted, atol=1e-5)


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_timm_prepares_an_export_as_we_do(strips, tmp_path, fit):
    import timm

    run, out = tmp_path / "run", tmp_path / "timm"
    options = {**TINY, "arch": "timm/mobilenetv3_small_050", "epochs": 1, "limit": 8}
    unfreeze.finetune(strips, out=str(run), fit=fit, **options)
    unfreeze.export(str(run), to="timm", out=str(out))
    model = timm.create_model(f"local-dir:{out}", pretrained=True)
    how = timm.data.resolve_data_config({}, model=model)
    image = Image.fromarray(strip(np.random.default_rng(5), "left"))
    theirs = timm.data.create_transform(**how)(image).numpy()
    ours = unfreeze.load(str(run)).preprocess.apply(np.asarray(image)).numpy()
    assert theirs.shape == ours.shape and np.abs(theirs - ours).max() < 0.05


def test_padding_keeps_the_aspect_ratio_between_bars_in_the_mean_colour():
    how = Preprocess(30, 30, fit="pad", mean=(0.5, 0.25, 0.75))
    image = np.full((20, 60, 3), 255, np.uint8)
    pixels = how.pixels(image)
    assert pixels.shape == (30, 30, 3)
    assert (pixels[10:20] == 255).all()  # 10 rows of 30, as 20 of 60
    for bar in (pixels[:10], pixels[20:]):
        assert (bar == (128, 64, 191)).all()
    assert np.abs(how.apply(image)[:, 0, 0].numpy()).max() < 0.02  # nothing, to the network


@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_training_crops_are_cut_from_the_whole_square(fit):
    """Over many epochs both ends of a long image are seen; the largest crop has all of it."""
    image = np.zeros((40, 160, 3), np.uint8)
    image[:, :20], image[:, 140:] = (255, 0, 0), (0, 0, 255)
    how = Preprocess(32, 32, fit=fit, mean=(0.0, 0.0, 0.0))
    make = view_maker_of("digits", how, seed=0)
    views = np.stack([make([image], np.array([0]), epoch)[0][0].numpy() for epoch in range(40)])
    both = [(view[..., 0] > 150).any() and (view[..., 2] > 150).any() for view in views]
    assert any(both)
    cropped = view_maker_of("digits", Preprocess(32, 32), seed=0)
    views = [cropped([image], np.array([0]), epoch)[0][0].numpy() for epoch in range(40)]
    assert not any((v[..., 0] > 150).any() and (v[..., 2] > 150).any() for v in views)


def test_a_square_image_is_the_same_whatever_the_fit():
    image = np.random.default_rng(0).integers(0, 255, (48, 48, 3)).astype(np.uint8)
    plain = Preprocess(48, 48).pixels(image)
    for fit in ("squash", "pad"):
        how = Preprocess(48, 48, fit=fit)
        assert np.array_equal(how.pixels(image), plain) and how.whole(image) is image


def test_what_does_not_fit_is_refused(strips, tmp_path, capsys):
    assert main(["finetune", strips, "--fit", "tile", "--out", str(tmp_path / "r")]) == 2
    assert "--fit tile is for segmentation" in capsys.readouterr().err
    (tmp_path / "t.csv").write_text("text,label\ngood,a\nbad,b\n")
    words = ["--fit", "pad", "--arch", "hf/none", "--out", str(tmp_path / "r")]
    assert main(["finetune", str(tmp_path / "t.csv"), *words]) == 2
    assert "Texts have no --fit" in capsys.readouterr().err
