"""A view depends on (seed, epoch, image, view) and on nothing else."""

import numpy as np
import pytest
import torch
from scipy import stats

from unfreeze.data.augment.config import preset
from unfreeze.data.augment.multicrop import MultiCropTransform, multicrop
from unfreeze.data.augment.parameters import permutation, uniforms
from unfreeze.data.index.index import build_index
from unfreeze.data.loading.dataset import ImageDataset
from unfreeze.data.loading.loader import Loader
from unfreeze.data.sources.open import open_source

SIZES = {"sizes": (24, 12), "counts": (2, 2), "scales": ((0.14, 1.0), (0.05, 0.14))}


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, 256, (rng.integers(20, 60), rng.integers(20, 60), 3), np.uint8)
        for _ in range(12)
    ]


def cut(images, ids, epoch=3, seed=5, **changed):
    return multicrop(
        [images[i] for i in ids], ids=ids, epoch=epoch, seed=seed, **{**SIZES, **changed}
    )


def test_order_and_company_do_not_matter(images):
    whole = cut(images, list(range(12)))
    order = [7, 2, 11, 0]
    part = cut(images, order)
    for view, other in zip(whole, part, strict=True):
        assert torch.equal(view[order], other)


@pytest.mark.parametrize("change", [{"epoch": 4}, {"seed": 6}])
def test_seed_and_epoch_do_matter(images, change):
    same, other = cut(images, [0, 1]), cut(images, [0, 1], **change)
    assert all(not torch.equal(a, b) for a, b in zip(same, other, strict=True))


def test_views_of_one_image_differ_and_text_names_are_ids_too(images):
    views = multicrop(images[:2], ids=["a.jpg", "b.jpg"], epoch=0, seed=0, **SIZES)
    assert not torch.equal(views[0], views[1])
    again = multicrop(images[1::-1], ids=["b.jpg", "a.jpg"], epoch=0, seed=0, **SIZES)
    assert torch.equal(views[0].flip(0), again[0])
    assert views[0].dtype == torch.float32 and views[0].shape == (2, 3, 24, 24)


def loader(workers=0, rank=0, world=1):
    images = ImageDataset(build_index(open_source("digits")))
    specs = [preset("photo", 12, (0.2, 1.0))] * 2
    return Loader(
        images,
        MultiCropTransform(1, specs),
        batch_size=64,
        seed=1,
        drop_last=True,
        workers=workers,
        rank=rank,
        world=world,
        positions=np.arange(300),
    )


def test_workers_do_not_matter():
    alone, helped = loader().stream(2, 7), loader(workers=2).stream(2, 7)
    for one, other in zip(alone, helped, strict=True):
        assert one.step == other.step and np.array_equal(one.ids, other.ids)
        assert torch.equal(one.target, other.target)
        assert all(torch.equal(a, b) for a, b in zip(one.views, other.views, strict=True))


def test_two_processes_share_the_batch_of_one():
    whole = list(loader().stream(3, 6))
    shares = [list(loader(rank=r, world=2).stream(3, 6)) for r in range(2)]
    for step, batch in enumerate(whole):
        halves = [shares[r][step] for r in range(2)]
        assert all(len(half.ids) == 32 for half in halves)
        assert np.array_equal(batch.ids, np.concatenate([half.ids for half in halves]))
        for v in range(2):
            assert torch.equal(batch.views[v], torch.cat([half.views[v] for half in halves]))


def test_an_epoch_meets_every_image_at_most_once_and_starts_anywhere():
    batches = list(loader().stream(8, 12))  # of the third epoch
    seen = np.concatenate([batch.ids for batch in batches])
    assert len(batches) == 4 and len(set(seen.tolist())) == len(seen) == 256
    assert np.array_equal(next(iter(loader().stream(11, 12))).ids, batches[3].ids)
    assert not np.array_equal(next(iter(loader().stream(4, 8))).ids, batches[0].ids)


def test_draws_are_uniform_and_independent():
    draws = uniforms(3, 1, np.arange(4000), 2, 12)
    assert draws.min() >= 0 and draws.max() < 1
    for column in draws.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-4
    correlation = np.corrcoef(draws.T) - np.eye(12)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(4000)
    neighbours = np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]
    assert abs(neighbours) < 4 / np.sqrt(4000)


def test_draws_never_change_between_versions():
    # a run resumed under a newer version must meet the same views: SplitMix64 of a mixed key
    mask = (1 << 64) - 1

    def mix(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    key = mix((7 + golden) & mask)
    for part in (2, 1):
        key = mix(key ^ mix((part + golden) & mask))
    stream = mix(key ^ mix((41 + golden) & mask))
    expected = [(mix((stream + golden * k) & mask) >> 11) * 2.0**-53 for k in (1, 2, 3)]
    assert uniforms(7, 2, [41], 1, 3)[0].tolist() == expected


def test_a_permutation_is_one():
    order = permutation(0, 0, np.arange(1000))
    assert sorted(order.tolist()) == list(range(1000)) and order.tolist() != list(range(1000))
