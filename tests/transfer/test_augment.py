import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from unfreeze.data.images.preprocess import Preprocess
from unfreeze.transfer.augment import POLICIES, training_view, view_maker_of

PREPROCESS = Preprocess(32, 32)


def noise(count, side=48):
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (count, 6, 6, 3)).astype(np.uint8)
    return list(np.kron(coarse, np.ones((1, side // 6, side // 6, 1), np.uint8)))


@pytest.mark.parametrize("augment", ["photo", "mono", "digits", *POLICIES])
def test_a_view_follows_from_seed_epoch_and_image_alone(augment):
    images, ids = noise(6), np.arange(6)
    cut = view_maker_of(augment, PREPROCESS, 7)
    torch.manual_seed(1)
    together = cut(images, ids, 3)[0]
    assert together.shape == (6, 32, 32, 3) and together.dtype == torch.uint8
    torch.manual_seed(2)
    state = torch.get_rng_state()
    alone = torch.cat([cut([images[i]], np.array([i]), 3)[0] for i in reversed(range(6))]).flip(0)
    assert torch.equal(together, alone)
    assert torch.equal(state, torch.get_rng_state())  # the caller's generator is left alone
    assert not torch.equal(together, cut(images, ids, 4)[0])
    assert not torch.equal(together, view_maker_of(augment, PREPROCESS, 8)(images, ids, 3)[0])


@pytest.mark.parametrize("augment", POLICIES)
def test_a_policy_is_torchvisions_after_crop_and_flip(augment, monkeypatch):
    images, ids = noise(40), np.arange(40)
    spec = training_view(augment, 32)
    assert (spec.jitter, spec.grey, spec.blur) == (0, 0, 0) and spec.flip == 0.5
    plain = view_maker_of("photo", PREPROCESS, 0)
    plain.spec = spec
    cropped, seen = plain(images, ids, 0)[0], []

    def noting(self, image):
        seen.append(image.clone())
        return image

    changed = view_maker_of(augment, PREPROCESS, 0)(images, ids, 0)[0]
    monkeypatch.setattr(getattr(v2, POLICIES[augment]), "forward", noting)
    untouched = view_maker_of(augment, PREPROCESS, 0)(images, ids, 0)[0]
    assert torch.equal(untouched, cropped)
    assert torch.equal(torch.stack(seen).permute(0, 2, 3, 1), cropped)
    different = (changed != cropped).flatten(1).any(1)
    assert 20 < int(different.sum()) <= 40  # one of the operations is the identity


def test_policies_change_colours_and_shapes_by_many_operations():
    image, ids = noise(1) * 60, np.arange(60)
    cut = view_maker_of("trivialaugment", PREPROCESS, 0)
    cut.crop.spec = training_view("trivialaugment", 32)
    found = cut(image, ids, 0)[0].float().flatten(1)
    assert found.mean(1).std() > 5  # brightness and the like
    assert len({tuple(row.tolist()) for row in found}) == 60
