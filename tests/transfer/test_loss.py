import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from unfreeze.transfer.loss import TrainingConfig, TrainingLoss, class_weights, seed_step

CPU = torch.device("cpu")
LABELS = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2])


def objective(**options):
    return TrainingLoss(TrainingConfig(epochs=1, lr=0.1, classes=3, **options), CPU)


def logits(count=8):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["none", "balanced", "sqrt"])
def test_a_batch_has_torchs_loss_and_so_have_its_parts(smoothing, kind):
    weights = class_weights(LABELS, 3, kind)
    made = objective(label_smoothing=smoothing, class_weights=weights)
    weight = torch.tensor(weights).double() if weights else None
    expected = functional.cross_entropy(logits(), LABELS, weight=weight, label_smoothing=smoothing)
    total = made.total(LABELS)
    assert torch.allclose(made.loss(logits(), LABELS, total), expected, rtol=1e-6)
    parts = [
        made.loss(some, labels, total)
        for some, labels in zip(logits().split(3), LABELS.split(3), strict=True)
    ]
    assert torch.allclose(sum(parts), expected, rtol=1e-6)


def test_class_weights_are_scikit_learns_and_average_to_one():
    found = class_weights(LABELS.numpy(), 3, "balanced")
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS.numpy())
    assert np.allclose(found, expected)
    for kind in ("balanced", "sqrt"):
        each = torch.tensor(class_weights(LABELS, 3, kind))[LABELS]
        assert float(each.mean()) == pytest.approx(1)
    root = class_weights(LABELS, 3, "sqrt")
    assert root[2] / root[0] == pytest.approx((5 / 1) ** 0.5)
    assert class_weights(LABELS, 3, "none") == ()


@pytest.mark.parametrize("options", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1}])
def test_mixed_labels_are_the_shares_of_the_images_and_follow_from_the_step(options):
    # an image of class c is c everywhere: the share of a value is the share of its label
    images = LABELS[:, None, None, None].float().expand(-1, 3, 16, 16).clone()
    made, seen = objective(**options), []
    for step in range(20):
        seed_step(3, step, CPU)
        mixed, targets = made.mixed(images, LABELS)
        assert torch.allclose(targets.sum(1), torch.ones(8))
        means = targets @ torch.arange(3.0)
        assert torch.allclose(mixed.mean((1, 2, 3)), means, atol=1e-5)
        # the images of a batch are paired: all together count what they did
        assert torch.allclose(targets.sum(0), torch.bincount(LABELS).float(), atol=1e-5)
        seed_step(3, step, CPU)
        again, same = made.mixed(images, LABELS)
        assert torch.equal(mixed, again) and torch.equal(targets, same)
        seen.append(float(means[5]))
    assert len(set(seen)) > 10
    assert torch.equal(images[:, 0, 0, 0], LABELS.float())  # ours to read, not to write


def test_both_mixers_take_turns():
    images = LABELS[:, None, None, None].float().expand(-1, 3, 16, 16).clone()
    made, whole = objective(mixup=1.0, cutmix=1.0), 0
    for step in range(40):
        seed_step(0, step, CPU)
        mixed, _ = made.mixed(images, LABELS)
        whole += all(len(one.unique()) == 1 for one in mixed)  # no edges: blended everywhere
    assert 8 < whole < 32


def test_nothing_asked_nothing_mixed():
    images = torch.rand(8, 3, 4, 4)
    inputs, targets = objective().mixed(images, LABELS)
    assert inputs is images and targets is LABELS
