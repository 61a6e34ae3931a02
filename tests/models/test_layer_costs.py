"""Operations counted from shapes, and the speed of a network on this machine."""

import pytest
import torch
from torch import nn

from unfreeze.models import layer_costs
from unfreeze.models.layer_costs import ComputeDevice, network_cost, network_flops_per_second

CPU = ComputeDevice(torch.device("cpu"), "fp32")


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5)
    )


CONV = 2 * 3 * 8 * 9 * 16  # two operations a multiplication, 4 x 4 places
LINEAR = 2 * 8 * 16 * 5


def test_a_backward_pass_costs_what_learns():
    free = network_cost(network(), (), 4)
    # of the first layer only the weights have gradients, of the last the input, too
    assert free.forward == CONV + LINEAR and free.training == 2 * CONV + 3 * LINEAR
    frozen = network_cost(network(), {"0.weight", "0.bias"}, 4)
    assert frozen.training == CONV + 2 * LINEAR and frozen.kept <= free.kept
    still = network_cost(network(), {name for name, _ in network().named_parameters()}, 4)
    assert still.training == still.forward and still.kept == 0


def test_what_is_kept_is_what_autograd_keeps():
    own, images = network(), torch.zeros(2, 3, 4, 4)
    kept = layer_costs.SavedTensorBytes([*own.parameters(), images])
    with torch.autograd.graph.saved_tensors_hooks(kept.take, lambda tensor: tensor):
        own(images)
    assert network_cost(own, (), 4).kept == kept.bytes / 2 > 0


def test_a_network_that_does_not_take_the_size_is_not_counted():
    assert network_cost(network(), (), 5) is None
    assert network_flops_per_second(network(), (), 5, rows=4, machine=CPU) is None


def test_measuring_changes_nothing():
    own = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Flatten())
    before = {name: value.clone() for name, value in own.state_dict().items()}
    torch.manual_seed(3)
    drawn = torch.rand(4)
    torch.manual_seed(3)
    assert network_flops_per_second(own, (), 8, rows=8, machine=CPU, seconds=0.02) > 0
    assert torch.equal(torch.rand(4), drawn)
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in own.parameters())


class Clock:
    """Time passes in the network alone: `seconds` for each layer and image."""

    def __init__(self, monkeypatch, own, seconds):
        self.now, self.rows = 0.0, []

        def layer(module, inputs):
            self.rows.append(len(inputs[0]))
            self.now += seconds * len(inputs[0])

        for module in own:
            module.register_forward_pre_hook(layer)
        monkeypatch.setattr(layer_costs.time, "perf_counter", lambda: self.now)


@pytest.fixture
def clocked(monkeypatch):
    monkeypatch.setattr(layer_costs.copy, "deepcopy", lambda network: network)  # the hooks count

    def made(seconds):
        own = network()
        return own, Clock(monkeypatch, own, seconds)

    return made


def test_a_fast_network_is_measured_with_the_whole_batch(clocked):
    own, clock = clocked(1e-4)
    speed = network_flops_per_second(own, (), 4, rows=32, machine=CPU)
    assert clock.rows[-1] == 32
    assert speed == pytest.approx((2 * CONV + 3 * LINEAR) / (4 * 1e-4))


def test_a_slow_one_is_cut_off_between_layers_and_what_was_done_counts(clocked):
    own, clock = clocked(0.2)
    speed = network_flops_per_second(own, (), 4, rows=2, machine=CPU, seconds=0.7)
    # counting by shapes takes 1.6 s here; each pass ends before its second layer is computed
    assert clock.now == pytest.approx(1.6 + 2 * 0.8) and speed == pytest.approx(2 * CONV / 0.8)


def test_large_images_are_measured_on_smaller_ones_and_whole(monkeypatch):
    def any_size():
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 64, 3, padding=1),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5),
        )  # fmt: skip

    own, sides = any_size(), []
    monkeypatch.setattr(layer_costs.copy, "deepcopy", lambda network: network)
    now = 0.0

    def layer(module, inputs):  # seconds by pixels, whatever the layer computes
        nonlocal now
        if inputs[0].dim() == 4 and inputs[0].shape[-1] > 1 and inputs[0].device.type == "cpu":
            sides.append(inputs[0].shape[-1])
            now += 1e-5 * inputs[0].shape[0] * inputs[0].shape[-1] ** 2

    for module in own:
        module.register_forward_pre_hook(layer)
    monkeypatch.setattr(layer_costs.time, "perf_counter", lambda: now)
    speed = network_flops_per_second(own, (), 256, rows=2, machine=CPU)
    assert sides[0] == 256 and sides[-1] < 256 and sides[-1] % 32 == 0
    truth = network_cost(any_size(), (), 256).training / (4 * 1e-5 * 256**2)
    assert speed == pytest.approx(truth, rel=0.1)  # the first layers alone: a tenth of it


@pytest.mark.parametrize(("side", "share", "smaller"), [
    (352, 0.5, 224), (352, 0.01, 160), (352, 0.99, 320), (128, 0.1, 64), (64, 0.5, 0), (4, 0.5, 0),
])  # fmt: skip
def test_smaller_images_are_at_least_half_as_large(side, share, smaller):
    assert layer_costs._smaller(side, share) == smaller


def test_a_network_that_refuses_smaller_images_is_cut_off_instead(clocked, monkeypatch):
    class Fixed(nn.Conv2d):
        def forward(self, x):
            if x.shape[-1] != 128 and x.device.type == "cpu":
                raise ValueError("128 pixels, please")
            return super().forward(x)

    own, now = nn.Sequential(*(Fixed(3, 3, 3, padding=1) for _ in range(4))), 0.0

    def layer(module, inputs):
        nonlocal now
        now += 0.4 * len(inputs[0]) * (inputs[0].device.type == "cpu")

    for module in own:
        module.register_forward_pre_hook(layer)
    monkeypatch.setattr(layer_costs.time, "perf_counter", lambda: now)
    speed = network_flops_per_second(own, (), 128, rows=1, machine=CPU)
    each = network_cost(own, (), 128).forward / 4
    assert speed == pytest.approx(2 * each / 1.2)  # two layers; the third was begun
