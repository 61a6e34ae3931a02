"""Runs with the least training that there is, of a few architectures."""

import numpy as np
import pytest
import torch

from unfreeze.checkpoints.model_file import ModelCard, save_model
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.models.build import build
from unfreeze.models.head import remove_head, replace_head
from unfreeze.models.stem import apply_small_stem

CLASSES = ("cat", "dog", "owl")


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """`untrained(arch, stem=..., head=True)`: a model folder, made once; all entries are random."""
    made = {}

    def make(arch, *, stem="imagenet", head=True, size=32, resize=36, how=None, **card):
        key = (arch, stem, head, size, resize, str(how), str(card))
        if key not in made:
            torch.manual_seed(0)
            network = build(arch)
            if stem == "small":
                apply_small_stem(network)
            if head:
                replace_head(network, len(CLASSES))
            else:
                remove_head(network)
            stir(network)
            made[key] = tmp_path_factory.mktemp("run") / "swav"
            about = {"kind": "classifier", "head": "replace", "classes": CLASSES}
            if not head:
                about = {"kind": "backbone"}
            colours = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}
            wants = Preprocess(size, resize, **colours, **(how or {}))
            provenance = {"verb": "finetune", "seed": 0, "licence": "For these tests alone."}
            about |= {"arch": arch, "stem": stem, "provenance": provenance, **card}
            full = ModelCard(preprocess=wants.as_dict(), **about)
            save_model(made[key] / "model", network.state_dict(), full)
        return made[key]

    return make


def stir(network):
    """Statistics of batch norms as after training: a network that ignores them would show."""
    draw = torch.Generator().manual_seed(1)
    for name, value in network.state_dict().items():
        if name.endswith("running_mean"):
            value.copy_(torch.randn(value.shape, generator=draw) * 0.1)
        elif name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=draw) + 0.5)
        elif name.endswith("num_batches_tracked"):
            value.fill_(7)


@pytest.fixture
def photo(tmp_path):
    """An image that is neither square nor of any network's size."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(pixels).resize((75, 50), Image.Resampling.BICUBIC).save(path)
    return path
