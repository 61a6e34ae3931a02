"""Small images in memory and a trainer over them."""

from functools import partial

import numpy as np
import pytest
import torch

from unfreeze.data.augment.multicrop import normalize
from unfreeze.data.images.preprocess import Preprocess
from unfreeze.data.index.index import build_index
from unfreeze.data.loading.dataset import ImageDataset
from unfreeze.data.loading.loader import Loader
from unfreeze.data.sources.builtin import ArraySource
from unfreeze.models.build import build
from unfreeze.models.head import replace_head
from unfreeze.runtime.run_folder import RunFolder
from unfreeze.transfer.augment import view_maker_of
from unfreeze.transfer.freezing.freeze import constant_schedule, select_frozen
from unfreeze.transfer.loss import TrainingConfig
from unfreeze.transfer.training_run import FinetuneTrainer, Run
from unfreeze.transfer.validation import ValidationSet

SIDE = 8
PLAIN = Preprocess(SIDE, SIDE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def noisy(count: int, seed: int) -> ImageDataset:
    """ImageDataset of three classes that differ in colour, hard enough to be got wrong."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    pixels = draw.integers(0, 256, (count, SIDE, SIDE, 3))
    pixels[np.arange(count), :, :, labels] += 40
    source = ArraySource(
        "toy", pixels.clip(0, 255).astype(np.uint8), [str(n) for n in labels], ["train"] * count
    )
    return ImageDataset(build_index(source))


@pytest.fixture
def make_trainer(tmp_path):
    """`make(name, ...)`: a trainer of unfreeze/tiny over 26 images, with 18 held out."""

    def make(name="run", *, validate=True, batch_size=8, count=26, freeze=None, **fit):
        torch.manual_seed(0)
        network = build("unfreeze/tiny")
        head = replace_head(network, 3)
        prepare = partial(normalize, mean=PLAIN.mean, std=PLAIN.std)
        loader = Loader(
            noisy(count, 0),
            view_maker_of("digits", PLAIN, 0),
            batch_size=batch_size,
            seed=0,
            drop_last=False,
        )
        holdout = ValidationSet(noisy(18, 1), PLAIN, prepare=prepare, budget=2**20)
        frozen = select_frozen(network, "none", head=head)
        return FinetuneTrainer(
            network,
            loader,
            TrainingConfig(**{"epochs": 4, "lr": 0.05, **fit}),
            Run(RunFolder.create(tmp_path / name, resume="yes"), content={"kind": "finetune"}),
            prepare=prepare,
            validate=partial(holdout.record, network) if validate else None,
            freeze=freeze or constant_schedule(frozen),
        )

    return make
