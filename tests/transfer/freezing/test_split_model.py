import pytest
import torch
from torch import nn

from unfreeze.models.build import build
from unfreeze.models.head import replace_head
from unfreeze.transfer.freezing import split_model as border_module
from unfreeze.transfer.freezing.freeze import apply_freeze, select_frozen
from unfreeze.transfer.freezing.split_model import NoSplitPoint, find_split_point, split_flops


def cut(arch, spec, side=64, network=None):
    torch.manual_seed(0)
    network = build(arch) if network is None else network
    head = replace_head(network, 3)
    return network, find_split_point(network, select_frozen(network, spec, head=head), side)


@pytest.mark.parametrize(
    ("arch", "spec", "name", "shape", "learner"),
    [
        ("squeezenet1_1", "all", "features", (512, 3, 3), None),  # not pooled: ReLU comes first
        ("resnet18", "all", "flatten", (512,), "fc"),
        ("resnet18", "stage:3", "layer3", (256, 4, 4), None),
        ("mobilenet_v3_small", "all", "classifier_1", (1024,), "classifier.3"),  # before dropout
        ("timm/regnety_002", "all", "head_drop", (368,), "head.fc"),  # pooled inside the head
        ("unfreeze/small", "stage:1", "stage1", (64, 32, 32), None),
        ("unfreeze/small", "regex:^stem|stage1.conv1", "stem", (64, 32, 32), None),
    ],
)
def test_the_border_is_the_input_of_what_learns_first(arch, spec, name, shape, learner):
    _, split_point = cut(arch, spec)
    assert (split_point.name, split_point.shape, split_point.learner) == (name, shape, learner)


FAMILIES = {
    "alexnet": 64, "convnext_tiny": 64, "densenet121": 64, "efficientnet_b0": 64,
    "efficientnet_v2_s": 64, "googlenet": 64, "inception_v3": 96, "maxvit_t": 224,
    "mnasnet0_5": 64, "mobilenet_v2": 64, "mobilenet_v3_large": 64, "regnet_x_400mf": 64,
    "regnet_y_400mf": 64, "resnet50": 64, "resnext50_32x4d": 64, "shufflenet_v2_x0_5": 64,
    "squeezenet1_0": 64, "swin_t": 64, "swin_v2_t": 64, "vgg11_bn": 64, "vit_b_32": 224,
    "wide_resnet50_2": 64, "timm/vit_tiny_patch16_224": 224, "timm/deit_tiny_patch16_224": 224,
    "timm/deit_tiny_distilled_patch16_224": 224, "timm/swin_tiny_patch4_window7_224": 224,
    "timm/convnext_atto": 64, "timm/resnet26d": 64, "timm/mobilenetv3_small_100": 64,
    "timm/ghostnet_100": 64, "timm/mixer_s32_224": 224, "timm/twins_svt_small": 224,
    "timm/cait_xxs24_224": 224, "timm/levit_128s": 224, "timm/hrnet_w18_small": 64,
    "timm/repvgg_a0": 64, "timm/edgenext_xx_small": 64,
}  # fmt: skip
BY_LAYER = {"timm/twins_svt_small", "timm/hrnet_w18_small"}  # their forward cannot be followed


@pytest.mark.slow
@pytest.mark.parametrize("arch", FAMILIES)
def test_every_family_is_cut_before_its_head_and_most_between_stages(arch):
    """`find_split_point` itself proves both halves against the whole."""
    side = FAMILIES[arch]
    _, split_point = cut(arch, "all", side=side)
    assert split_point.entries
    if arch not in BY_LAYER:
        assert cut(arch, "stage:1", side=side)[1].entries


def test_both_halves_make_the_whole_in_either_mode():
    network, split_point = cut("mobilenet_v3_small", "all")
    images = torch.randn(5, 3, 64, 64)
    for mode in (True, False):
        network.train(mode)
        torch.manual_seed(4)
        whole = network(images)
        kept = split_point.before(images)
        torch.manual_seed(4)  # the dropout of the head draws the same
        halves = split_point.after(kept.clone())
        assert torch.allclose(whole, halves, rtol=1e-5, atol=0)
        assert not kept.requires_grad and halves.requires_grad
        assert whole.abs().max() > 0
    apart = network.train()(images) - network.eval()(images)
    # or the modes would not have been told apart
    assert apart.abs().max() > 1e-2 * whole.abs().max()


def test_what_is_fed_to_the_learner_comes_by_the_approach():
    network, split_point = cut("mobilenet_v3_small", "all")
    network.eval()
    kept = split_point.before(torch.randn(4, 3, 64, 64))
    layer = network.get_submodule(split_point.learner)
    assert torch.allclose(layer(split_point.approach(kept)), split_point.after(kept))
    assert split_point.direct and torch.equal(split_point.approach(kept), kept)
    head = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 3))
    bare = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    stepped = find_split_point(bare, {"0.weight", "0.bias"}, 16)
    assert stepped.learner == "3.1"
    if stepped.name == "_2":  # the ReLU learns nothing and may be on either side
        assert not stepped.direct


def test_finding_it_changes_nothing_but_the_freezing():
    network = build("unfreeze/small")
    head = replace_head(network, 3)
    frozen = select_frozen(network, "stage:1", head=head)
    apply_freeze(network, frozen)
    network.train()
    modes = {name: module.training for name, module in network.named_modules()}
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    find_split_point(network, frozen, 32)
    assert torch.equal(torch.rand(3), expected)
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert modes == {name: module.training for name, module in network.named_modules()}


def test_entries_are_what_the_first_half_reads():
    network, split_point = cut("unfreeze/small", "stage:1")
    assert {name.split(".")[0] for name in split_point.entries} == {"stem", "stage1"}
    images = torch.randn(2, 3, 32, 32)
    kept = split_point.before(images)
    with torch.no_grad():
        network.stage2.conv1.weight.add_(1)
        assert torch.equal(split_point.before(images), kept)
        network.stage1.bn1.running_mean.add_(1)
        assert not torch.equal(split_point.before(images), kept)


def test_the_arithmetic_of_both_halves_is_that_of_the_whole():
    network, split_point = cut("unfreeze/small", "stage:1", side=32)
    first, rest = split_flops(network, split_point, 32)
    conv = 2 * (3 * 64 * 9 + 2 * 64 * 64 * 9) * 16 * 16  # two operations a multiplication
    assert first == conv and rest > 0


class Mixing(nn.Module):
    """Its features of one image depend on the others."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 7)

    def forward(self, x):
        x = self.body(x).mean((2, 3))
        return self.head(x - x.mean(0))


class Noisy(Mixing):
    """It draws random numbers by a function nobody knows."""

    def forward(self, x):
        return self.head((self.body(x) + torch.rand(1)).mean((2, 3)))


class Branching(Mixing):
    """What it does depends on the numbers it sees: it cannot be followed."""

    def forward(self, x):
        x = self.body(x).mean((2, 3))
        return self.head(x if x.sum() > 0 else -x)


class Bypassed(Branching):
    """As before, and the head is not the last step."""

    def forward(self, x):
        return super().forward(x) + x.mean((1, 2, 3))[:, None]


def small(kind):
    network = kind()
    network.default_cfg = {"input_size": (3, 16, 16)}
    frozen = {name for name, _ in network.named_parameters() if not name.startswith("head")}
    return network, frozen


@pytest.mark.parametrize("kind", [Noisy, Bypassed])
def test_what_cannot_be_cut_is_said(kind):
    network, frozen = small(kind)
    with pytest.raises(NoSplitPoint, match="two halves do not return what the network returns"):
        find_split_point(network, frozen, 16)


def test_a_value_that_mixes_images_is_not_kept():
    network, frozen = small(Mixing)
    split_point = find_split_point(network, frozen, 16)
    assert split_point.name == "mean"  # before it is subtracted


def test_a_network_that_cannot_be_followed_is_cut_at_its_last_layer():
    network, frozen = small(Branching)
    split_point = find_split_point(network, frozen, 16)
    assert (
        split_point.name == "head_input"
        and split_point.shape == (4,)
        and split_point.learner == "head"
    )
    images = torch.randn(3, 3, 16, 16)
    assert torch.allclose(split_point.after(split_point.before(images)), network(images))
    with pytest.raises(NoSplitPoint, match=r"torch\.fx cannot trace the network"):
        find_split_point(network, {"body.bias"}, 16)


def test_nothing_frozen_has_no_border():
    with pytest.raises(NoSplitPoint, match="no single frozen tensor"):
        cut("unfreeze/tiny", "none", side=16)


def test_halves_that_differ_are_seen(monkeypatch):
    right = border_module.GraphSplit.after

    def wrong(self):
        half = right(self)
        return nn.Sequential(half, nn.Dropout(0.0), nn.Softmax(dim=1))

    monkeypatch.setattr(border_module.GraphSplit, "after", wrong)
    with pytest.raises(NoSplitPoint, match="two halves"):
        cut("unfreeze/tiny", "all", side=16)
