"""The first layer of a run from scratch: whitening filters for small colour images."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from unfreeze.cli.main import main


@pytest.fixture
def colours(tmp_path):
    """48 smooth colour images of 32 pixels."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(48):
        coarse = rng.integers(0, 255, (9, 9, 3)).astype(np.uint8)
        image = Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC)
        noisy = np.asarray(image).astype(int) + rng.integers(-9, 9, (32, 32, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    return folder


def first_layer(data, out, *words):
    options = ["--epochs", "0", "--device", "cpu", "--batch-size", "16", "--overwrite"]
    assert main(["pretrain", str(data), "--out", str(out), *options, *words]) == 0
    return load_file(out / "model" / "model.safetensors")["stem.0.weight"]


def test_filters_whiten_the_images_of_the_run(colours, tmp_path):
    weight = first_layer(colours, tmp_path / "run")
    assert torch.equal(weight[:27], -weight[27:54])
    assert "54 of 64 filters whiten" in (tmp_path / "run/config.toml").read_text()
    again = first_layer(colours, tmp_path / "again")
    assert torch.equal(weight, again)
    other = first_layer(colours, tmp_path / "other", "--seed", "1")
    assert not torch.equal(weight[54:], other[54:])


def test_a_random_layer_where_it_is_asked_for_or_nothing_is_gained(colours, tmp_path):
    weight = first_layer(colours, tmp_path / "run", "--stem-init", "random")
    assert not torch.equal(weight[:27], -weight[27:54])
    weight = first_layer("digits", tmp_path / "digits", "--limit", "64")
    assert not torch.equal(weight[:16], -weight[16:32])
    assert "the images are grey" in (tmp_path / "digits/config.toml").read_text()


def test_crops_are_smaller_than_the_images_that_are_evaluated(colours, tmp_path, capsys):
    assert main(["pretrain", str(colours), "--dry-run", "--json", "--batch-size", "16"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert settings["size_crops"] == [24] and settings["image_size"] == 32
    first_layer(colours, tmp_path / "run")
    capsys.readouterr()
    card = json.loads((tmp_path / "run/model/model.json").read_text())
    assert card["preprocess"]["image_size"] == 32
    words = ["pretrain", str(colours), "--dry-run", "--json", "--batch-size", "16"]
    assert main([*words, "--image-size", "32"]) == 0  # given: the large crop
    assert json.loads(capsys.readouterr().out)["settings"]["size_crops"] == [32]
