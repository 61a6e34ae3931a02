"""SwAV's wide networks against the paper's numbers and torchvision's names."""

import pytest
import torch
import torchvision

from unfreeze.models.build import canonical_arch
from unfreeze.models.head import remove_head
from unfreeze.models.resnet_wide import WideResNet50
from unfreeze.models.stages import stages


@pytest.mark.parametrize(("width", "millions"), [(2, 94), (4, 375), (5, 586)])
def test_the_papers_numbers_of_parameters(width, millions, meta):
    model = meta(f"resnet50w{width}")
    assert remove_head(model) == 2048 * width
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions
    assert canonical_arch(f"resnet50w{width}") == f"unfreeze/resnet50w{width}"


@pytest.mark.parametrize("width", [2, 5])
def test_every_entry_has_torchvisions_name_and_w_times_its_channels(width, meta):
    mine = {k: tuple(t.shape) for k, t in meta(f"resnet50w{width}").state_dict().items()}
    theirs = {k: tuple(t.shape) for k, t in meta("resnet50").state_dict().items()}
    assert list(mine) == list(theirs)
    for name, shape in theirs.items():
        # images have three channels and heads a thousand scores, whatever the width
        wide = tuple(n if n in (1000, 1, 7) or (name, i) == ("conv1.weight", 1) else n * width
                     for i, n in enumerate(shape[:2]))  # fmt: skip
        assert mine[name] == wide + shape[2:], name


def test_width_one_is_torchvisions_resnet50():
    torch.manual_seed(0)
    mine, theirs = WideResNet50(1, 10), torchvision.models.resnet50(num_classes=10)
    theirs.load_state_dict(mine.state_dict())
    image = torch.randn(2, 3, 48, 48)
    assert torch.equal(mine.eval()(image), theirs.eval()(image))
    # initialised as ResNets are: the scale of every convolution is that of its fan-out
    for name, weight in mine.named_parameters():
        if weight.dim() == 4:
            fan_out = weight[:, 0].numel()
            assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15), name


def test_they_are_networks_like_any_other(meta):
    model = meta("unfreeze/resnet50w2", classes=7, stem="small")
    assert model.conv1.weight.shape == (128, 3, 3, 3)
    assert model(torch.zeros(1, 3, 32, 32, device="meta")).shape == (1, 7)
    assert [stage.name for stage in stages(meta("resnet50w4"))] == [
        "stem",
        *(f"layer{i}" for i in range(1, 5)),
    ]
