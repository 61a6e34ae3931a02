"""Losses of segmentation: references, ignored pixels, and images that are alone in a batch."""

import pytest
import segmentation_models_pytorch as smp
import torch
from torch.nn import functional

from unfreeze.errors import UsageError
from unfreeze.tasks.segmentation.losses import PARTS, loss_of_images
from unfreeze.tasks.segmentation.masks import IGNORED


@pytest.fixture
def batch():
    torch.manual_seed(0)
    logits = torch.randn(3, 4, 8, 10, requires_grad=True)
    targets = torch.randint(0, 4, (3, 8, 10))
    targets[0, :2] = IGNORED
    return logits, targets


def test_cross_entropy_is_torchs_mean_of_each_image(batch):
    logits, targets = batch
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0])
    for weight in (None, weights):
        ours = loss_of_images("ce", weight)(logits, targets)
        for image in range(3):
            wanted = functional.cross_entropy(
                logits[image : image + 1],
                targets[image : image + 1],
                weight=weight,
                ignore_index=IGNORED,
            )
            assert ours[image].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_the_others_are_those_of_the_library(batch):
    logits, targets = batch
    for name, kind in (("dice", smp.losses.DiceLoss), ("focal", smp.losses.FocalLoss)):
        ours = loss_of_images(name)(logits, targets)
        for image in range(3):
            some = slice(image, image + 1)
            wanted = kind("multiclass", ignore_index=IGNORED)(logits[some], targets[some])
            assert ours[image].item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("name", [*PARTS, "ce+dice", "ce+focal+lovasz"])
def test_ignored_pixels_have_no_influence(batch, name):
    logits, targets = batch
    loss = loss_of_images(name)
    gradient = torch.autograd.grad(loss(logits, targets).sum(), logits)[0]
    assert (gradient[0, :, :2] == 0).all() and (gradient[0, :, 2:] != 0).any()
    changed = logits.detach().clone()
    changed[0, :, :2] = torch.randn(4, 2, 10) * 9
    torch.testing.assert_close(loss(changed, targets), loss(logits.detach(), targets))


@pytest.mark.parametrize("name", [*PARTS, "ce+dice"])
def test_an_image_of_ignored_pixels_alone_costs_nothing(batch, name):
    logits, targets = batch
    targets[1] = IGNORED
    losses = loss_of_images(name)(logits, targets)
    assert losses[1] == 0 and losses.isfinite().all()
    gradient = torch.autograd.grad(losses.sum(), logits)[0]
    assert gradient.isfinite().all() and (gradient[1] == 0).all()


@pytest.mark.parametrize("name", [*PARTS, "ce+dice"])
def test_an_image_does_not_depend_on_the_others(batch, name):
    logits, targets = batch
    loss = loss_of_images(name)
    alone = torch.cat([loss(logits[i : i + 1], targets[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(loss(logits, targets), alone)


def test_a_sum_is_the_sum_and_unknown_names_are_refused(batch):
    total = loss_of_images("ce+dice")(*batch)
    torch.testing.assert_close(total, loss_of_images("ce")(*batch) + loss_of_images("dice")(*batch))
    for name in ("dise", "ce+ce", "", "ce+"):
        with pytest.raises(UsageError, match="Invalid value for --loss"):
            loss_of_images(name)
