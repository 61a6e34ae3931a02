"""Remedies are flags with values that apply to the run, in order."""

import shlex

from unfreeze.cli.parser import typed_values
from unfreeze.config.layering import load_settings
from unfreeze.config.pretrain import PretrainSettings
from unfreeze.swav.auto_recipe import plan
from unfreeze.swav.collapse_remedies import remedies
from unfreeze.swav.dataset_stats import DatasetStats


def found(images=1300, side=32, **given):
    made = plan(PretrainSettings(**given), DatasetStats(images, side, "cpu"))
    s = made.settings
    return remedies(s, steps_per_epoch=made.steps_per_epoch, images=images), s


def test_the_order_is_the_references_and_each_is_one_change():
    tries, s = found(images=10_000, side=224, queue_length=256, epsilon=0.05)
    names = [next(iter(remedy.values)) for remedy in tries]
    assert names == [
        "epsilon",
        "freeze_prototypes_niters",
        "base_lr",
        "augment",
        "nmb_crops",
        "nmb_prototypes",
        "queue_length",
    ]
    for remedy in tries:
        assert all(getattr(s, name) != value for name, value in remedy.values.items())


def test_only_what_applies_is_offered():
    names = [next(iter(r.values)) for r in found(epsilon=0.02, queue_length=0)[0]]
    assert "epsilon" not in names and "queue_length" not in names and "nmb_crops" not in names
    assert "temperature" in [next(iter(r.values)) for r in found(temperature=1.0)[0]]


def test_each_remedy_can_be_typed_and_planned():
    tries, s = found(side=224, queue_length=256, base_lr=5.0, optimizer="larc")
    for remedy in tries:
        meant = load_settings(PretrainSettings, typed_values("pretrain", shlex.split(remedy.flags)))
        given = {name: getattr(s, name) for name in vars(s)} | remedy.values
        assert plan(PretrainSettings(**given), DatasetStats(1300, 224, "cpu")).settings
        assert all(getattr(meant, name) == value for name, value in remedy.values.items())


def test_trap_t4_too_many_prototypes_are_named_with_a_number_that_fits():
    tries, _ = found(nmb_prototypes=3000, batch_size=64)
    fewer = next(r.values["nmb_prototypes"] for r in tries if "nmb_prototypes" in r.values)
    assert fewer <= 1300 // 8
