from dataclasses import replace

import pytest
import torch

from unfreeze.config.finetune import FinetuneSettings
from unfreeze.errors import UsageError
from unfreeze.models.build import build
from unfreeze.models.head import replace_head
from unfreeze.transfer.feature_cache import policy
from unfreeze.transfer.feature_cache.policy import (
    VIEWS,
    CacheCase,
    check_cache_settings,
    decide_cache,
    with_cache_decision,
)
from unfreeze.transfer.freezing.freeze import FreezeSchedule, constant_schedule, select_frozen
from unfreeze.transfer.plan import FinetuneRecipe

FILLED = FinetuneSettings(
    data="x", image_size=16, epochs=30, lr=0.1, weight_decay=0.0, batch_size=4, precision="fp32"
)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = build("unfreeze/tiny")
    return model, replace_head(model, 3)


def case(network, *specs, images=1000, held_out=100):
    model, head = network
    steps = [(first, frozenset(select_frozen(model, spec, head=head))) for first, spec in specs]
    return CacheCase(model, FreezeSchedule(tuple(steps)), head, images=images, held_out=held_out)


def decided(network, *specs, **changed):
    return decide_cache(replace(FILLED, **changed), case(network, *(specs or ((0, "all"),))))


def asked(network, *specs, **changed):
    one = case(network, *specs)
    check_cache_settings(replace(FILLED, **changed), one.network, one.schedule, one.head, 16)


def test_a_frozen_backbone_has_its_features_kept_with_a_few_views(network):
    found = decided(network)
    assert (found.mode, found.views, found.learner) == ("features", VIEWS, "head")
    # 128 numbers of 4 bytes for 4 views of 1,000 images and 100 for validation
    assert "mean (128), 0.5 KiB per image" in found.reasons["cache"]
    assert (
        f"compute {VIEWS} passes instead of 30, which is 7.5 times less" in found.reasons["cache"]
    )
    assert "instead of 30 different ones" in found.reasons["cache_views"]
    assert found.work > 0


def test_one_view_means_no_augmentation_and_is_said(network):
    found = decided(network, cache_views=1)
    chosen = with_cache_decision(FinetuneRecipe(FILLED, None, {}), found)
    assert (found.views, chosen.settings.augment, chosen.settings.cache) == (1, "none", "features")
    assert "no augmentation" in chosen.reasons["augment"]
    plain = decided(network, augment="none", cache_views=7)
    assert plain.views == 1 and "no augmentation" in plain.reasons["cache_views"]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"epochs": VIEWS}, "save no passes"),
        ({"epochs": 1, "augment": "none"}, "save no passes"),
        ({"cache_budget": 0.0001}, "exceed --cache-budget"),
        ({"cache": "off"}, "given"),
    ],
)
def test_auto_keeps_nothing_where_it_gains_nothing_and_says_why(network, changed, says):
    found = decided(network, **changed)
    assert found.mode == "off" and says in found.reasons["cache"]


def test_auto_minds_the_disk(network, monkeypatch):
    monkeypatch.setattr(policy, "free_bytes", lambda: 2**28)
    assert "do not fit on the disk" in decided(network).reasons["cache"]


def test_nothing_frozen_keeps_nothing(network):
    found = decided(network, (0, "none"))
    assert found.mode == "off" and "nothing is frozen" in found.reasons["cache"]
    unused = decided(network, (0, "none"), cache_views=3)
    assert "--cache-views is not used" in unused.reasons["cache"]


def test_a_prefix_is_kept_without_random_views_or_when_asked(network):
    stage = ((0, "stage:2"),)
    kept = decided(network, *stage, augment="none")
    assert (kept.mode, kept.views, kept.learner) == ("activations", 1, None)
    assert "stage2 (64x8x8), 16.0 KiB" in kept.reasons["cache"]
    for changed in ({"cache_views": 3}, {"cache": "activations"}):
        assert decided(network, *stage, **changed).mode == "activations"
    doubt = decided(network, *stage)
    assert (
        doubt.mode == "off"
        and "new random views each epoch are worth more" in doubt.reasons["cache"]
    )
    little = decided(network, (0, "stage:0"), augment="none")
    assert little.mode == "off" and "save too little" in little.reasons["cache"]


def test_of_a_schedule_only_the_epochs_of_the_head_alone_keep_features(network):
    steps = ((0, "all"), (10, "stage:1"), (20, "none"))
    found = decided(network, *steps)
    assert found.mode == "features" and found.learner is None
    assert "4 passes instead of 10" in found.reasons["cache"] and "stage1" not in str(found.reasons)
    both = decided(network, *steps, cache="activations", cache_views=2)
    assert "2 passes instead of 10" in both.reasons["cache"] and "stage1" in both.reasons["cache"]


@pytest.mark.parametrize(
    ("specs", "changed", "says"),
    [
        (((0, "stage:1"),), {"cache": "features"}, "no epoch trains only the head"),
        (((0, "none"),), {"cache": "activations"}, "nothing is frozen"),
        (((0, "all"),), {"cache": "off", "cache_views": 3}, "no effect with --cache off"),
    ],
)
def test_what_cannot_be_is_refused(network, specs, changed, says):
    with pytest.raises(UsageError, match=says) as caught:
        asked(network, *specs, **changed)
    assert caught.value.next_step


def test_a_network_without_a_border_is_trained_the_plain_way_in_words(network, monkeypatch):
    def none(*args):
        raise policy.NoSplitPoint("it draws random numbers")

    monkeypatch.setattr(policy, "find_split_point", none)
    assert decided(network).reasons["cache"] == "it draws random numbers"
    with pytest.raises(UsageError, match="it draws random numbers"):
        asked(network, (0, "all"), cache="features")


def test_the_ratio_counts_passes_and_what_is_left(network):
    one = policy._stored(FILLED, case(network, (0, "all")), _stretch(network, "all", 100), 1)
    assert one.ratio == pytest.approx(100, rel=0.02) and one.work > 0
    half = policy._stored(FILLED, case(network, (0, "all")), _stretch(network, "stage:2", 100), 1)
    assert 1.2 < half.ratio < 5 and half.bytes == 4 * 64 * 64 * (1000 + 100)


def _stretch(network, spec, epochs):
    model, head = network
    frozen = constant_schedule(select_frozen(model, spec, head=head))
    return policy.frozen_phases(model, frozen, epochs, head)[0]
