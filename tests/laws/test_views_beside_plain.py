"""Views are distributed as those of the plain pipeline of Pillow and torchvision.

Thousands of draws of each from two photographs: what colours and sharpness they end up with. Each
figure agrees to three standard errors of the difference, or to 2 %.
"""

import importlib.util
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images

import unfreeze

SPEC = importlib.util.spec_from_file_location(
    "plain", Path(__file__).parents[2] / "benchmarks/plain.py"
)
PLAIN = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(PLAIN)
MEAN = torch.tensor(PLAIN.MEAN)[:, None, None]
STD = torch.tensor(PLAIN.STD)[:, None, None]


def figures(views):
    """[N, figures] of normalised views: colour, spread, sharpness, and rates that can be seen."""
    pixels = (views * STD + MEAN).clamp(0, 1)
    across = (pixels[..., 1:] - pixels[..., :-1]).abs().mean(dim=(1, 2, 3))
    down = (pixels[..., 1:, :] - pixels[..., :-1, :]).abs().mean(dim=(1, 2, 3))
    inner = pixels[..., 1:-1, 1:-1]
    around = pixels[..., 2:, 1:-1] + pixels[..., :-2, 1:-1]
    around = around + pixels[..., 1:-1, 2:] + pixels[..., 1:-1, :-2]
    spread = pixels.amax(dim=1) - pixels.amin(dim=1)
    columns = {
        "red": pixels[:, 0].mean(dim=(1, 2)),
        "green": pixels[:, 1].mean(dim=(1, 2)),
        "blue": pixels[:, 2].mean(dim=(1, 2)),
        "deviation": pixels.std(dim=(1, 2, 3)),
        "across": across,
        "down": down,
        "laplacian": (4 * inner - around).abs().mean(dim=(1, 2, 3)),
        "colour": spread.mean(dim=(1, 2)),
        "grey": (spread.amax(dim=(1, 2)) < 0.01).float(),
        "dark": (pixels < 0.02).float().mean(dim=(1, 2, 3)),
        "bright": (pixels > 0.98).float().mean(dim=(1, 2, 3)),
    }
    return list(columns), torch.stack(list(columns.values()), dim=1).numpy()


@pytest.mark.slow
@pytest.mark.parametrize(
    "size, scale, augment",
    [(112, (0.14, 1.0), "photo"), (48, (0.05, 0.14), "photo"), (32, (0.2, 1.0), "small")],
)
def test_colours_and_sharpness_are_those_of_the_plain_pipeline(size, scale, augment):
    random.seed(0)
    torch.manual_seed(0)
    images = [np.ascontiguousarray(image) for image in load_sample_images().images]
    how = {"sizes": (size,), "counts": (1,), "scales": (scale,)}
    small = augment == "small"
    plain = PLAIN.Plain(**how, strength=0.5 if small else 1.0, blur=not small)
    turns = 1_200
    theirs = torch.cat([plain(images)[0] for _ in range(turns)])
    ours = torch.cat(
        [
            unfreeze.swav.multicrop(images, ids=[0, 1], epoch=turn, seed=0, augment=augment, **how)[
                0
            ]
            for turn in range(turns)
        ]
    )
    names, one = figures(ours)
    _, other = figures(theirs)
    for name, a, b in zip(names, one.T, other.T, strict=True):
        error = np.sqrt((a.var() + b.var()) / len(a))
        apart = abs(a.mean() - b.mean())
        assert apart <= max(3 * error, 0.02 * abs(b.mean())), (name, a.mean(), b.mean(), error)


def test_normalised_on_the_cpu_equals_the_formula_to_the_bit():
    import importlib

    module = importlib.import_module("unfreeze.data.augment.multicrop")
    views = torch.randint(0, 256, (3, 20, 24, 3), dtype=torch.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    expected = (views.float() - torch.tensor(mean) * 255) * (1 / (torch.tensor(std) * 255))
    found = module.normalize(views, mean, std)
    assert torch.equal(found, expected.permute(0, 3, 1, 2))
    assert found.is_contiguous(memory_format=torch.channels_last)
