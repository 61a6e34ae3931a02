import math

import pytest
import torch
import torchvision
from torch import nn

from unfreeze.errors import UsageError
from unfreeze.models.build import build
from unfreeze.models.head import find_head, head_layers, remove_head, replace_head
from unfreeze.models.shape_trace import input_size

HEADS = {
    "alexnet": "classifier.6",
    "vgg11_bn": "classifier.6",
    "googlenet": "fc",
    "inception_v3": "fc",
    "squeezenet1_1": "classifier.1",
    "densenet121": "classifier",
    "mobilenet_v3_small": "classifier.3",
    "convnext_tiny": "classifier.2",
    "vit_b_32": "heads.head",
    "swin_t": "head",
    "maxvit_t": "classifier.5",
    "timm/resnetv2_50": "head.fc",
    "unfreeze/tiny": "head",
}


def prove(model):
    """Swapped, then taken off; by a forward pass of our own."""
    heads = head_layers(model)
    kinds = [type(model.get_submodule(name)) for name in heads]
    rest = {name for name in model.state_dict() if not name.startswith(heads)}
    side = input_size(model)
    device = next(model.parameters()).device
    image = torch.zeros(1, 3, side, side, device=device)
    new = replace_head(model, 7)
    model.eval()
    scores = model(image)
    scores.sum().backward()
    assert scores.shape == (1, 7)
    assert all(model.get_parameter(name).grad is not None for name in new)
    assert set(model.state_dict()) == rest | set(new)
    assert [type(model.get_submodule(name)) for name in heads] == [
        nn.Conv2d if issubclass(kind, nn.Conv2d) else nn.Linear for kind in kinds
    ]
    width = remove_head(model)
    assert model(image).shape == (1, width)
    assert set(model.state_dict()) == rest


def test_one_call_replaces_the_head_of_every_family(sampled, meta):
    prove(meta(sampled))


@pytest.mark.slow
@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_every_torchvision_model(name, meta, monkeypatch):
    # RegNets are built on the CPU first: untouched memory costs nothing, random numbers would.
    for draw in ("kaiming_uniform_", "kaiming_normal_", "normal_", "uniform_", "trunc_normal_"):
        monkeypatch.setattr(nn.init, draw, lambda tensor, *_, **__: tensor)
    prove(meta(f"torchvision/{name}"))


@pytest.mark.parametrize(("arch", "name"), HEADS.items())
def test_the_head_is_found_by_name(arch, name, meta):
    assert find_head(meta(arch)) == name


def test_trap_x_a_second_use_of_the_old_head_is_noticed():
    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 3)
            self.spare = self.head = nn.Linear(4, 10)

        def forward(self, x):
            return self.head(self.convolution(x).mean(dim=(2, 3)))

    with pytest.raises(UsageError, match="out of place"):
        replace_head(Doubled(), 3)


@pytest.mark.slow
def test_a_new_head_that_lies_where_an_old_one_lay_is_new(meta):
    model = meta("timm/deit_tiny_distilled_patch16_224")
    for classes in range(2, 22):  # memory of one swap is taken up by the next
        assert len(replace_head(model, classes)) == 4


def test_both_heads_of_a_distilled_network_are_replaced(meta):
    model = meta("timm/deit_tiny_distilled_patch16_224")
    assert head_layers(model) == ("head", "head_dist")
    assert len(replace_head(model, 3)) == 4


@pytest.mark.parametrize("arch", ["squeezenet1_1", "mobilenet_v3_small", "unfreeze/small"])
def test_new_weights_get_a_gradient_that_is_not_zero(arch):
    torch.manual_seed(0)
    model = build(arch)
    new = replace_head(model, 4)
    loss = nn.functional.cross_entropy(model(torch.randn(4, 3, 64, 64)), torch.arange(4))
    loss.backward()
    assert all(model.get_parameter(name).grad.abs().sum() > 0 for name in new)


@pytest.mark.parametrize("arch", ["resnet18", "squeezenet1_1", "unfreeze/tiny"])
def test_a_new_head_starts_at_the_loss_of_guessing(arch):
    torch.manual_seed(0)
    model = build(arch)
    replace_head(model, 10)
    model.eval()
    loss = nn.functional.cross_entropy(model(torch.randn(8, 3, 64, 64)), torch.arange(8))
    assert loss.item() == pytest.approx(math.log(10), abs=0.15)


@pytest.mark.parametrize("arch", ["vgg11", "alexnet", "densenet121"])
def test_trap_x_a_layer_nobody_uses_is_not_added(arch, meta):
    model = meta(arch)
    replace_head(model, 10)
    assert not any(name.startswith("fc.") for name in model.state_dict())


def test_no_bias_stays_no_bias(meta):
    assert replace_head(meta("maxvit_t"), 3) == ["classifier.5.weight"]


def test_a_head_that_cannot_be_swapped_is_an_error_and_not_a_broken_model():
    fixed = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 10),
        nn.BatchNorm1d(10),
    )
    with pytest.raises(UsageError, match="does not run without its own head"):
        replace_head(fixed, 3)


def test_a_network_without_scores_says_so():
    with pytest.raises(UsageError, match="No layer of Sequential produces class scores"):
        find_head(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)))


def test_a_head_without_outputs_is_refused(meta):
    with pytest.raises(UsageError, match="at least one output, not 0"):
        replace_head(meta("resnet18"), 0)


def test_an_inner_layer_is_not_taken_for_a_head_that_was_taken_off(meta):
    model = meta("vit_b_32")
    remove_head(model)
    with pytest.raises(UsageError, match="no longer has a head"):
        find_head(model)


def test_squeezenet_features_are_the_pooled_input_of_its_convolution():
    torch.manual_seed(0)
    model = build("squeezenet1_1").eval()
    image = torch.randn(2, 3, 64, 64)
    maps = model.features(image)
    scores, convolution = model(image), model.classifier[1]
    assert remove_head(model) == 512
    torch.testing.assert_close(model.eval()(image), maps.mean(dim=(2, 3)))
    # why the features can't be cached under this head: ReLU stands between it and the pooling
    pooled = torch.relu(convolution(maps.mean(dim=(2, 3), keepdim=True))).flatten(1)
    assert not torch.allclose(pooled, scores, atol=1e-4)


def test_looking_for_the_head_changes_nothing():
    model = build("unfreeze/tiny").train()
    model.stage2.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    find_head(model)
    assert model.training
    assert not model.stage2.training
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


KINDS = ["resnet18", "squeezenet1_1", "alexnet", "timm/deit_tiny_distilled_patch16_224"]


@pytest.mark.parametrize("arch", KINDS)
@pytest.mark.parametrize("kind", ["append", "mlp:16"])
def test_other_kinds_of_head_verify_themselves(arch, kind):
    model = build(arch)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    old = head_layers(model)
    new = replace_head(model, 5, kind=kind)
    assert len(new) == len(old) * (2 if kind == "append" else 4)
    model.eval()
    side = 224 if arch.startswith("timm") else 64
    assert model(torch.zeros(1, 3, side, side)).shape == (1, 5)
    after = model.state_dict()
    # an appended layer keeps what was there, under the old layer's name and .0
    for name in old:
        kept = (
            torch.equal(after[f"{name}.0.weight"], before[f"{name}.weight"])
            if (after[f"{name}.0.weight"].shape == before[f"{name}.weight"].shape)
            else False
        )
        assert kept == (kind == "append")


@pytest.mark.parametrize("kind", ["mlp", "mlp:0", "mlp:x", "other"])
def test_a_kind_of_head_that_nobody_knows_is_refused(kind):
    with pytest.raises(UsageError, match="head does not support"):
        replace_head(build("unfreeze/tiny"), 3, kind=kind)
