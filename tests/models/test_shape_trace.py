import pytest
import torch
from torch import nn

from unfreeze.errors import UsageError
from unfreeze.models.head import replace_head
from unfreeze.models.shape_trace import trace_forward


class Looks(nn.Module):
    """Its way depends on numbers, so it can't run without them."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.convolution(x).mean(dim=(2, 3))
        if x.sum().item() > 1e9:
            x = x * 2
        return self.head(x)


def test_order_and_shapes(meta):
    seen = trace_forward(meta("resnet18"), (32, 64))
    assert list(seen.order)[:4] == ["conv1", "bn1", "relu", "maxpool"]
    assert seen.shapes["conv1"] == (1, 64, 16, 32)
    assert seen.shapes["layer4"] == (1, 512, 1, 2)
    assert seen.output.shape == (1, 1000)


def test_a_network_that_looks_at_numbers_is_run_on_them():
    model = Looks()
    assert replace_head(model, 3) == ["head.weight", "head.bias"]
    assert trace_forward(model).shapes["head"] == (1, 3)


def test_what_takes_part_in_the_output_is_known():
    model = Looks()
    model.spare = nn.Linear(4, 4)
    assert trace_forward(model).reached(["head.weight", "convolution.weight"])
    assert not trace_forward(model).reached(["head.weight", "spare.weight"])


def test_a_gradient_is_found_inside_no_grad(meta):
    with torch.no_grad():
        replace_head(meta("resnet18"), 3)


def test_trap_iii_a_image_too_small_for_the_network_is_refused(meta):
    with pytest.raises(UsageError, match="AlexNet does not accept a 3x32x32 image"):
        trace_forward(meta("alexnet"), (32, 32))
