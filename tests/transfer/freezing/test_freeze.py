import copy

import pytest
import torch
from torch import nn

from unfreeze.errors import UsageError
from unfreeze.models.build import build
from unfreeze.models.head import replace_head
from unfreeze.models.stages import stages
from unfreeze.transfer.freezing.freeze import (
    FreezeSchedule,
    apply_freeze,
    constant_schedule,
    frozen_entries,
    hash_tensors,
    select_frozen,
)


def made(arch: str, device: str = "cpu") -> tuple[nn.Module, list[str]]:
    torch.manual_seed(0)
    with torch.device(device):
        model = build(arch)
        return model, replace_head(model, 3)


@pytest.mark.parametrize("arch", ["unfreeze/tiny", "resnet18", "squeezenet1_1", "vgg11_bn"])
def test_all_leaves_exactly_the_new_head(arch):
    model, head = made(arch, "meta")
    frozen = select_frozen(model, "all", head=head)
    assert {n for n, _ in model.named_parameters()} - frozen == set(head)


def test_a_module_name_does_for_the_head():
    model, head = made("unfreeze/tiny")
    assert select_frozen(model, "all", head="head") == select_frozen(model, "all", head=head)


def test_stage_freezes_the_stem_and_the_first_stages():
    model, head = made("resnet18")
    frozen = select_frozen(model, "stage:2", head=head)
    assert {n.split(".")[0] for n in frozen} == {"conv1", "bn1", "layer1", "layer2"}
    assert select_frozen(model, "stage:0", head=head) == {
        n for n, _ in model.named_parameters() if stages(model)[0].owns(n)
    }


@pytest.mark.parametrize("spec", ["stage:5", "stage:x", "stage:-1", "regex:nowhere", "regex:("])
def test_what_is_not_there_is_refused_with_what_there_is(spec):
    model, head = made("resnet18")
    with pytest.raises(UsageError) as caught:
        select_frozen(model, spec, head=head)
    assert spec[:5] in caught.value.sentence
    if spec == "stage:5":
        assert "4 layer4" in caught.value.next_step
    if spec == "regex:nowhere":
        assert "layer1" in caught.value.next_step


def test_a_pattern_may_not_freeze_the_new_head():
    model, head = made("resnet18")
    with pytest.raises(UsageError, match="new head"):
        select_frozen(model, "regex:.", head=head)
    with pytest.raises(UsageError, match="Invalid value for --freeze: 'half'"):
        select_frozen(model, "half", head=head)


def test_pinned_modules_stay_in_eval_whoever_calls_train():
    model, head = made("resnet18")
    pinned = apply_freeze(model, select_frozen(model, "stage:1", head=head))
    for call in (
        lambda: model.train(),
        lambda: model.layer1.train(True),
        lambda: model.layer1[0].bn1.train(),
        lambda: [m.train() for m in model.modules()],
    ):
        call()
        assert not any(model.get_submodule(n).training for n in pinned)
    model.train()
    assert model.layer2.training and model.fc.training and model.training
    assert "layer1.0.bn1" in pinned and "bn1" in pinned and "layer2" not in pinned


def test_no_key_is_left_behind_and_copies_stay_pinned():
    model, head = made("unfreeze/tiny")
    before = list(model.state_dict())
    apply_freeze(model, select_frozen(model, "all", head=head))
    assert list(model.state_dict()) == before
    twin = copy.deepcopy(model)
    twin.train()
    assert not twin.stage1.training and twin.head.training
    twin.stage1.train()
    assert not twin.stage1.bn1.training


def test_dropout_between_frozen_layers_is_silent_and_before_the_head_is_not():
    model, head = made("vgg11_bn", "meta")
    pinned = apply_freeze(model, select_frozen(model, "all", head=head))
    assert "classifier.2" in pinned and "classifier.5" not in pinned
    squeeze, head = made("squeezenet1_1", "meta")
    apply_freeze(squeeze, select_frozen(squeeze, "all", head=head))
    squeeze.train()
    assert squeeze.classifier[0].training and not squeeze.features.training


def test_batch_norm_alone_can_be_frozen():
    model, head = made("resnet18")
    pinned = apply_freeze(model, select_frozen(model, "regex:bn|downsample.1", head=head))
    model.train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(m.training for m in norms)
    assert not any(isinstance(model.get_submodule(n), nn.Conv2d) for n in pinned)
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert model.conv1.weight.grad is not None


def test_statistics_without_parameters_belong_to_the_layer_before():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 2, 1))
    assert apply_freeze(model, {"0.weight", "0.bias"}) == ["0", "1"]
    assert frozen_entries(model, {"0.weight", "0.bias"}) == {
        "0.weight", "0.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked",
    }  # fmt: skip


def test_freezing_less_thaws():
    model, head = made("unfreeze/tiny")
    apply_freeze(model, select_frozen(model, "all", head=head))
    apply_freeze(model, select_frozen(model, "stage:0", head=head))
    model.train()
    assert model.stage1.training and not model.stem.training
    assert model.stage1.conv1.weight.requires_grad and not model.stem[0].weight.requires_grad
    assert apply_freeze(model, set()) == []
    model.train()
    assert all(m.training for m in model.modules())


def test_a_schedule_says_what_is_frozen_when_and_what_always():
    schedule = FreezeSchedule(((0, frozenset("abc")), (5, frozenset("ab")), (9, frozenset("bc"))))
    assert schedule.at(0) == schedule.at(4) == frozenset("abc")
    assert schedule.at(5) == frozenset("ab") and schedule.at(30) == frozenset("bc")
    assert schedule.always == frozenset("b")
    assert constant_schedule({"x"}).at(7) == constant_schedule({"x"}).always == {"x"}


def test_a_fingerprint_sees_every_bit_shape_and_absence():
    tensors = {"a": torch.zeros(4), "n": torch.tensor(3), "h": torch.ones(2, 2).bfloat16()}
    before = hash_tensors(tensors, tensors)
    assert before == hash_tensors({k: v.clone() for k, v in tensors.items()}, tensors)
    for name, changed in (
        ("a", torch.tensor([0.0, 0.0, 0.0, -0.0])),
        ("a", torch.zeros(2, 2)),
        ("n", torch.tensor(4)),
    ):
        assert hash_tensors({**tensors, name: changed}, tensors)[name] != before[name]
    assert hash_tensors({}, ["a"]) == {"a": "absent"}
    kernel = torch.randn(2, 3, 4, 4)
    last = kernel.contiguous(memory_format=torch.channels_last)
    assert hash_tensors({"k": kernel}, ["k"]) == hash_tensors({"k": last}, ["k"])
