"""Where the reference's command line fails on people's own images, and what the plan does."""

import math

import pytest
import torch

from unfreeze.config.pretrain import PretrainSettings
from unfreeze.errors import UsageError
from unfreeze.swav.auto_recipe import plan
from unfreeze.swav.cost import plan_warnings
from unfreeze.swav.dataset_stats import DatasetStats
from unfreeze.swav.loss import swapped_prediction_loss
from unfreeze.swav.presets import PUBLISHED
from unfreeze.swav.sinkhorn import sinkhorn


def planned(images, device="cuda", **given):
    facts = DatasetStats(images, 300, device, 2048)
    made = plan(PretrainSettings(**given), facts)
    return made, plan_warnings(made, facts)


# ------------------------------------------------- 1,300 images of 15 classes, worse than nothing


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_1300_images_get_values_of_their_own(device):
    made, said = planned(1300, device)
    s = made.settings
    assert s.freeze_prototypes_niters == made.steps_per_epoch  # one epoch, not 250
    assert s.queue_length <= 1300 / 4  # not three times the images
    assert s.nmb_prototypes <= 1300 / 8  # not more than images
    assert s.base_lr == pytest.approx(2e-3 * (s.batch_size / 256) ** 0.5, rel=0.01)
    assert made.steps >= 4_000 and said == ()


def test_1300_images_with_the_published_command_are_doubted_value_by_value():
    made, said = planned(1300, recipe="swav-400ep-bs256", batch_size=64)
    assert made.settings.freeze_prototypes_niters == 5005  # what was asked for stays
    told = "\n".join(said)
    assert "--freeze-prototypes-niters 5,005 is 250 epochs of 400" in told
    assert "--nmb-prototypes 3,000 exceeds the 1,300 images" in told
    assert "--queue-length 3,840 is 3.0 times the number of images" in told
    assert "--base-lr 0.6 is 4 times the usual 0.15" in told and len(said) == 4


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_recipes_have_no_doubts_on_imagenet(name):
    assert planned(1_281_167, recipe=name)[1] == ()


@pytest.mark.parametrize("images", [4, 100, 1300, 20_000, 1_281_167])
@pytest.mark.parametrize("batch", [None, 4])
def test_the_auto_plan_never_doubts_itself(images, batch):
    assert planned(images, batch_size=batch)[1] == ()


def test_a_batch_larger_than_the_images_trains_nothing_and_is_refused():
    # elsewhere such epochs end after no step, with a loss of 0 and a checkpoint of noise
    with pytest.raises(UsageError, match="--batch-size 33 cannot be divided equally"):
        planned(1300, batch_size=33, accumulate=2)
    with pytest.raises(Exception, match="do not fill one batch of 2048"):
        planned(1300, batch_size=2048)


# ----------------------------------------------------------- how many prototypes for 12-20 classes


@pytest.mark.parametrize("images", [520, 1300, 5000, 20_000, 152_397])
@pytest.mark.parametrize("classes", [12, 20])
def test_12_to_20_classes_get_several_prototypes_each_whatever_their_number(images, classes):
    made, _ = planned(images)
    K = made.settings.nmb_prototypes
    assert 3 * classes <= K <= images / 8
    assert "images" in made.reasons["nmb_prototypes"]


def test_about_ten_prototypes_a_class_can_be_asked_for():
    # what SwAV's authors advise: an order of magnitude above the number of classes
    made, said = planned(5_000, nmb_prototypes=150)
    s = made.settings
    assert s.nmb_prototypes == 150 and "nmb_prototypes" not in made.reasons
    assert s.batch_size + s.queue_length >= 150 and said == ()


def test_prototypes_grow_with_the_images_to_the_published_number():
    counts = [planned(n)[0].settings.nmb_prototypes for n in (500, 5_000, 50_000, 1_281_167)]
    assert counts == sorted(counts) and counts[-1] == pytest.approx(3000, rel=0.01)


# --------------------------------------------------------------------------- a batch of 16, or of 8


@pytest.mark.parametrize("batch", [8, 16])
@pytest.mark.parametrize("images", [200, 1300, 100_000])
def test_a_small_batch_and_its_queue_can_fill_every_prototype(batch, images):
    made, said = planned(images, batch_size=batch)
    s = made.settings
    assert s.batch_size == batch
    assert max(4 * batch, batch + s.queue_length) >= s.nmb_prototypes
    assert s.queue_length % batch == 0 and said == ()


def test_more_prototypes_than_a_small_batch_can_fill_are_doubted():
    _, said = planned(100_000, batch_size=16, nmb_prototypes=1500)
    assert len(said) == 1
    assert "A batch of 16 and 240 queued features cannot fill --nmb-prototypes 1,500" in said[0]


def test_why_the_codes_of_few_images_leave_prototypes_empty():
    # equal shares of 1,500 prototypes over 16 images: none gets a hundredth of an image
    torch.manual_seed(0)
    scores = torch.nn.functional.normalize(torch.randn(16, 128)) @ torch.randn(128, 1500) / 12
    taken = set(sinkhorn(scores).argmax(dim=1).tolist())
    assert len(taken) <= 16 < 1500


# ------------------------------------------------------------- how to tell that pretraining works


@pytest.mark.parametrize("K", [64, 504, 3000])
@pytest.mark.parametrize("temperature", [0.1, 0.2])
def test_the_plan_says_where_an_untrained_loss_is(K, temperature):
    torch.manual_seed(0)
    prototypes = torch.nn.functional.normalize(torch.randn(K, 128))
    scores = [torch.nn.functional.normalize(torch.randn(256, 128)) @ prototypes.T for _ in "ab"]
    codes = [sinkhorn(one) for one in scores]
    loss = swapped_prediction_loss(scores, codes, (0, 1), temperature=temperature)
    made, _ = planned(100_000, nmb_prototypes=K, temperature=temperature)
    assert loss.item() == pytest.approx(made.loss_at_start, abs=0.03)


def test_and_where_a_network_that_tells_nothing_apart_is():
    made, _ = planned(100_000, nmb_prototypes=64)
    same = torch.full((256, 64), 0.3)
    codes = [sinkhorn(same), sinkhorn(same)]
    loss = swapped_prediction_loss([same, same], codes, (0, 1)).item()
    assert loss == pytest.approx(made.loss_collapsed, abs=1e-5) == math.log(64)
    # whatever the prototypes, equal features never get below it
    uneven = torch.randn(64, generator=torch.Generator().manual_seed(0)).expand(256, 64) / 12
    codes = [sinkhorn(uneven), sinkhorn(uneven)]
    assert swapped_prediction_loss([uneven, uneven], codes, (0, 1)).item() > math.log(64)
